"""The Image tab: what its handlers do on a queue without a worker, and what they paint."""

import asyncio
import json
import zipfile
from contextlib import contextmanager
from pathlib import Path

import gradio as gr
import numpy as np
import pytest
from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file
from starlette.requests import Request

from isengard.domain.generation import ImageSpec, LocalLora
from isengard.domain.identity import ScorerKind
from isengard.domain.job import Job, JobError, JobKind, JobStatus, Lane, Phase, Progress
from isengard.domain.likeness import Likeness
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec, NotFound, QueueUnavailable
from isengard.services.examples import example
from isengard.services.images import read_payload
from isengard.services.machine import Machine
from isengard.settings import ASSETS, Settings
from isengard.store.artifacts import Images, Loras
from isengard.wiring import build
from tabs import image_form, image_gallery, image_live
from tabs.common import Page
from tabs.image import ImageTab
from tabs.image_form import FIELDS
from tabs.image_gallery import Alike
from tabs.image_layout import MAX_STRENGTH, NEVER
from tabs.pictures import Pictures

ALL = image_gallery.ALL
REQUEST = gr.Request(Request({"type": "http", "client": ("127.0.0.1", 4000)}))


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data", device="cpu")


@pytest.fixture
def page(settings):
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=build(settings), machine=Machine(device="cpu"), pictures=pictures)


@pytest.fixture
def tab(page):
    with gr.Blocks():
        return ImageTab(page)


@pytest.fixture
def add_lora(settings, tmp_path):
    loras = Loras(
        loras_dir=settings.loras_dir, runs_dir=settings.runs_dir, trash_dir=settings.trash_dir / "loras"
    )

    def added(lora_id="job1", *, character="nova", steps=30, checkpoints=(), base_model="demo"):
        source = tmp_path / "trained.safetensors"
        save_file({"x": np.zeros(1)}, source)
        for step in checkpoints:
            folder = settings.runs_dir / lora_id / "checkpoints" / f"step-{step:08d}"
            folder.mkdir(parents=True)
            (folder / "lora.safetensors").touch()
        return loras.add(
            lora_id=lora_id,
            name=character.title(),
            character=character,
            trigger="ohwx",
            class_word="person",
            base_model=base_model,
            steps=steps,
            source=source,
            details={},
        )

    return added


@pytest.fixture
def add_image(settings, tmp_path):
    images = Images(images_dir=settings.images_dir, trash_dir=settings.trash_dir / "images")

    def added(job_id="j1", index=0, *, loras=(), model="demo", seed=5, likeness=(), **spec):
        values = {
            "base_model": model,
            "prompt": "[trigger] [class], at sea",
            "width": 64,
            "height": 96,
            **spec,
        }
        made = ImageSpec(**values, loras=loras, seed=seed)
        used = [
            LocalLora(id=ref["lora"], name="Nova", path=tmp_path, strength=ref.get("strength", 1))
            for ref in loras
        ]
        return images.add(
            Image.new("RGB", (64, 96)),
            job_id=job_id,
            index=index,
            spec=made,
            prompt="ohwx person, at sea",
            loras=used,
            seed=seed,
            seconds=2.5,
            likeness=likeness,
        )

    return added


def form(page, **changes):
    return {**image_form.default_form(page, ""), "prompt": "at sea", **changes}


def given(tab, values):
    return {tab.parts.fields[name]: values[name] for name in FIELDS}


def event(**data):
    return gr.EventData(None, data)


def painted_value(change):
    return change.value if isinstance(change, gr.components.Component) else change


# The form


def test_a_fresh_form_is_about_the_newest_lora_and_its_model(page, add_lora):
    assert (form(page)["character"], form(page)["base_model"], form(page)["width"]) == ("", "demo", 128)
    add_lora("job1", character="mira")
    add_lora("job2", character="nova")
    assert (form(page)["character"], form(page)["lora"]) == ("nova", "job2")


def test_loras_are_offered_newest_first_with_the_earlier_checkpoints_of_their_runs(page, add_lora):
    add_lora("job1", steps=30, checkpoints=(10, 20, 30))
    add_lora("job2", steps=40)
    offered = image_form.choices(page, form(page))
    assert [key for _, key in offered["lora"]] == ["job2", "job1", "job1@20", "job1@10"]
    assert [key for _, key in offered["character"]] == ["nova", ""]


