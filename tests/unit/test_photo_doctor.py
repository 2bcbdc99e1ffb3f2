"""What the doctor says of photos with known measures."""

import numpy as np
import pytest
from PIL import Image

from isengard.domain.character import Character, ReferenceImage
from isengard.domain.colours import NAMES, main_colour, palette
from isengard.domain.doctor import FindingKind, Fix, FixKind
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.domain.photo import Photo, Region, Seen
from isengard.domain.twins import encoded, twins
from isengard.services.doctor import judge
from tests.unit.character_pictures import picture

HER, HIM = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
NEARLY_HER = (0.33, 0.0, 0.944)
FINE = Region(blur=0.3, dark=0.1, mean=0.5, bright=0.9)
RED, BLUE, GREEN = (
    palette(np.array([colour], np.uint8)) for colour in ((200, 10, 10), (10, 10, 200), (10, 200, 10))
)
FACE = Box(left=400, top=200, width=200, height=260)


def face(who=HER, box=FACE, region=FINE, outfit=None, **values):
    return Seen(sighting=Sighting(box=box, embedding=who, **values), region=region, outfit=outfit)


def shot(*seen, number=0, turned=(), background=BLUE, whole=FINE, thumbnail=None, size=(1000, 1000)):
    pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return Photo(
        width=size[0],
        height=size[1],
        seen=seen,
        turned=turned,
        whole=whole,
        background=background,
        thumbnail=thumbnail or encoded(pixels),
    )


def character(captions):
    images = (
        ReferenceImage(
            id=f"{number:016x}", sha256="", dhash="0" * 16, width=9, height=9, filename=f"{number}.jpg",
            added_at=0, caption=caption,
        )
        for number, caption in enumerate(captions)
    )  # fmt: skip
    return Character(
        id="anna",
        name="Anna",
        trigger="ohwx",
        class_word="woman",
        created_at=0,
        updated_at=0,
        images=tuple(images),
    )


def judged(photos, *, captions=None, kind=ScorerKind.FACES):
    someone = character(captions or [""] * len(photos))
    return judge(
        someone, {image.id: photo for image, photo in zip(someone.images, photos, strict=True)}, kind
    )


def others(number=4, start=100):
    return [
        shot(
            face(
                box=FACE.model_copy(update={"height": 200 + 20 * n}),
                turn=0.5 * (n % 2),
                region=FINE.model_copy(update={"mean": n / 10}),
            ),
            number=start + n,
            background=palette(np.array([[40 * n, 255 - 40 * n, 100 * (n % 2)]], np.uint8)),
        )
        for n in range(number)
    ]


def of(photo, **values):
    """The findings of one photo beside four without any fault, by kind."""
    findings, _ = judged([photo, *others()], **values)
    assert not [finding for finding in findings if finding.image not in (None, f"{0:016x}")]
    return {finding.kind: finding for finding in findings if finding.image}


def test_a_photo_with_nothing_wrong_has_no_finding():
    assert of(shot(face())) == {}


def test_somebody_else_is_found_and_told_with_the_likeness():
    finding = of(shot(face(HIM)))[FindingKind.ANOTHER_PERSON]
    assert (finding.number, finding.limit, finding.fix) == (0, 0.363, Fix(kind=FixKind.LEAVE_OUT))


def test_a_face_from_the_side_may_be_less_like_the_others():
    assert FindingKind.ANOTHER_PERSON in of(shot(face(NEARLY_HER)))
    assert of(shot(face(NEARLY_HER, turn=1.2))) == {}


def test_a_photo_without_a_face_shows_nobody():
    assert list(of(shot())) == [FindingKind.NOBODY]


def test_a_doubtful_face_is_nobody():
    assert of(shot(face(HIM, confidence=0.75)))[FindingKind.NOBODY].number == 0.75


def test_a_face_that_is_found_more_surely_after_a_turn_lies_on_its_side():
    upright = Sighting(box=FACE, embedding=HER, confidence=0.95)
    doubtful = face((0.0, 0.6, 0.8), confidence=0.85)
    finding = of(shot(doubtful, turned=((), (), (upright,))))[FindingKind.SIDEWAYS]
    assert finding.fix == Fix(kind=FixKind.ROTATE, quarter_turns=3)


