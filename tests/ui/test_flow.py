"""A user's whole way through the page, in Chromium, with a real worker and the bundled model."""

import io
import random
import re
import shutil

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from isengard.settings import ROOT
from scripts.demo_model.draw import draw, random_look, random_person

HEIC = ROOT / "tests" / "assets" / "heic"
STEPS = 60
#: A quick training takes a minute on an idle machine; the tests share theirs.
PATIENCE_MS = 120_000


@pytest.fixture
def chromium():
    """Debian's Chromium. Without it these tests fail: a page that nobody has seen is not tested."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    assert path, "the tests of the page need Chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_from_photos_to_images(run_page, chromium, photos):
    with run_page("--worker", "process", "--device", "cpu") as page:
        view = chromium.new_page(viewport={"width": 1440, "height": 900})
        problems = []
        view.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        view.on("pageerror", lambda error: problems.append(str(error)))
        view.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        view.goto(page.url)

        make_character(view, photos)
        train(view)
        job = watch_and_reload(view)
        generate_meanwhile(view, page, job)
        generate_with_the_lora(view, page, job)
        assert problems == []


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


def train(view):
    view.locator("#characters-train").click()
    expect(view.get_by_role("tab", name="Training", exact=True).first).to_have_attribute(
        "aria-selected", "true"
    )
    expect(box(view, "training-who")).to_have_value(re.compile("Anna Smith"))
    view.locator("#training-advanced button").first.click()
    view.locator("#training-field-steps").fill(str(STEPS))
    view.locator("#training-field-steps").press("Tab")
    view.locator("#training-start").click()


def watch_and_reload(view):
    """See progress move, before and after a reload; return the job's id."""
    bar = view.locator("#training-live .bar")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"^[1-9]"))
    running = httpx.get(f"{view.url.split('?')[0]}gradio_api/info")  # the page answers others meanwhile
    assert running.status_code == 200
    view.goto(f"{view.url.split('?')[0]}?tab=training")
    expect(view.locator("#training-live h3").last).to_contain_text("Anna Smith")
    seen = int(view.locator("#training-live .bar").get_attribute("aria-valuenow"))
    expect(view.locator("#training-live .percent")).not_to_have_text(f"{seen} %")
    return view.locator("#training-live").evaluate("() => window.isengard.job?.id")


def generate_meanwhile(view, page, job):
    view.get_by_role("tab", name="Image", exact=True).first.click()
    box(view, "image-prompt").fill("a portrait of a person on a beach")
    view.locator("#image-generate").click()
    expect(view.locator("#image-stage img[alt*=beach]").first).to_be_visible()
    assert job


def generate_with_the_lora(view, page, job):
    view.get_by_role("tab", name="Training", exact=True).first.click()
    lead = view.locator("#training-generate")
    expect(lead).to_be_visible()
    lead.click()
    expect(view.locator("#image-sent")).to_be_visible()
    box(view, "image-prompt").fill("laughing in a forest")
    view.locator("#image-generate").click()
    expect(view.locator("#image-stage img[alt*=forest]").first).to_be_visible()
    expect(view.locator("#image-gallery .thumb")).to_have_count(2)
    box(view, "image-prompt").fill("something else")
    view.locator("#image-gallery .thumb").first.click()
    view.locator("#image-viewer .use").click()
    expect(box(view, "image-prompt")).to_have_value(re.compile("laughing in a forest"))