def test_size_presets_are_as_large_as_the_model_was_made_for_and_can_be_made(page):
    for card, _ in page.app.images.models():
        for _, size in image_form.sizes(card):
            width, height = map(int, size.split("x"))
            spec = page.app.images.plan(
                overrides={"base_model": card.name, "prompt": "x", "width": width, "height": height}
            )
            assert 0.7 < width * height / card.resolutions[-1] ** 2 < 1.3
            assert (spec.width, spec.height) == (width, height)


def test_the_form_becomes_a_spec_with_the_trigger_put_in(page, add_lora):
    add_lora("job1", checkpoints=(10,))
    add_lora("job2", character="mira")
    rows = {"rows": [{"lora": "job2", "strength": 0.4}]}
    wanted = form(page, character="nova", lora="job1@10", strength=0.8, further=rows, seed="7", count=3)
    job = image_form.submit(page, wanted)
    spec, prompt = read_payload(job)
    assert [(ref.lora, ref.step, ref.strength) for ref in spec.loras] == [
        ("job1", 10, 0.8),
        ("job2", None, 0.4),
    ]
    assert (spec.prompt, spec.seed, spec.count, spec.base_model) == (
        "[trigger] [class], at sea",
        7,
        3,
        "demo",
    )
    assert prompt == "ohwx person, ohwx person, at sea"
    assert (job.kind, job.status) == (JobKind.GENERATE_IMAGES, JobStatus.QUEUED)


def test_fast_is_one_choice_of_the_form(page):
    assert image_form.choices(page, form(page))["cache"] == [("Exact", "none"), ("Fast", "first_block")]
    spec, _ = read_payload(image_form.submit(page, form(page, cache="first_block")))
    assert spec.cache is StepCache.FIRST_BLOCK


def test_a_model_without_a_step_cache_offers_exact_only_and_goes_back_to_it(tab, page):
    painted = tab.choose_model(given(tab, form(page, base_model="sdxl", cache="first_block")))
    speed = painted[tab.parts.fields["cache"]]
    assert (speed.choices, speed.value) == ([("Exact", "none")], "none")


def test_a_second_cache_is_offered_to_whom_settings_have_brought_it(page):
    offered = image_form.choices(page, form(page, base_model="flux1-dev", cache="mag"))["cache"]
    assert [key for _, key in offered] == ["none", "first_block", "mag"]


def test_an_empty_seed_is_drawn_anew(page):
    first, second = (read_payload(image_form.submit(page, form(page)))[0].seed for _ in range(2))
    assert first != second


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"character": "nova", "lora": ""}, "has no LoRA yet"),
        ({"width": 100}, "width: must be a multiple of 16"),
        ({"width": None}, "width: "),
        ({"seed": "many"}, "seed: "),
        ({"base_model": "flux1-dev", "width": 1024, "height": 1024}, "not on this machine"),
        ({"lora": "../../etc"}, "there is no LoRA"),
        ({"prompt": "a [trigger]"}, "no LoRA with a trigger word"),
        ({"cache": "mag"}, "its card has no mag_ratios"),
    ],
)
def test_a_wrong_value_becomes_a_toast_in_plain_words(page, tab, changes, words):
    async def press():
        return [painted async for painted in tab.generate(given(tab, form(page, **changes)), REQUEST)]

    with pytest.raises(gr.Error, match=words):
        asyncio.run(press())
    assert not page.app.jobs.jobs()


def test_the_prompt_is_shown_as_it_is_sent_with_the_inserted_words_marked(page, tab, add_lora):
    add_lora()
    assert tab.as_sent("job1", 1, {}, "at sea")["pieces"] == [
        {"text": "ohwx person", "mark": True},
        {"text": ", at sea", "mark": False},
    ]
    assert tab.as_sent("", 1, {}, "at sea") == {"pieces": [], "error": ""}
    assert "there is no LoRA" in tab.as_sent("gone", 1, {}, "at sea")["error"]


def test_choosing_a_character_takes_its_newest_lora(tab, page, add_lora):
    add_lora("job1")
    painted = tab.choose_character(given(tab, form(page, character="nova", lora="")))
    fields = tab.parts.fields
    assert painted_value(painted[fields["lora"]]) == "job1"
    assert painted[tab.parts.selected] == painted[tab.parts.filled] == "nova"
    assert painted[tab.parts.train].visible is False