def test_somebody_else_who_lies_on_the_side_is_somebody_else():
    stranger = Sighting(box=FACE, embedding=HIM, confidence=0.95)
    assert list(of(shot(turned=((stranger,), (), ())))) == [FindingKind.ANOTHER_PERSON]


def test_a_small_face_is_cropped_to_where_the_photo_has_room_for_it():
    tiny = face(box=Box(left=2000, top=1000, width=150, height=180))
    finding = of(shot(tiny, size=(4000, 3000)))[FindingKind.SMALL_FACE]
    assert finding.fix == Fix(kind=FixKind.CROP, box=Box(left=1775, top=820, width=600, height=900))


def test_a_small_face_in_a_small_photo_is_left_out():
    tiny = face(box=Box(left=100, top=100, width=20, height=30), reliable=False)
    assert of(shot(tiny, size=(400, 400)))[FindingKind.SMALL_FACE].fix == Fix(kind=FixKind.LEAVE_OUT)


def test_a_face_at_the_picture_s_edge_is_cut_off():
    cut = face(box=Box(left=-20, top=300, width=200, height=260))
    assert of(shot(cut))[FindingKind.CUT_OFF].number == pytest.approx(-0.1)


def test_a_face_that_fills_the_picture_is_cut_off():
    near = face(box=Box(left=100, top=60, width=600, height=900))
    assert of(shot(near))[FindingKind.CUT_OFF].number == 0.9


def test_a_drawn_figure_is_turned_to_where_it_is_most_like_the_others():
    def look(who):
        return (Sighting(box=FACE, embedding=who),)

    lying = shot(face((0.6, 0.8, 0.0)), turned=(look(HIM), look(HIM), look(HER)))
    stranger = shot(face(HIM), turned=(look((0.5, 0.5, 0.7)), look(HIM), look(HIM)), number=1)
    findings, _ = judged([lying, stranger, *others()], kind=ScorerKind.DRAWN_FIGURES)
    told = {finding.image: finding.kind for finding in findings if finding.image}
    assert told == {f"{0:016x}": FindingKind.SIDEWAYS, f"{1:016x}": FindingKind.ANOTHER_PERSON}


def test_somebody_beside_the_character_is_cropped_away_where_that_can_be_done():
    him = face(HIM, box=Box(left=1500, top=200, width=200, height=260))
    finding = of(shot(face(), him, size=(2000, 1500)))[FindingKind.MORE_PEOPLE]
    assert finding.fix == Fix(kind=FixKind.CROP, box=Box(left=100, top=0, width=800, height=1240))


def test_somebody_who_touches_the_character_is_masked():
    him = face(HIM, box=Box(left=250, top=200, width=160, height=200))
    her = face(box=FACE)
    finding = of(shot(her, him))[FindingKind.MORE_PEOPLE]
    assert finding.fix == Fix(kind=FixKind.MASK, box=Box(left=186, top=100, width=288, height=360))


def test_small_people_in_the_background_do_not_matter():
    assert of(shot(face(), face(HIM, box=Box(left=10, top=10, width=40, height=50)))) == {}


@pytest.mark.parametrize(
    ("region", "kind"),
    [
        ({"blur": 0.7}, FindingKind.BLURRED),
        ({"bright": 0.2}, FindingKind.TOO_DARK),
        ({"dark": 0.8}, FindingKind.TOO_BRIGHT),
    ],
)
def test_a_bad_picture_is_left_out(region, kind):
    finding = of(shot(face(region=FINE.model_copy(update=region))))[kind]
    assert (finding.number, finding.fix) == (next(iter(region.values())), Fix(kind=FixKind.LEAVE_OUT))


