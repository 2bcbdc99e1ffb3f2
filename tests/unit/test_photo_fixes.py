"""Fixes of a character's photos: each gives a new picture, and what it was can be brought back."""

import random

import pytest
from PIL import Image, ImageDraw

from isengard.domain.character import FormerImage
from isengard.domain.doctor import Fix, FixKind
from isengard.domain.identity import Box
from isengard.errors import Conflict, InvalidSpec, NotFound
from isengard.services.characters import CharacterService
from isengard.store import former_images
from isengard.store.characters import CharacterStore
from isengard.store.retouch import cropped, masked, turned
from tests.unit.character_pictures import encoded, picture, write

CROP = Fix(kind=FixKind.CROP, box=Box(left=10, top=20, width=100, height=120))
ROTATE = Fix(kind=FixKind.ROTATE, quarter_turns=1)
MASK = Fix(kind=FixKind.MASK, box=Box(left=10, top=10, width=30, height=30))
LEAVE_OUT = Fix(kind=FixKind.LEAVE_OUT)


@pytest.fixture
def store(tmp_path):
    return CharacterStore(characters_dir=tmp_path / "characters", trash_dir=tmp_path / "trash")


@pytest.fixture
def service(store):
    ticks = iter(range(1, 1000))
    return CharacterService(store=store, clock=lambda: float(next(ticks)))


@pytest.fixture
def anna(service, tmp_path):
    """Three pictures of 160 x 200 pixels with captions."""
    service.create("Anna")
    for seed in range(3):
        content = encoded(picture(seed, (160, 200)))
        files = [write(tmp_path / "in", f"{seed}.png", content), tmp_path / "in" / f"{seed}.txt"]
        files[1].write_text(f"[trigger] number {seed}")
        assert len(list(service.add_files("anna", files))) == 1
    return service.get("anna")


def shown(service, image):
    with Image.open(service.image_path("anna", image.id)) as file:
        return file.convert("RGB")


def names(service):
    return [image.filename for image in service.get("anna").images]


def files_of(service):
    folder = service.image_path("anna", "x").parents[1]
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))


@pytest.mark.parametrize(("fix", "size"), [(CROP, (100, 120)), (ROTATE, (200, 160)), (MASK, (160, 200))])
def test_a_fixed_picture_takes_the_place_name_and_caption_of_the_old_one(service, anna, fix, size):
    before = anna.images[1]
    after = service.fix("anna", before.id, fix).images[1]
    assert (after.width, after.height) == shown(service, after).size == size
    assert (after.filename, after.caption) == (before.filename, before.caption)
    assert after.id == after.sha256[:16] != before.id
    assert service.readiness("anna").ready


@pytest.mark.parametrize("fix", [CROP, ROTATE, MASK, LEAVE_OUT])
def test_what_was_fixed_is_brought_back_as_it_was(service, anna, fix):
    before = shown(service, anna.images[1])
    service.fix("anna", anna.images[1].id, fix)
    back = service.bring_back("anna", anna.images[1].id)
    assert (back.images, back.former) == (anna.images, ())
    assert shown(service, back.images[1]).tobytes() == before.tobytes()
    assert not [name for name in files_of(service) if name.startswith("former")]


def test_a_picture_that_is_left_out_is_no_image_of_a_training(service, anna):
    service.fix("anna", anna.images[0].id, LEAVE_OUT)
    assert names(service) == ["1.png", "2.png"]
    assert len(service.training_images("anna")) == 2
    assert not service.image_path("anna", anna.images[0].id).exists()
    assert service.former_path("anna", anna.images[0].id).exists()


def test_a_caption_that_was_written_after_a_fix_stays_when_the_fix_is_undone(service, anna):
    fixed = service.fix("anna", anna.images[0].id, CROP).images[0]
    service.set_caption("anna", fixed.id, "[trigger] by the sea")
    assert service.bring_back("anna", anna.images[0].id).images[0].caption == "[trigger] by the sea"


def test_an_edited_caption_is_brought_back(service, anna):
    edit = Fix(kind=FixKind.EDIT_CAPTION, caption=" [trigger] smiles ")
    fixed = service.fix("anna", anna.images[0].id, edit)
    assert fixed.images[0].caption == "[trigger] smiles"
    assert service.bring_back("anna", anna.images[0].id).images[0].caption == "[trigger] number 0"