def test_choosing_a_lora_of_an_undistilled_model_takes_its_partner_with_its_numbers(tab, page, add_lora):
    add_lora("job1", base_model="flux2-klein-base-4b")
    fields = tab.parts.fields
    painted = tab.choose_lora(given(tab, form(page, lora="job1", base_model="demo")))
    assert painted_value(painted[fields["base_model"]]) == "flux2-klein-4b"
    assert (painted[fields["num_inference_steps"]], painted[fields["guidance_scale"]]) == (4, 1)
    assert form(page)["base_model"] == "flux2-klein-4b"


def test_a_character_without_a_lora_is_told_how_to_get_one(tab, page):
    page.app.characters.create("Mira Vance")
    painted = tab.choose_character(given(tab, form(page, character="mira-vance")))
    assert painted[tab.parts.lack]["title"] == "Mira Vance has no LoRA yet"
    assert painted[tab.parts.train].visible is True
    assert tab.tab().leads == {"training": tab.parts.train}


def test_another_model_or_template_fills_in_its_own_numbers(tab, page):
    fields = tab.parts.fields
    painted = tab.choose_model(given(tab, form(page, base_model="flux1-schnell")))
    assert (painted[fields["width"]], painted[fields["num_inference_steps"]]) == (1024, 4)
    painted = tab.choose_template(given(tab, form(page, template="flux-dev-lora")))
    assert painted_value(painted[fields["base_model"]]) == "flux1-dev"
    assert painted[fields["num_inference_steps"]] == 28


def test_a_draft_comes_back_and_nonsense_in_it_does_not(page, add_lora):
    add_lora()
    draft = [form(page, prompt="left here", count=4)[name] for name in FIELDS]
    assert image_form.restored(page, draft, "")["prompt"] == "left here"
    broken = form(page, prompt=["x"], count="four", width=True, lora="gone", base_model="none")
    form_again = image_form.restored(page, [broken[name] for name in FIELDS], "")
    assert (form_again["prompt"], form_again["count"], form_again["width"]) == ("", 1, 128)
    assert (form_again["lora"], form_again["base_model"]) == ("job1", "demo")
    assert image_form.restored(page, {"no": "list"}, "unknown")["character"] == ""


def test_the_tab_is_filled_once_and_then_only_for_another_character(tab, page, add_lora):
    add_lora("job1", character="nova")
    add_lora("job2", character="mira")
    opened = tab.open("", NEVER, event(draft=None))
    assert opened[tab.parts.selected] == "mira"
    assert tab.open("", "mira", event(draft=None)) == {tab.parts.filled: "mira"}
    values = [form(page)[name] for name in FIELDS]
    first = tab.refresh("mira", "mira", "", "36", ALL, ALL, Alike.NEWEST, *values)
    assert tab.parts.fields["prompt"] not in first
    again = tab.refresh("mira", "mira", first[tab.parts.seen], "36", ALL, ALL, Alike.NEWEST, *values)
    assert set(again) == {tab.parts.seen}
    other = tab.refresh("nova", "mira", first[tab.parts.seen], "36", ALL, ALL, Alike.NEWEST, *values)
    assert painted_value(other[tab.parts.fields["lora"]]) == "job1"
    assert tab.refresh("", NEVER, "not json", "many", ALL, ALL, Alike.NEWEST, *values)[tab.parts.stage] == {
        "state": "empty"
    }


# Settings that are taken over


def test_the_settings_of_an_image_make_the_same_request_again(tab, page, add_lora, add_image):
    add_lora("job1", checkpoints=(10,))
    saved = add_image(
        loras=({"lora": "job1", "step": 10, "strength": 2.5},),
        num_inference_steps=9,
        count=2,
        cache="first_block",
    )
    painted = tab.use(given(tab, form(page)), event(id=saved.id))
    taken = {name: painted_value(painted[tab.parts.fields[name]]) for name in FIELDS}
    assert taken["lora"] == "job1@10"
    assert painted[tab.parts.fields["strength"]].maximum == 2.5 > MAX_STRENGTH
    assert painted[tab.parts.drop]["lacking"] == []
    spec, _ = read_payload(image_form.submit(page, taken))
    assert spec == saved.record.again


