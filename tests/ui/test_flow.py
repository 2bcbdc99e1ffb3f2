"""A user's whole way through the page, in Chromium, with a real worker and the bundled model."""

import io
import json
import random
import re
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Error, expect

from isengard.domain.job import JobError, JobStatus, Phase, Progress
from isengard.services.examples import example
from isengard.settings import ASSETS, ROOT, Settings
from isengard.wiring import build
from scripts.demo_model.draw import draw, random_look, random_person
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view, problems_of

pytestmark = pytest.mark.usefixtures("unmeasured_children")
HEIC = ROOT / "tests" / "assets" / "heic"
STEPS = 60


@pytest.fixture
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def photos(tmp_path):
    """Eight files: five portraits, a HEIC, one that EXIF turns, and one that is broken."""
    rng = random.Random(4)
    person = random_person(rng)
    for number in range(5):
        draw(person, random_look(rng), size=256).save(tmp_path / f"{number}.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(person, random_look(rng), size=256).save(tmp_path / "turned.jpg", exif=turned)
    (tmp_path / "phone.heic").write_bytes((HEIC / "rotated-gps.heic").read_bytes())
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(
        whole, "PNG"
    )
    (tmp_path / "broken.png").write_bytes(whole.getvalue()[:20_000])
    return sorted(tmp_path.glob("*.*"))


@pytest.fixture
def camera(tmp_path):
    return Camera(tmp_path / "screenshots")


@contextmanager
def opened(browser, page, camera):
    """A browser on the page; nothing may go wrong in its console."""
    view = new_view(browser)
    problems = problems_of(view)
    view.goto(page.url)
    try:
        yield view
    except (AssertionError, Error):
        view.screenshot(path=camera.folder / "failure.png")
        raise
    assert problems == []


def tab(view, name):
    view.get_by_role("tab", name=name, exact=True).first.click()


@pytest.mark.slow
def test_a_page_without_anything_says_how_to_begin(run_page, browser, camera, tmp_path):
    examples = [about.parent.name for about in ASSETS.glob("characters/*/about.yaml")]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "examples.json").write_text(json.dumps(examples))
    with run_page("--worker", "none", "--device", "cpu") as page, opened(browser, page, camera) as view:
        expect(view.get_by_role("heading", name="Create your first character")).to_be_visible()
        camera.shoot(view, "characters-empty")
        tab(view, "Training")
        expect(view.locator("#training-live")).to_contain_text("No training yet")
        camera.shoot(view, "training-empty")
        tab(view, "Image")
        expect(view.locator("#image-stage")).to_contain_text("Your images appear here")
        camera.shoot(view, "image-empty")
        tab(view, "Video")
        expect(view.get_by_text("In development").first).to_be_visible()
        camera.shoot(view, "video")
    assert camera.problems == []


@pytest.mark.slow
def test_from_photos_to_images(run_page, browser, camera, photos):
    with (
        run_page("--worker", "process", "--device", "cpu") as page,
        opened(browser, page, camera) as view,
    ):
        make_character(view, photos)
        camera.shoot(view, "characters-filled")
        train(view, steps=STEPS)
        watch_and_reload(view)
        camera.shoot(view, "training-running")
        generate_meanwhile(view, camera)
        generate_with_the_lora(view, camera)
    assert camera.problems == []


def box(view, name):
    """The field inside a component: Gradio takes either element for a text of one line."""
    return view.locator(f"#{name} :is(input, textarea)").first


def make_character(view, photos):
    expect(view.locator("#characters-cards")).to_contain_text("Nova")
    view.locator("#characters-new").click()
    box(view, "characters-new-name").press_sequentially("Anna Smith")
    expect(box(view, "characters-new-trigger")).not_to_have_value("")
    view.locator("#characters-create").click()
    expect(view.locator("#characters-head")).to_contain_text("Anna Smith")
    view.locator("#characters-drop input[type=file]").set_input_files(photos)
    expect(view.locator("#characters-drop .sum")).to_contain_text(
        "8 of 8 files done: 7 images added, 1 refused"
    )
    expect(view.locator("#characters-drop li.refused")).to_contain_text("broken.png")
    first = view.locator("#characters-grid textarea").first
    first.fill("[trigger] [class] at the sea")
    first.press("Enter")
    view.locator("#characters-tools button").first.click()
    box(view, "characters-template").fill("a portrait of [trigger] [class]")
    view.locator("#characters-caption-all").click()
    expect(view.locator("#characters-grid textarea").nth(3)).to_have_value("a portrait of [trigger] [class]")
    expect(first).to_have_value("[trigger] [class] at the sea")