def test_undoing_an_edited_caption_takes_nothing_that_was_typed_since(service, anna):
    service.fix("anna", anna.images[0].id, Fix(kind=FixKind.EDIT_CAPTION, caption="[trigger]"))
    service.set_caption("anna", anna.images[0].id, "[trigger] by hand")
    with pytest.raises(Conflict, match="written anew"):
        service.bring_back("anna", anna.images[0].id)
    assert service.get("anna").images[0].caption == "[trigger] by hand"


def test_fixes_of_one_picture_are_undone_from_the_last(service, anna):
    first = anna.images[0]
    second = service.fix("anna", first.id, ROTATE).images[0]
    character = service.fix("anna", second.id, CROP)
    assert [entry.image.id for entry in character.undoable] == [second.id]
    with pytest.raises(Conflict, match="undo that first"):
        service.bring_back("anna", first.id)
    assert service.bring_back("anna", second.id).images[0] == second
    assert service.bring_back("anna", first.id).images == anna.images


def test_four_quarter_turns_give_the_first_picture_and_can_all_be_undone(service, anna):
    turns = [anna.images[0].id]
    for _ in range(4):
        turns.append(service.fix("anna", turns[-1], ROTATE).images[0].id)
    assert turns[4] == turns[0]
    for image_id in reversed(turns[:4]):
        service.bring_back("anna", image_id)
    assert service.get("anna").images == anna.images


def test_a_left_out_picture_that_was_added_anew_is_there_once_when_brought_back(service, anna, tmp_path):
    service.fix("anna", anna.images[0].id, LEAVE_OUT)
    list(service.add_files("anna", [tmp_path / "in" / "0.png"]))
    service.set_caption("anna", anna.images[0].id, "[trigger] anew")
    back = service.bring_back("anna", anna.images[0].id)
    assert names(service) == ["0.png", "1.png", "2.png"]
    assert back.images[0].caption == "[trigger] anew"


def test_removing_a_fixed_picture_removes_what_it_was_too(service, anna):
    first = service.fix("anna", anna.images[0].id, ROTATE).images[0]
    second = service.fix("anna", first.id, CROP).images[0]
    assert service.remove_image("anna", second.id).former == ()
    assert not [name for name in files_of(service) if name.startswith("former")]


def test_what_was_left_out_can_be_deleted_for_good(service, anna):
    service.fix("anna", anna.images[0].id, LEAVE_OUT)
    service.fix("anna", anna.images[1].id, CROP)
    left = service.forget("anna", anna.images[0].id)
    assert [entry.image.id for entry in left.former] == [anna.images[1].id]
    assert not service.former_path("anna", anna.images[0].id).exists()
    for undo in (service.bring_back, service.forget):
        with pytest.raises(NotFound, match="no former image"):
            undo("anna", anna.images[0].id)


def test_former_pictures_go_with_their_character_into_the_trash_and_back(service, anna):
    service.fix("anna", anna.images[0].id, CROP)
    service.restore(service.delete("anna").id)
    assert service.bring_back("anna", anna.images[0].id).images == anna.images


def test_what_a_fix_keeps_is_no_stray_file(service, anna):
    service.fix("anna", anna.images[0].id, CROP)
    kinds = {finding.kind for finding in service.readiness("anna").findings}
    assert "extra_files" not in kinds
    write(service.former_path("anna", "x").parent, "stray.png", b"")
    assert "extra_files" in {finding.kind for finding in service.readiness("anna").findings}


def test_a_fix_that_changes_nothing_is_refused(service, anna):
    unchanged = Fix(kind=FixKind.CROP, box=Box(left=-1, top=0, width=999, height=999))
    with pytest.raises(InvalidSpec, match="nothing to cut away"):
        service.fix("anna", anna.images[1].id, unchanged)


def test_a_picture_does_not_become_the_same_as_another(service, anna, tmp_path):
    path = write(
        tmp_path / "in", "turned.png", encoded(picture(0, (160, 200)).transpose(Image.Transpose.ROTATE_270))
    )
    list(service.add_files("anna", [path]))
    with pytest.raises(Conflict, match=r"same picture as 'turned\.png'"):
        service.fix("anna", anna.images[0].id, ROTATE)
    assert service.get("anna").former == ()