def test_a_dropped_png_of_ours_fills_the_form_and_names_what_is_gone(tab, page, add_image):
    saved = add_image(loras=({"lora": "gone", "strength": 0.5},), model="flux1-dev", seed=9)
    upload = upload_of(saved.path.read_bytes())
    painted = tab.use_file(given(tab, form(page)), event(path=str(upload)))
    assert painted[tab.parts.fields["seed"]] == "9"
    assert painted_value(painted[tab.parts.fields["base_model"]]) == "flux1-dev"
    assert painted[tab.parts.drop]["lacking"] == ["LoRA gone with strength 0.5: it is not here"]


def test_a_png_of_another_program_keeps_the_lora_and_names_the_rest(tab, page, add_lora, tmp_path):
    add_lora()
    inside = PngInfo()
    inside.add_text(
        "parameters",
        "a cat\nNegative prompt: ugly\nSteps: 33, Sampler: DPM++ 2M, CFG scale: 6.5, Seed: 99, Size: 160x96",
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=inside)
    upload = upload_of((tmp_path / "a.png").read_bytes())
    painted = tab.use_file(given(tab, form(page)), event(path=str(upload)))
    fields = tab.parts.fields
    assert (painted[fields["prompt"]], painted[fields["width"]], painted[fields["seed"]]) == (
        "a cat",
        160,
        "99",
    )
    assert painted_value(painted[fields["lora"]]) == "job1"
    assert painted[tab.parts.drop]["lacking"] == ["Negative prompt: ugly", "Sampler: DPM++ 2M"]


def upload_of(content):
    folder = Path(get_upload_folder()) / "image-tab-test"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dropped.png"
    path.write_bytes(content)
    return path


def test_a_path_that_was_not_uploaded_is_refused(tab, page, add_image):
    saved = add_image()
    for path in (str(saved.path), "/etc/passwd", ""):
        with pytest.raises(gr.Error, match="not uploaded"):
            tab.use_file(given(tab, form(page)), event(path=path))


@pytest.mark.parametrize("image_id", ["none", "../../etc/passwd", ""])
def test_an_unknown_image_is_refused(tab, page, image_id):
    with pytest.raises(gr.Error, match="there is no image"):
        tab.use(given(tab, form(page)), event(id=image_id))


def test_the_last_seed_can_be_used_again(tab, add_image):
    with pytest.raises(gr.Error, match="no image yet"):
        tab.reuse_seed()
    add_image(seed=77)
    assert tab.reuse_seed() == "77"


# The gallery


def view(tab, *, seen="", shown="36", made_with=ALL, made_on=ALL, alike=Alike.NEWEST):
    p = tab.parts
    return {p.seen: seen, p.shown: shown, p.made_with: made_with, p.made_on: made_on, p.alike: alike}


def ids(painted, tab):
    return [item["id"] for item in painted[tab.parts.gallery]["items"]]


def test_the_gallery_is_filtered_by_character_and_model(tab, page, add_lora, add_image):
    add_lora()
    with_lora = add_image("a", loras=({"lora": "job1"},))
    plain = add_image("b")
    other = add_image("c", model="flux1-dev")
    assert set(ids(tab.choose_filter(view(tab)), tab)) == {with_lora.id, plain.id, other.id}
    assert ids(tab.choose_filter(view(tab, made_with="nova")), tab) == [with_lora.id]
    assert ids(tab.choose_filter(view(tab, made_with="", made_on="demo")), tab) == [plain.id]
    offered = image_gallery.filters(page, image_gallery.everything(page))
    assert [key for _, key in offered["characters"]] == [ALL, "nova", ""]
    assert [key for _, key in offered["models"]] == [ALL, "demo", "flux1-dev"]


def test_an_image_is_shown_with_all_that_is_known_of_it(page, add_image):
    (shown,) = image_gallery.items(page, [add_image(loras=({"lora": "gone", "strength": 0.5},))])
    facts = {fact["name"]: fact["value"] for fact in shown["details"]}
    assert (facts["LoRA"], facts["Seed"], facts["Took"]) == ("Nova at 0.5", "5", "2.5 s")
    assert shown["prompt"] == "ohwx person, at sea"
    assert shown["thumbnail"].endswith(".webp")
    assert shown["whole"].endswith("j1-0.png")


