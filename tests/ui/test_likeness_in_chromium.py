"""A user sees which images look like the character, in Chromium; what was made is laid down beforehand."""

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from safetensors.numpy import save_file

from isengard.domain.generation import LocalLora
from isengard.domain.identity import ScorerKind
from isengard.domain.likeness import Likeness
from isengard.services.examples import example
from isengard.settings import ASSETS, Settings
from isengard.wiring import build, images_of, loras_of
from tests.ui.camera import Camera
from tests.ui.chromium import chromium, new_view

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unmeasured_children")]


def laid_down(data_dir):
    """Nova with a LoRA, and two requests: six of eight images left out, and two made with too little strength."""
    settings = Settings(data_dir=data_dir, device="cpu")
    app = build(settings)
    example(app.characters, ASSETS / "characters" / "nova")
    source = data_dir / "trained.safetensors"
    save_file({"x": np.zeros(1)}, source)
    loras_of(settings).add(
        lora_id="job1", name="Nova", character="nova", trigger="ohwx", class_word="person", base_model="demo",
        steps=30, source=source, details={},
    )  # fmt: skip
    asked(app, source, strength=0.2, shares=[0.12, 0.16], count=2)
    asked(
        app, source, strength=1.0, shares=[0.97, 0.93, 0.9, 0.85, 0.7, 0.65, 0.4, None], count=8, keep_best=2
    )


def asked(app, source, *, strength, shares, **spec):
    """One request with the images that its worker would have made."""
    images = images_of(app.settings)
    values = {"prompt": "[trigger] at sea", "loras": [{"lora": "job1", "strength": strength}], "seed": 5}
    job = app.images.submit(app.images.plan(overrides={**values, **spec}))
    claimed = app.queue.claim("by hand", lease_s=60)
    for index, share in enumerate(shares):
        like = Likeness(
            character="nova", name="Nova", scorer=ScorerKind.DRAWN_FIGURES, cosine=share, share=share or 0.0
        )
        images.add(
            Image.new("RGB", (128, 128), (30 * index, 90, 120)),
            job_id=job.id,
            index=index,
            spec=app.images.plan(overrides={**values, **spec}),
            prompt="ohwx at sea",
            loras=[LocalLora(id="job1", name="Nova", path=source, strength=strength)],
            seed=5 + index,
            seconds=1.0,
            likeness=[like],
        )
    left_out = [f"{job.id}-{index}" for index in range(spec.get("keep_best", len(shares)), len(shares))]
    for image_id in left_out:
        images.remove(image_id)
    app.queue.succeed(claimed, {"left_out": left_out})


def test_likeness_is_seen_sorted_by_and_what_was_left_out_comes_back(run_page, tmp_path):
    laid_down(tmp_path / "data")
    camera = Camera(tmp_path / "screenshots")
    with run_page("--worker", "none", "--device", "cpu") as page, chromium() as browser:
        see_and_sort(new_view(browser), page, camera)
        read_in_german(new_view(browser, locale="de-DE"), page)
    assert camera.problems == []


def see_and_sort(view, page, camera):
    view.goto(f"{page.url}?tab=image")
    stage, badges = view.locator("#image-stage"), view.locator("#image-gallery .badge")
    expect(stage.locator(".badge")).to_have_text(["97 %", "93 %"])
    expect(badges).to_have_text(["93 %", "97 %", "16 %", "12 %"])
    expect(view.locator("#image-keep-best input[type=number]")).to_be_visible()
    camera.shoot(view, "image-likeness")
    choose(view, "Most like the character first")
    expect(badges).to_have_text(["97 %", "93 %", "16 %", "12 %"])
    choose(view, "Not alike (under 50 %)")
    expect(badges).to_have_text(["16 %", "12 %"])
    stage.get_by_role("button", name="Bring them back").click()
    expect(stage.locator(".badge")).to_have_count(8)
    expect(badges).to_have_text(["nobody", "40 %", "16 %", "12 %"])
    view.locator("#image-gallery .thumb").nth(2).click()
    expect(view.locator("#image-viewer dialog")).to_contain_text("16 % of the way, cosine 0.16")


def choose(view, label):
    view.locator("#image-alike input").click()
    view.get_by_role("option", name=label).click()


def read_in_german(view, page):
    view.goto(f"{page.url}?tab=image")
    view.locator("#image:not([inert])").wait_for()
    expect(view.locator("#image-keep-best")).to_contain_text("Die ähnlichsten behalten")
    view.locator("#image-alike input").click()
    expect(view.get_by_role("option", name="Der Figur ähnlichste zuerst")).to_be_visible()