@pytest.mark.parametrize(
    ("fix", "said"),
    [
        (Fix(kind=FixKind.ROTATE, quarter_turns=0), "leave the picture as it is"),
        (Fix(kind=FixKind.CROP), "its box is missing"),
        (
            Fix(kind=FixKind.CROP, box=Box(left=0, top=0, width=63, height=100)),
            "63 x 100 pixels would be left",
        ),
        (Fix(kind=FixKind.MASK, box=Box(left=200, top=0, width=9, height=9)), "outside of the picture"),
        (Fix(kind=FixKind.MASK, box=Box(left=0, top=0, width=160, height=200)), "covers the whole picture"),
        (Fix(kind=FixKind.CROP, box=Box(left=0, top=0, width=float("inf"), height=9)), "no place and size"),
        (Fix(kind=FixKind.EDIT_CAPTION, caption="a\0b"), "control character"),
    ],
)
def test_a_fix_that_cannot_be_done_says_why_and_changes_nothing(service, anna, fix, said):
    with pytest.raises(InvalidSpec, match=said):
        service.fix("anna", anna.images[0].id, fix)
    assert service.get("anna") == anna


def test_a_picture_whose_file_is_missing_or_none_is_not_fixed(service, anna):
    path = service.image_path("anna", anna.images[0].id)
    path.write_bytes(b"no picture")
    with pytest.raises(InvalidSpec, match="add the file anew"):
        service.fix("anna", anna.images[0].id, ROTATE)
    path.unlink()
    for fix in (ROTATE, LEAVE_OUT):
        with pytest.raises(NotFound, match="is missing"):
            service.fix("anna", anna.images[0].id, fix)
    assert service.get("anna") == anna


def test_a_fix_that_is_cut_short_loses_nothing(service, store, anna):
    def cut_short(folder, character):
        former = FormerImage(image=anna.images[0], fix=LEAVE_OUT, place=0, fixed_at=1)
        former_images.left_out(folder, character, former)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.alter("anna", cut_short, now=1)
    assert service.get("anna") == anna
    assert shown(service, anna.images[0]).size == (160, 200)
    service.fix("anna", anna.images[0].id, LEAVE_OUT)
    assert service.bring_back("anna", anna.images[0].id).images == anna.images


def test_an_unknown_image_is_refused_with_those_that_exist(service, anna):
    with pytest.raises(NotFound, match=anna.images[0].id):
        service.fix("anna", "0" * 16, LEAVE_OUT)
    with pytest.raises(NotFound, match="it has: none"):
        service.bring_back("anna", "0" * 16)


def test_a_picture_is_turned_clockwise():
    image = Image.new("RGB", (80, 100))
    image.putpixel((0, 0), (255, 0, 0))  # top left goes to the top right
    assert turned(image, 1).getpixel((99, 0)) == (255, 0, 0)
    assert turned(image, 2).getpixel((79, 99)) == (255, 0, 0)
    assert turned(image, 3).getpixel((0, 79)) == (255, 0, 0)


def test_a_box_that_reaches_beyond_the_picture_is_cut_at_its_edge():
    image = picture(0, (200, 100))
    part = cropped(image, Box(left=99.6, top=-50, width=500, height=500))
    assert (part.size, part.tobytes()) == ((101, 100), image.crop((99, 0, 200, 100)).tobytes())


def test_a_mask_hides_what_it_covers_and_touches_nothing_else():
    image = Image.linear_gradient("L").resize((200, 160)).convert("RGB")
    secret = image.copy()
    noise = Image.frombytes("RGB", (50, 40), random.Random(1).randbytes(6000))
    secret.paste(noise, (70, 60))
    box = Box(left=70, top=60, width=50, height=40)
    covered = masked(secret, box)
    assert covered.tobytes() == masked(image, box).tobytes()
    ImageDraw.Draw(covered).rectangle((70, 60, 119, 99), fill=0)
    ImageDraw.Draw(secret).rectangle((70, 60, 119, 99), fill=0)
    assert covered.tobytes() == secret.tobytes()


def test_a_mask_takes_the_colours_around_it():
    image = Image.linear_gradient("L").resize((256, 256)).convert("RGB")
    covered = masked(image, Box(left=100, top=100, width=56, height=56))
    off = [
        abs(covered.getpixel((x, y))[0] - image.getpixel((x, y))[0])
        for x, y in [(103, 103), (128, 128), (150, 152)]
    ]
    assert max(off) < 16