def test_more_images_are_shown_page_by_page(tab, add_image):
    for number in range(image_gallery.PAGE + 2):
        add_image(f"job{number}")
    first = tab.choose_filter(view(tab))[tab.parts.gallery]
    assert (len(first["items"]), first["rest"]) == (image_gallery.PAGE, 2)
    more = tab.more(view(tab))
    assert more[tab.parts.gallery]["rest"] == 0
    assert more[tab.parts.shown] == str(2 * image_gallery.PAGE)


def test_a_deleted_image_goes_into_the_trash(tab, settings, add_image):
    saved = add_image()
    painted = tab.remove(view(tab), event(id=saved.id))
    assert painted[tab.parts.gallery]["items"] == []
    assert len(list((settings.trash_dir / "images").iterdir())) == 1
    with pytest.raises(gr.Error, match="there is no image"):
        tab.remove(view(tab), event(id=saved.id))


def test_all_that_fits_the_filter_comes_in_one_zip(tab, page, add_image):
    with pytest.raises(gr.Error, match="no image to download"):
        tab.archive(ALL, ALL, Alike.NEWEST)
    add_image("a")
    add_image("b", model="flux1-dev")
    tab.archive(ALL, ALL, Alike.NEWEST)
    address = tab.archive(ALL, "flux1-dev", Alike.NEWEST)
    (packed,) = page.app.settings.exports_dir.glob("*/*.zip")
    assert address.endswith(packed.name)
    assert zipfile.ZipFile(packed).namelist() == ["b-0.png"]


def test_a_zip_that_takes_too_long_is_refused_with_a_way_out(page, add_image, monkeypatch):
    add_image()
    monkeypatch.setattr(image_gallery, "MAX_ZIP", 10)
    with pytest.raises(InvalidSpec, match="choose a character or a model first"):
        image_gallery.archive(page, character=ALL, model=ALL, alike=Alike.NEWEST)


# Likeness


def alike(share, *, cosine=0.5, character="nova"):
    kind = ScorerKind.FACES
    return Likeness(character=character, name=character.title(), scorer=kind, cosine=cosine, share=share)


def test_an_image_is_shown_with_its_likeness(page, add_image):
    (shown,) = image_gallery.items(page, [add_image(likeness=(alike(0.876),))])
    assert shown["badge"] == {"name": "Nova", "text": "88 %", "level": "alike"}
    facts = {fact["name"]: fact["value"] for fact in shown["details"]}
    assert facts["Likeness to Nova"] == "88 % of the way, cosine 0.50"


@pytest.mark.parametrize(
    ("likeness", "text", "level"),
    [
        ([alike(1.07)], "100 %", "alike"),
        ([alike(0.6)], "60 %", "between"),
        ([alike(-0.1)], "0 %", "unlike"),
        ([alike(None, cosine=0.712)], "0.71", "unknown"),
        ([alike(0.0, cosine=None)], "", "unlike"),
        ([alike(0.9), alike(0.3, character="odin")], "30 %", "unlike"),
    ],
)
def test_a_badge_says_the_least_likeness_and_nothing_that_nobody_knows(likeness, text, level):
    badge = image_gallery.badge(likeness)
    assert (badge["text"], badge["level"]) == (text, level)


def test_an_image_without_a_known_character_has_no_badge(page, add_image):
    assert image_gallery.items(page, [add_image()])[0]["badge"] is None


def test_the_viewer_says_when_nobody_is_seen():
    assert image_gallery.in_words(alike(0.0, cosine=None)) == "nobody is seen"
    assert image_gallery.in_words(alike(None)) == "cosine 0.50"


def test_the_gallery_is_sorted_and_filtered_by_likeness(tab, add_image):
    add_image("some", likeness=(alike(0.6),))
    add_image("best", likeness=(alike(0.95),))
    add_image("none", likeness=(alike(0.1),))
    add_image("both", likeness=(alike(0.9), alike(0.2, character="odin")))
    add_image("unknown", likeness=(alike(None),))
    add_image("plain")

    def shown(how, **more):
        return [each[:-2] for each in ids(tab.choose_filter(view(tab, alike=how, **more)), tab)]

    assert shown(Alike.BEST) == ["best", "some", "unknown", "both", "none"]
    assert shown(Alike.GOOD) == ["best"]
    assert set(shown(Alike.NONE)) == {"none", "both"}
    assert set(shown("nonsense")) == set(shown(Alike.NEWEST)) == {*shown(Alike.BEST), "plain"}