def test_a_mirrored_copy_that_is_cropped_a_little_is_a_twin():
    original, other = picture(1, (320, 320)), picture(2, (320, 320))
    copy = original.crop((0, 10, 310, 320)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pictures = {"original": original, "copy": copy, "other": other}
    found = twins({name: encoded(np.asarray(each.resize((32, 32)))) for name, each in pictures.items()})
    assert list(found) == [("original", "copy")]
    assert twins({}) == {}


def test_of_twins_the_blurrier_is_left_out():
    blurred = shot(face(), number=1, whole=FINE.model_copy(update={"blur": 0.4}))
    findings, _ = judged([blurred, shot(face(), number=1), *others()])
    (finding,) = [finding for finding in findings if finding.kind is FindingKind.NEAR_DUPLICATE]
    assert (finding.image, finding.images) == (f"{0:016x}", (f"{1:016x}",))


def test_captions_get_the_trigger_and_lose_what_explains_the_looks():
    findings = of(shot(face()), captions=["a [class] with blue eyes, at sea", "", "", "", ""])
    assert findings[FindingKind.TRAIT_IN_CAPTION].subject == "blue eyes"
    assert findings[FindingKind.TRAIT_IN_CAPTION].fix.caption == "a [class], at sea"
    assert findings[FindingKind.NO_TRIGGER].fix.caption == "a [trigger] [class], at sea"


def of_set(photos, **values):
    findings, facts = judged(photos, **values)
    return {finding.kind: finding for finding in findings if not finding.image}, facts


def test_a_varied_set_only_lacks_photos():
    findings, facts = of_set(others(6))
    assert list(findings) == [FindingKind.FEW_PHOTOS]
    assert (facts.showing, facts.views) == (6, {"frontal": 3, "three-quarter": 3})


def test_two_people_in_as_many_photos_leave_it_open_who_is_meant():
    findings, _ = judged([*others(3), *(shot(face(HIM), number=n) for n in range(2))])
    assert [finding.kind for finding in findings if not finding.image] == [
        FindingKind.UNSURE_WHO,
        FindingKind.FEW_PHOTOS,
    ]
    assert FindingKind.ANOTHER_PERSON not in {finding.kind for finding in findings}


def test_nobody_twice_leaves_it_open_who_is_meant():
    findings, facts = of_set([shot(face(HER), number=1), shot(face(HIM), number=2)])
    assert findings[FindingKind.UNSURE_WHO].limit == 2
    assert facts.showing == 0


def test_the_same_clothes_are_called_what_the_captions_call_them():
    photos = [*(shot(face(outfit=RED), number=n) for n in range(5)), shot(face(outfit=GREEN), number=9)]
    findings, facts = of_set(photos, captions=["[trigger] in a red jacket"] * 6)
    finding = findings[FindingKind.SAME_OUTFIT]
    assert (finding.number, finding.limit, finding.subject) == (5, 6, "red jacket")
    assert facts.outfits == {"dark red" if main_colour(RED) == "dark red" else "red": 5, "green": 1}


def test_the_same_clothes_without_captions_are_called_by_their_colour():
    findings, _ = of_set([shot(face(outfit=RED), number=n) for n in range(5)])
    assert findings[FindingKind.SAME_OUTFIT].subject == f"{main_colour(RED)} clothes"


def test_what_is_the_same_in_all_photos_is_said():
    photos = [shot(face(), number=n) for n in range(6)]
    findings, facts = of_set(photos, captions=["[trigger] smiling"] * 6)
    assert set(findings) == {
        FindingKind.FEW_PHOTOS,
        FindingKind.FEW_ANGLES,
        FindingKind.SAME_DISTANCE,
        FindingKind.SAME_LIGHT,
        FindingKind.SAME_EXPRESSION,
        FindingKind.SAME_BACKGROUND,
    }
    assert (facts.expressions, facts.distances) == ({"smiling": 6}, {"head and shoulders": 6})


def test_of_whole_pictures_only_what_is_far_from_the_others_is_somebody_else():
    def like(cosine):
        return (cosine, (1 - cosine**2) ** 0.5, 0.0)

    photos = [shot(face(like(1 - n / 100)), number=n) for n in range(6)]
    findings, facts = judged([*photos, shot(face((0.0, 0.0, 1.0)), number=9)], kind=ScorerKind.LOOK)
    assert [finding.image for finding in findings if finding.kind is FindingKind.ANOTHER_PERSON] == [
        f"{6:016x}"
    ]
    assert facts.views is None


def test_a_character_without_photos_has_no_findings():
    assert judged([])[0] == ()


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((5, 5, 5), "black"), ((250, 250, 250), "white"), ((128, 130, 128), "grey"), ((230, 120, 20), "orange"),
     ((90, 50, 20), "brown"), ((30, 60, 240), "blue"), ((240, 120, 200), "pink"), ((250, 10, 40), "red")],
)  # fmt: skip
def test_a_colour_is_called_by_its_name(rgb, name):
    assert main_colour(palette(np.array([rgb], np.uint8))) == name
    assert len(palette(np.array([rgb], np.uint8))) == len(NAMES)
