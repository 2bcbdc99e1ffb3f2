"""The doctor of photos in the characters tab: what it shows, what its buttons do, and all of it in Chromium."""

import re
import threading

import pytest
from playwright.sync_api import expect

from isengard.domain.doctor import Examination, Finding, FindingKind, Fix, FixKind, SetFacts
from isengard.domain.identity import Box, ScorerKind
from isengard.errors import MissingWeights
from isengard.services.doctor import DoctorService
from isengard.settings import Settings
from isengard.wiring import build
from tabs.characters_changes import answering
from tabs.characters_doctor import Doctor
from tabs.common import WEB, words
from tabs.pictures import Pictures
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view, problems_of
from tests.ui.conftest import running_page
from tests.unit.character_pictures import encoded, picture, write

CROP = Fix(kind=FixKind.CROP, box=Box(left=20, top=10, width=200, height=180))
MASK = Fix(kind=FixKind.MASK, box=Box(left=150, top=30, width=90, height=90))
ROTATE = Fix(kind=FixKind.ROTATE, quarter_turns=1)
LEAVE_OUT = Fix(kind=FixKind.LEAVE_OUT)
CAPTION = Fix(kind=FixKind.EDIT_CAPTION, caption="[trigger] at the <sea>")
FACTS = SetFacts(scorer=ScorerKind.FACES, photos=5, showing=4, views={"frontal": 4}, light={"dark": 4})


class Canned(DoctorService):
    """Finds what it is told to, photo by photo, as soon as it may go on."""

    def __init__(self, kept, found=(), *, error=None):
        self.kept, self.found, self.error = kept, tuple(found), error
        self.go_on, self.reached, self.asked = threading.Event(), threading.Event(), 0

    def examine(self, character_id, *, report=lambda _done, _all: None):
        report(2, 5)
        self.reached.set()
        assert self.go_on.wait(10)
        report(3, 5)
        if self.error:
            raise self.error
        self.kept[character_id] = examination(*self.found)
        return self.kept[character_id]

    def last(self, character_id):
        return self.kept.get(character_id)

    def is_current(self, character_id):
        self.asked += 1
        return True


def examination(*findings):
    return Examination(findings=findings, facts=FACTS, photos=(), examined="", made_at=1_700_000_000)


def finding(kind, image=None, fix=None, **facts):
    return Finding(kind=kind, image=image, fix=fix, **{"reason": "so it is", "number": 3, "limit": 8} | facts)


@pytest.fixture
def app(tmp_path):
    return build(Settings(data_dir=tmp_path / "data", device="cpu"))


@pytest.fixture
def mira(app, tmp_path):
    """Four photos."""
    app.characters.create("Mira", trigger="mrxq")
    app.characters.edit("mira", scorer=ScorerKind.FACES)
    files = [
        write(tmp_path / "in", f"{number}.png", encoded(picture(number, (256, 256)))) for number in range(4)
    ]
    texts = [write(tmp_path / "in", f"{number}.txt", b"[trigger] at the sea") for number in range(4)]
    assert len(list(app.characters.add_files("mira", [*files, *texts]))) == 4
    return app.characters.get("mira")


@pytest.fixture
def of(app):
    """The part of the tab with a doctor of one's own."""
    pictures = Pictures(folder=app.settings.cache_dir / "pictures", gallery=app.settings.images_dir)
    return lambda doctor: Doctor(doctor=doctor, characters=app.characters, pictures=pictures)


def ended(part, character="mira"):
    """Wait for the end of a look."""
    for thread in threading.enumerate():
        if thread.name == "doctor":
            thread.join(10)
    return part.look(character)


def test_without_photos_nothing_is_shown(app, of):
    part = of(Canned({}))
    assert part.shown(None) == {}
    assert part.shown(app.characters.create("Zoe")) == {}


def test_before_the_first_look_there_is_nothing_but_the_button(of, mira):
    shown = of(Canned({})).shown(mira)
    assert (shown["photos"], shown["last"], shown["former"]) == (4, None, [])
    assert not shown["round"]["running"]


@pytest.mark.parametrize("kind", FindingKind)
def test_there_is_a_sentence_for_each_kind_of_finding(kind):
    assert f"doctor.say.why.{kind}" in words("doctor")["en"]