def test_the_likeness_to_the_chosen_character_counts(tab, add_lora, add_image):
    add_lora("job1", character="nova")
    two = ({"lora": "job1"},)
    add_image("both", loras=two, likeness=(alike(0.9), alike(0.2, character="odin")))
    assert ids(tab.choose_filter(view(tab, alike=Alike.GOOD, made_with="nova")), tab) == ["both-0"]


def test_the_form_asks_for_the_best_only_when_there_is_a_choice(page, add_lora):
    add_lora()
    example(page.app.characters, ASSETS / "characters" / "nova")
    asked = [
        read_payload(image_form.submit(page, form(page, count=count, keep_best=2)))[0].keep_best
        for count in (1, 2, 4)
    ]
    assert asked == [None, None, 2]


def test_the_best_of_a_character_without_photos_cannot_be_told(page, add_lora):
    add_lora()
    with pytest.raises(InvalidSpec, match="there are none of 'nova'"):
        image_form.submit(page, form(page, count=4, keep_best=2))


def claimed_job(page):
    image_form.submit(page, form(page))
    return page.app.queue.claim("w", lease_s=60)


def test_images_that_are_not_like_the_character_are_said_to_be_with_what_helps(page, add_image):
    made = claimed_job(page)
    assert image_live.stage(page)["unlike"] == []
    for index, share in enumerate((0.1, 0.2)):
        weak = [{"lora": "job1", "strength": 0.3}]
        add_image(made.id, index, loras=weak, likeness=(alike(share),))
    assert image_live.stage(page)["unlike"] == [
        {"name": "Nova", "percent": 15, "weak": True, "strength": 0.3}
    ]


def test_what_was_left_out_is_brought_back_by_a_button(tab, page, add_image):
    made = claimed_job(page)
    left_out = [add_image(made.id, index, likeness=(alike(0.9),)).id for index in range(3)][1:]
    for each in left_out:
        page.app.images.remove(each)
    page.app.queue.succeed(made, {"left_out": left_out})
    shown = image_live.stage(page)
    assert (shown["kept"], shown["left_out"]) == (1, 2)
    painted = tab.restore(view(tab), event(id=made.id))
    assert len(painted[tab.parts.stage]["items"]) == len(painted[tab.parts.gallery]["items"]) == 3
    assert "left_out" not in painted[tab.parts.stage]


def test_what_was_deleted_for_good_cannot_be_brought_back(tab, page):
    made = claimed_job(page)
    page.app.queue.succeed(made, {"left_out": [f"{made.id}-0"]})
    with pytest.raises(gr.Error, match="deleted for good"):
        tab.restore(view(tab), event(id=made.id))


# The generation under way


class FakeJobs:
    """Hands out the states of one job, one after the other; the last for ever."""

    def __init__(self, *jobs):
        self.left, self.now = list(jobs), 0.0

    @contextmanager
    def listening(self, job_id):
        def changed(seconds):
            self.now += seconds
            return True

        yield changed

    def get(self, job_id):
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


def job(status, **more):
    facts = {"id": "g1", "kind": JobKind.GENERATE_IMAGES, "lane": Lane.INTERACTIVE, "created_at": 0}
    payload = {"spec": {"base_model": "demo", "prompt": "x"}, "prompt": "x"}
    return Job(**{**facts, "status": status, "payload": payload, **more})


PAINTING = Progress(phase=Phase.GENERATING, step=5, total=20, message="image 1 of 1", preview="preview.png")


def attached(*states, leaving=lambda: False):
    told, jobs = [], FakeJobs(*states)

    def tell(done, *, desc=None, unit="steps"):
        told.append((done, desc))

    ended = asyncio.run(image_live.attach(jobs, "g1", tell, leaving=leaving, clock=lambda: jobs.now))
    return ended, told, jobs.now


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED])
def test_the_page_stays_with_a_generation_to_its_end(end):
    states = (job(JobStatus.QUEUED), job(JobStatus.RUNNING, progress=PAINTING), job(end))
    ended, told, _ = attached(*states)
    assert ended.status is end
    assert told == [((0, None), "Waiting for its turn"), ((5, 20), "Painting image 1 of 1")]