def train(view, *, steps):
    view.locator("#characters-train").click()
    expect(view.get_by_role("tab", name="Training", exact=True).first).to_have_attribute(
        "aria-selected", "true"
    )
    expect(box(view, "training-who")).to_have_value(re.compile("Anna Smith"))
    set_up(view, steps=steps)


def set_up(view, **settings):
    """Change settings and start."""
    if not view.locator("#training-field-steps").is_visible():
        view.locator("#training-advanced button").first.click()
    for name, value in settings.items():
        view.locator(f"#training-field-{name}").fill(str(value))
        view.locator(f"#training-field-{name}").press("Tab")
    view.locator("#training-start").click()


def watch_and_reload(view):
    """See progress move, before and after a reload."""
    bar = view.locator("#training-live .bar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]"))
    view.goto(f"{view.url.split('?')[0]}?tab=training")
    expect(view.locator("#training-live h3").last).to_contain_text("Anna Smith")
    seen = view.locator("#training-live .percent").inner_text()
    expect(view.locator("#training-live .percent")).not_to_have_text(seen)


def generate_meanwhile(view, camera):
    tab(view, "Image")
    view.locator("#image:not([inert])").wait_for()
    box(view, "image-prompt").fill("a portrait of a person on a beach")
    view.locator("#image-count input[type=number]").fill("3")
    view.locator("#image-generate").click()
    expect(view.locator("#image-stage .is-active")).to_be_visible()
    camera.shoot(view, "image-running")
    expect(view.locator("#image-stage img[alt*=beach]").first).to_be_visible()


def generate_with_the_lora(view, camera):
    tab(view, "Training")
    lead = view.locator("#training-generate")
    expect(lead).to_be_visible()
    camera.shoot(view, "training-done")
    lead.click()
    expect(view.locator("#image-sent")).to_be_visible()
    box(view, "image-prompt").fill("laughing in a forest")
    view.locator("#image-count input[type=number]").fill("1")
    view.locator("#image-generate").click()
    expect(view.locator("#image-stage img[alt*=forest]").first).to_be_visible()
    expect(view.locator("#image-gallery .thumb")).to_have_count(4)
    camera.shoot(view, "image-done")
    box(view, "image-prompt").fill("something else")
    view.locator("#image-gallery .thumb").first.click()
    expect(view.locator("#image-viewer dialog")).to_be_visible()
    camera.shoot(view, "image-viewer")
    view.locator("#image-viewer .use").click()
    expect(box(view, "image-prompt")).to_have_value(re.compile("laughing in a forest"))


@pytest.mark.slow
def test_a_failure_is_told_in_words_with_buttons_that_mend_it(run_page, browser, camera, tmp_path):
    app = build(Settings(data_dir=tmp_path / "data", device="cpu"))
    nova = example(app.characters, ASSETS / "characters" / "nova")
    training = app.training.submit(character_id=nova.id, base_model="demo", preset="quick", overrides={})
    image = app.images.submit(app.images.plan(overrides={"prompt": "at sea", "base_model": "demo"}))
    for words in (
        "batch 8 at 128 px needs more than the free 3 GB",
        "the pipeline needs more than the free 3 GB",
    ):
        claimed = app.queue.claim("by hand", lease_s=60)
        app.queue.heartbeat(
            claimed, lease_s=60, progress=Progress(phase=Phase.TRAINING, step=30, total=240, loss=0.5)
        )
        app.queue.fail(claimed, JobError(code="out_of_memory", message=f"out of memory: {words}"))
    with (
        run_page("--worker", "none", "--device", "cpu") as page,
        opened(browser, page, camera) as view,
    ):
        tab(view, "Training")
        expect(view.locator("#training-live .error")).to_contain_text("out of memory")
        camera.shoot(view, "training-failed")
        tab(view, "Image")
        expect(view.locator("#image-stage .is-failed .detail")).to_contain_text("out of memory")
        camera.shoot(view, "image-failed")
        tab(view, "Training")
        view.get_by_role("button", name=re.compile("^Restart with ")).click()
        expect(view.locator("#training-live .badge")).not_to_contain_text("Failed")
    assert app.jobs.get(image.id).status is JobStatus.FAILED
    mended = app.jobs.get(training.id).payload["spec"]
    assert (mended["batch_size"], mended["gradient_accumulation_steps"]) == (4, 2)
    assert camera.problems == []