def test_a_finding_is_shown_with_its_photo_number_and_fix(of, mira):
    first, second, *_ = (image.id for image in mira.images)
    twin = finding(
        FindingKind.NEAR_DUPLICATE, first, LEAVE_OUT, images=(second, "0" * 16), number=60, limit=64
    )
    last = of(Canned({"mira": examination(twin)})).shown(mira)["last"]
    (shown,) = last["findings"]
    assert (shown["kind"], shown["number"]) == ("near_duplicate", 60)
    assert shown["fix"]["kind"] == "leave_out"
    assert [other["name"] for other in shown["others"]] == ["1.png", ""]
    assert last["pictures"][first]["picture"].startswith("/gradio_api/file=")
    assert (last["pictures"][first]["name"], last["pictures"][first]["width"]) == ("0.png", 256)
    assert last["facts"]["views"] == {"frontal": 4}


def test_a_look_tells_how_far_it_is_and_is_done_once(of, mira):
    doctor = Canned({})
    part = of(doctor)
    assert part.examine("mira")["running"]
    assert doctor.reached.wait(10)
    assert part.examine("mira") == {"running": True, "done": 2, "photos": 5, "error": ""}
    doctor.go_on.set()
    assert ended(part) == {"running": False, "done": 3, "photos": 5, "error": ""}
    assert part.shown(mira)["last"]["findings"] == []


def test_a_stopped_look_changes_nothing(of, mira):
    doctor = Canned({})
    part = of(doctor)
    part.examine("mira")
    assert doctor.reached.wait(10)
    assert part.stop("mira")["running"]
    doctor.go_on.set()
    assert ended(part)["running"] is False
    assert part.shown(mira)["last"] is None
    assert part.stop("nobody")["running"] is False


def test_a_look_that_fails_says_why_until_the_next_one(of, mira):
    doctor = Canned({}, error=MissingWeights("download the <scorer> first"))
    doctor.go_on.set()
    part = of(doctor)
    part.examine("mira")
    ended(part)
    assert part.shown(mira)["round"]["error"] == "download the <scorer> first"
    doctor.error = None
    part.examine("mira")
    assert ended(part)["error"] == ""


def test_a_look_at_an_unknown_character_is_refused(of):
    assert "no character 'nobody'" in answering(of(Canned({})).examine)({"character": "nobody"})["error"]


def test_a_character_that_went_meanwhile_shows_nothing(app, of, mira):
    class Gone(Canned):
        def last(self, character_id):
            return app.characters.get(character_id)

    app.characters.delete("mira")
    assert of(Gone({})).shown(mira) == {}


def test_whether_the_look_is_still_true_is_asked_when_something_has_changed(app, of, mira):
    doctor = Canned({"mira": examination()})
    part = of(doctor)
    assert part.shown(mira)["current"]
    part.shown(mira)
    assert doctor.asked == 1
    app.characters.set_caption("mira", mira.images[0].id, "[trigger]")
    part.shown(app.characters.get("mira"))
    assert doctor.asked == 2


@pytest.mark.parametrize("fix", [CROP, MASK, ROTATE, LEAVE_OUT, CAPTION], ids=lambda fix: fix.kind)
def test_a_fix_can_be_undone_and_both_are_shown(app, of, mira, fix):
    part, image = of(Canned({})), mira.images[0]
    given = {"character": "mira", "image": image.id}
    assert answering(part.fix)({**given, "fix": fix.model_dump(mode="json")}) == {}
    (former,) = part.shown(app.characters.get("mira"))["former"]
    assert (former["image"], former["name"], former["fix"]) == (image.id, "0.png", fix.kind)
    assert former["picture"].startswith("/gradio_api/file=")
    assert answering(part.undo)(given) == {}
    assert app.characters.get("mira").images == mira.images


def test_a_photo_that_was_left_out_can_be_deleted_for_good(app, of, mira):
    part, given = of(Canned({})), {"character": "mira", "image": mira.images[0].id}
    part.fix(**given, fix=LEAVE_OUT.model_dump(mode="json"))
    assert answering(part.forget)(given) == {}
    assert part.shown(app.characters.get("mira"))["former"] == []


def test_a_fix_that_nobody_knows_is_refused(app, of, mira):
    fix, given = answering(of(Canned({})).fix), {"character": "mira", "image": mira.images[0].id}
    for unknown in ({"kind": "burn"}, {}, {"kind": "crop", "box": {"left": "x"}}, {"kind": "mask", "x": 1}):
        assert "error" in fix({**given, "fix": unknown})
    assert app.characters.get("mira") == mira