def test_a_long_generation_is_left_before_a_minute_has_passed():
    left, _, waited = attached(job(JobStatus.RUNNING))
    assert not left.status.ended
    assert image_live.PATIENCE_S <= waited < 60


def test_a_job_list_that_goes_away_ends_the_attachment_and_not_the_generation():
    class Broken(FakeJobs):
        def listening(self, job_id):
            raise QueueUnavailable("the server is gone")

    running = job(JobStatus.RUNNING)
    left = asyncio.run(image_live.attach(Broken(running), "g1", lambda *_, **__: None, leaving=lambda: False))
    assert left == running


def test_a_server_that_ends_is_not_kept_waiting():
    left, told, _ = attached(job(JobStatus.RUNNING), leaving=lambda: True)
    assert (left.status, told) == (JobStatus.RUNNING, [])


def test_a_failure_is_said_in_its_own_words(page):
    queue = page.app.queue
    image_form.submit(page, form(page))
    claimed = queue.claim("w", lease_s=60)
    queue.fail(claimed, JobError(code="out_of_memory", message="too large here"))
    shown = image_live.stage(page)
    assert (shown["state"], shown["headline"], shown["detail"]) == (
        "failed",
        "No image was made",
        "too large here",
    )
    with pytest.warns(UserWarning, match="too large here"):  # a toast, outside of a page
        image_live.say_how_it_ended(queue.get(claimed.id))


def test_a_running_generation_is_shown_with_its_preview_after_a_reload(page):
    image_form.submit(page, form(page))
    waiting = image_form.submit(page, form(page, prompt="the next"))
    claimed = page.app.queue.claim("w", lease_s=60)
    folder = page.app.jobs.run_dir(claimed.id)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "preview.png")
    page.app.queue.heartbeat(claimed, lease_s=60, progress=PAINTING)
    shown = image_live.stage(page)
    assert (shown["state"], shown["job"], shown["percent"]) == ("active", claimed.id, 25)
    assert shown["preview"].startswith("data:image/png;base64,")
    assert shown["waiting"] == [{"id": waiting.id, "prompt": "the next", "why": ""}]
    now = image_live.watcher(page)()
    assert (now["job"], now["steps"]) == (claimed.id, "step 5 of 20")
    assert "preview" not in image_live.still(shown)


def test_a_training_that_makes_room_is_named(page):
    queue = page.app.queue
    queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    training = queue.claim("w", lease_s=60)
    image_form.submit(page, form(page))
    assert image_live.stage(page)["note"].startswith(
        "The training of Nova saves its state and lets this image"
    )
    queue.release(training, reason="made room")
    queue.claim("w", lease_s=60)
    assert image_live.stage(page)["note"] == "The training of Nova is saved and waits; it goes on by itself."


def test_a_generation_is_cancelled_and_a_training_is_not(tab, page):
    made = image_form.submit(page, form(page))
    assert tab.stop(event(id=made.id))["state"] == "cancelled"
    assert tab.stop(event(id=made.id))["none"].startswith("It was cancelled")
    training = page.app.queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    with pytest.raises(gr.Error, match="is no generation"):
        tab.stop(event(id=training.id))
    with pytest.raises(gr.Error):
        tab.stop(event(id="unknown"))
    with pytest.raises(NotFound):
        image_live.cancel(page, "unknown")


def test_a_press_enqueues_one_job_and_shows_it(tab, page, add_image):
    async def press():
        stages = []
        async for painted in tab.generate(given(tab, form(page)), REQUEST):
            stages.append(painted[tab.parts.stage]["state"])
            if len(stages) == 1:
                page.app.queue.succeed(page.app.queue.claim("w", lease_s=60), {"images": []})
        return stages

    assert asyncio.run(press()) == ["active", "succeeded"]
    assert len(page.app.jobs.jobs()) == 1


# The files of the page


def test_what_the_browser_says_it_shows_is_not_believed(tab):
    painted = tab.choose_filter(view(tab, seen=json.dumps(["x"]), shown="-3"))
    assert painted[tab.parts.shown] == str(image_gallery.PAGE)
