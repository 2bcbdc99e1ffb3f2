"""The page around its tabs: what is public, what is refused, what the header says."""

import asyncio
import base64
import re
import subprocess
import sys
import time

import gradio as gr
import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from isengard.domain.job import Job, JobKind, JobStatus, Lane, Phase, Progress
from isengard.errors import NotFound
from isengard.services.machine import Machine
from isengard.settings import ROOT, Settings
from isengard.wiring import build
from tabs import api, status
from tabs.common import WEB, Page, duration, handled, texts, uploaded
from tabs.http.economy import economise
from tabs.http.health import routes
from tabs.http.origin import SameOrigin
from tabs.page import build as build_page
from tabs.pictures import Pictures
from tabs.progress import in_short


@pytest.fixture
def page(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", device="cpu")
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    return Page(app=build(settings), machine=Machine(device="cpu"), pictures=pictures)


def test_the_api_has_exactly_the_intended_names(page):
    demo = build_page(page)
    public = {each.api_name for each in demo.fns.values() if each.api_visibility == "public"}
    assert public == set(api.NAMES)
    assert all(each.api_visibility in ("public", "private") for each in demo.fns.values())


def test_the_page_starts_without_torch():
    program = "import app, tabs.page, tabs.api, sys; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert not {"torch", "diffusers", "peft", "transformers"} & set(done.stdout.split())


def test_every_language_has_the_same_labels():
    languages = texts().translations
    assert {"en", "de"} <= set(languages)
    assert len({frozenset(labels) for labels in languages.values()}) == 1


def test_no_template_holds_a_value():
    """Gradio runs a template as a script, with what was put into it; scripts set text as text instead."""
    for file in WEB.glob("*.html"):
        template = file.read_text(encoding="utf-8")
        assert [mark for mark in ("{{", "${", "`", "\\") if mark in template] == [], file.name
    for file in WEB.glob("*.js"):
        script = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script), (
            file.name
        )


# What handlers are given


def test_a_path_that_was_not_uploaded_is_refused(tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_text("secret")
    for path in (outside, "/etc/passwd", "../../etc/passwd", ""):
        with pytest.raises(gr.Error, match="not uploaded"):
            uploaded([str(path)])


def test_our_errors_reach_the_person_in_their_own_words_and_bugs_with_a_reference(caplog):
    @handled
    def refuses(name):
        raise NotFound(f"there is no <b>{name}</b>")

    @handled
    def breaks():
        raise ZeroDivisionError("secret detail")

    with pytest.raises(gr.Error, match="there is no &lt;b&gt;Anna&lt;/b&gt;"):
        refuses("Anna")
    with pytest.raises(gr.Error, match=r"reference [0-9a-f]{12}") as caught:
        breaks()
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError" in caplog.text


def test_a_generator_is_guarded_too():

    @handled
    async def counts(last):
        for number in range(last):
            yield number
        raise NotFound("no more")

    async def all_of(found):
        async for value in counts(2):
            found.append(value)  # what came before the failure counts

    found = []
    with pytest.raises(gr.Error, match="no more"):
        asyncio.run(all_of(found))
    assert found == [0, 1]


@pytest.mark.parametrize(("shown", "about"), [("ab12", "ab12"), ("", None)])
def test_a_report_is_handed_to_the_browser_that_asked_for_it_and_kept_nowhere(
    page, monkeypatch, shown, about
):
    monkeypatch.setattr(type(page.app.reports), "content", lambda _, job_id: f"about {job_id}".encode())
    (report,) = [each for each in build_page(page).fns.values() if each.name == "report_problem"]
    before = set(page.app.settings.data_dir.rglob("*"))
    name, content = report.fn(shown).split(" ")
    assert re.fullmatch(r"isengard-report-[0-9-]+\.zip", name)
    assert base64.b64decode(content).decode() == f"about {about}"
    assert set(page.app.settings.data_dir.rglob("*")) == before


# Who may call


@pytest.fixture
def client(page):
    app = Starlette(
        routes=[*routes(page.app), Route("/page", lambda _: PlainTextResponse("page"))],
        middleware=[Middleware(SameOrigin)],
    )
    return TestClient(app, base_url="http://studio.example:7860")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 200),
        ({"origin": "http://studio.example:7860"}, 200),
        ({"origin": "https://pod-7860.proxy.example", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://evil.example", "x-forwarded-host": "evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://studio.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://studio.example:7860.evil.example"}, 403),
    ],
)
def test_a_request_from_another_site_is_refused(client, headers, code):
    assert client.get("/page", headers=headers).status_code == code