def test_everything_that_can_be_found_and_done_has_words_in_both_languages():
    script = (WEB / "characters_doctor.js").read_text(encoding="utf-8")
    used = {word for word in re.findall(r'say\("([a-z_.]+)"', script) if not word.endswith(".")}
    used |= {f"kind.{kind}" for kind in FindingKind}
    used |= {f"{does}.{kind}" for kind in FixKind for does in ("fix", "done")}
    for language, also in (("en", set()), ("de", {f"why.{kind}" for kind in FindingKind})):
        written = {key.removeprefix("doctor.say.") for key in words("doctor")[language]}
        assert used | also <= written


@pytest.mark.slow
def test_photos_are_checked_and_put_right_in_the_page(app, mira, tmp_path):
    images = [image.id for image in mira.images]
    known = examination(
        finding(FindingKind.MORE_PEOPLE, images[0], CROP),
        finding(FindingKind.MORE_PEOPLE, images[1], MASK),
        finding(FindingKind.SIDEWAYS, images[2], ROTATE, number=90),
        finding(FindingKind.SAME_OUTFIT, images=tuple(images[:3]), subject="red clothes"),
    ).model_copy(update={"photos": tuple(images)})
    data = app.settings.data_dir
    write(data / "cache" / "examinations", "mira.json", known.model_dump_json().encode())
    with running_page(data, "--worker", "none", "--device", "cpu") as page, chromium() as browser:
        view = new_view(browser)
        problems = problems_of(view)
        camera = Camera(tmp_path / "screenshots")
        put_right(page, view, camera, app, mira)
        check_again(view, app, images)
        german(browser, page)
    assert problems == []
    assert camera.problems == []


def put_right(page, view, camera, app, before):
    """Use what an earlier look has found, and undo it after a reload."""
    view.goto(f"{page.url}/?tab=characters&character=mira")
    part = view.locator("#characters-doctor")
    expect(part.locator(".photo")).to_have_count(3)
    view.locator(f"#characters-grid [data-id='{before.images[0].id}'] textarea").fill("[trigger] typed")
    part.get_by_role("button", name="Crop to the frame").click()
    expect(part.locator(".latest")).to_contain_text("0.png was cropped.")
    expect(part.locator(".latest .undo")).to_be_focused()
    part.get_by_role("button", name="Paint over").click()
    expect(part.locator(".latest")).to_contain_text("1.png was painted over")
    view.reload()
    expect(part.locator(".latest")).to_contain_text("1.png was painted over")
    expect(part.locator(".photo")).to_have_count(1)
    camera.shoot(view, "photo-check")
    part.get_by_role("button", name="Undo the change of 1.png").click()
    expect(part.locator(".latest")).to_contain_text("0.png was cropped.")
    expect(part.locator(".photo")).to_have_count(2)
    after = app.characters.get("mira").images
    assert [(image.width, image.height) for image in after[:2]] == [(200, 180), (256, 256)]
    assert after[0].caption == "[trigger] typed"
    assert after[1] == before.images[1]


def check_again(view, app, images):
    """A real look: no face is in these pictures, and they are blurred, so there is something to leave out and to edit."""
    part = view.locator("#characters-doctor")
    app.characters.set_caption("mira", images[3], "[trigger] with blue eyes, at the sea")
    part.get_by_role("button", name="Check again").click()
    expect(part).to_contain_text("Unsure who it is")
    edited = part.locator(f"[data-image='{images[3]}']")
    expect(edited.locator("textarea")).to_have_value("[trigger], at the sea")
    edited.locator("textarea").fill("[trigger] by <b>the</b> sea")
    edited.get_by_role("button", name="Use this caption").click()
    expect(part.locator(".latest")).to_contain_text("3.png has a new caption.")
    expect(view.locator(f"#characters-grid [data-id='{images[3]}'] textarea")).to_have_value(
        "[trigger] by <b>the</b> sea"
    )
    part.locator(f"[data-image='{images[3]}']").get_by_role("button", name="Leave out").first.click()
    expect(part.locator(".latest")).to_contain_text("3.png is left out")
    expect(view.locator("#characters-grid figure")).to_have_count(3)


def german(browser, page):
    view = new_view(browser, locale="de-DE")
    view.goto(f"{page.url}/?tab=characters&character=mira")
    part = view.locator("#characters-doctor")
    expect(part.get_by_role("button", name="Noch einmal prüfen")).to_be_visible()
    expect(part).to_contain_text("Keine zwei der 4 Fotos zeigen deutlich dieselbe Person")
    view.close()