def test_the_page_is_healthy_as_long_as_it_answers(client):
    assert client.get("/health").json()["status"] == "ok"


# What the header says


def job(**values):
    common = {"id": "ab12", "kind": JobKind.TRAIN_LORA, "lane": Lane.TRAINING, "status": JobStatus.RUNNING}
    return Job(**common, payload={"name": "Nova"}, created_at=0, **values)


@pytest.mark.parametrize(
    ("progress", "text", "percent"),
    [
        (None, "Training Nova · starting", 0),
        (Progress(phase=Phase.CACHING), "Training Nova · preparing images", 0),
        (
            Progress(phase=Phase.TRAINING, step=30, total=240, eta_s=125),
            "Training Nova · 12 % · 2 min 05 s left",
            12,
        ),
    ],
)
def test_the_running_job_in_one_line(progress, text, percent):
    shown = in_short(job(progress=progress))
    assert (shown["text"], shown["percent"]) == (text, percent)


def test_the_header_shows_the_queue_and_its_key_changes_with_it(page):
    look = status.looker(page)
    before = look()
    assert (before["queue"], before["jobs"]) == ("Queue empty", [])
    assert before["device"].endswith("CPU")
    page.app.queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    after = look()
    assert after["queue"] == "1 in queue"
    assert after["key"] != before["key"]
    assert look()["key"] == after["key"]
    page.app.characters.create(name="Nova")  # by another browser, say
    assert look()["key"] != after["key"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (-3, "0 s")],
)
def test_durations_in_words(seconds, text):
    assert duration(seconds) == text


def test_few_pages_ask_often_and_many_take_turns():
    now = [100.0]
    turns = status.Turns(clock=lambda: now[0])
    assert turns.wait(1.2) == pytest.approx(1.2)
    now[0] = 101.2
    assert turns.wait(1.2) == pytest.approx(1.2)
    waits = [turns.wait(1.2) for _ in range(40)]
    assert waits == sorted(waits)
    assert waits[-1] == pytest.approx(1.2 + 40 / status.QUESTIONS_PER_S)


def test_the_machine_is_asked_seldom():
    now = [0.0]
    machine = Machine(device="cpu", clock=lambda: now[0])
    first = machine.state()
    assert machine.state() is first
    now[0] = 6
    assert machine.state() is not first
    assert 0 < first.used_gb < first.total_gb


def test_the_gpu_is_described_by_its_driver(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 20480, 81920, 9.0, 1, 35'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    state = Machine(device="cuda:0").state()
    assert (state.device, state.used_gb, state.total_gb) == ("H100 80GB HBM3", 20, 80)
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert Machine(device="auto", clock=time.monotonic).state().device.endswith("CPU")


# Pictures


def test_pictures_are_served_as_small_copies_from_one_folder(page, tmp_path):

    source = tmp_path / "a.png"
    Image.new("RGB", (800, 400), "red").save(source)
    address = page.pictures.thumbnail(source, side=200)
    assert address.startswith("/gradio_api/file=")
    (copy,) = (page.app.settings.cache_dir / "pictures").iterdir()
    with Image.open(copy) as opened:
        assert opened.size == (200, 100)
    assert page.pictures.thumbnail(source, side=200) == address
    assert page.pictures.thumbnail(tmp_path / "gone.png") == ""
    assert page.pictures.whole(page.app.settings.images_dir / "gone.png") == ""


def test_the_queue_of_an_idle_page_rests():
    with gr.Blocks() as demo:
        gr.HTML()
    demo.queue()
    hurried = vars(demo._queue).copy()
    economise(demo)
    changed = {name for name, value in vars(demo._queue).items() if value != hurried.get(name)}
    assert changed == {"sleep_when_free", "progress_update_sleep_when_free"}
    assert changed < hurried.keys()
    assert all(getattr(demo._queue, name) > hurried[name] for name in changed)
