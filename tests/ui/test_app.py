"""Starting and ending the page, and calling its API, as another program does."""

import json
import signal
import subprocess
import sys
import time

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from isengard.settings import ASSETS, ROOT
from tabs.api import NAMES

PICTURE = ASSETS / "characters" / "nova" / "01.png"
PLACES = ("at the sea", "in a garden", "in a room", "in the snow")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    from tests.ui.conftest import running_page

    with running_page(
        tmp_path_factory.mktemp("page") / "data", "--worker", "none", "--device", "cpu"
    ) as running:
        yield running


@pytest.fixture
def client(page):
    return Client(page.url, verbose=False)


def refused(client, *arguments, api_name):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the client makes a class of its own for each server
        client.predict(*arguments, api_name=api_name)
    return str(caught.value)


@pytest.mark.usefixtures("unmeasured_children")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_page_soon_and_quietly(run_page, number):
    with run_page("--worker", "process", "--device", "cpu") as page:
        began = time.monotonic()
        code, said = page.end(number)
        assert time.monotonic() - began < 10
    assert code == 0
    assert f"Isengard is at {page.url}" in said
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_said_in_plain_words(page, tmp_path):
    done = subprocess.run(
        [sys.executable, "app.py", "--port", str(page.port), "--data-dir", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 1
    assert f"port {page.port}" in done.stderr
    assert f"--port {page.port + 1}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_api_has_the_intended_names_and_no_other(client):
    assert set(client.view_api(return_format="dict", print_info=False)["named_endpoints"]) == {
        f"/{name}" for name in NAMES
    }


def test_a_character_a_training_and_images_through_the_api(client):
    character = client.predict("Anna", api_name="/create_character")
    assert character["trigger"]
    taken, not_taken = client.predict(
        character["id"],
        [handle_file(str(PICTURE)), handle_file(str(ROOT / "README.md"))],
        api_name="/add_images",
    )
    assert (taken["filename"], taken["added"], not_taken["added"]) == ("01.png", True, False)
    assert "no picture can be read" in not_taken["reason"]
    assert client.predict(character["id"], "a portrait of [trigger]", api_name="/caption_images") == 1
    examined = client.predict(character["id"], api_name="/examine_images")
    assert (examined["facts"]["photos"], examined["findings"][-1]["kind"]) == (1, "few_photos")
    training = client.predict(character["id"], api_name="/train")
    assert client.predict(training, api_name="/job_status")["status"] == "queued"
    assert client.predict(training, api_name="/cancel_job")["status"] == "cancelled"
    images = client.predict("a person", base_model="demo", api_name="/generate")
    assert client.predict(images, api_name="/job_images") == []


def follow(client, job, until, seconds=240):
    """The job as soon as ``until`` says so of it."""
    end = time.monotonic() + seconds
    while not until(now := client.predict(job, api_name="/job_status")):
        assert time.monotonic() < end, now
        assert now["status"] != "failed", now
        time.sleep(0.3)
    return now


def compared_with_the_base_model(client, lora):
    """The one checkpoint there is, by few pictures; an image of the test's own with it."""
    assert client.predict(lora, api_name="/comparison") is None
    few = {"prompts": [f"[trigger] [class] {place}" for place in PLACES], "num_inference_steps": 2}
    job = client.predict(lora, overrides=few | {"strengths": [1]}, api_name="/compare_checkpoints")
    follow(client, job, lambda job: job["status"] == "succeeded")
    found = client.predict(lora, api_name="/comparison")
    assert found["complete"]
    assert [score["candidate"] for score in found["scores"]] == [{"step": 8, "strength": 1.0}]
    asked = client.predict(
        "smiling", loras=[{"lora": lora, **found["scores"][0]["candidate"]}], api_name="/generate"
    )
    assert client.predict(asked, api_name="/cancel_job")["status"] in ("running", "cancelled")


@pytest.mark.slow
def test_a_real_training_and_its_image_without_a_browser_and_a_page_that_ends_in_the_middle(
    run_page, tmp_path
):
    with run_page("--worker", "process", "--device", "cpu") as page:
        client = Client(page.url, verbose=False)
        character = client.predict("Anna", api_name="/create_character")["id"]
        files = [handle_file(str(path)) for path in sorted(PICTURE.parent.glob("*.png"))]
        assert all(each["added"] for each in client.predict(character, files, api_name="/add_images"))
        client.predict(character, "a portrait of [trigger] [class]", api_name="/caption_images")
        overrides = {"steps": 8, "save_every": 8, "sample_every": 0}
        lora = client.predict(character, overrides=overrides, api_name="/train")
        assert follow(client, lora, lambda job: job["status"] == "succeeded")["result"]["steps"] == 8
        made = client.predict("smiling", loras=[{"lora": lora}], api_name="/generate")
        follow(client, made, lambda job: job["status"] == "succeeded")
        (image,) = client.predict(made, api_name="/job_images")
        with Image.open(image) as opened:
            assert opened.size == (128, 128)
        compared_with_the_base_model(client, lora)

        overrides = {"steps": 5000, "save_every": 5000, "sample_every": 0, "validate_every": 0}
        long = client.predict(character, overrides=overrides, api_name="/train")
        seen = follow(client, long, lambda job: (job["progress"] or {}).get("phase") == "training")
        with httpx.stream("GET", f"{page.url}/gradio_api/heartbeat/open"):  # as each open page has one
            began = time.monotonic()
            code, said = page.end()
            assert time.monotonic() - began < 10
        assert (code, "Traceback" in said) == (0, False)
        saved = [int(path.name[5:]) for path in (tmp_path / "data/runs" / long / "checkpoints").iterdir()]
        assert max(saved) >= seen["progress"]["step"]
    with run_page("--worker", "process", "--device", "cpu") as page:
        client = Client(page.url, verbose=False)
        again = follow(client, long, lambda job: (job["progress"] or {}).get("phase") == "training")
        assert again["progress"]["step"] >= seen["progress"]["step"]
        assert client.predict(long, api_name="/cancel_job")["status"] in ("running", "cancelled")


def test_a_path_of_the_server_is_no_upload(client):
    character = client.predict("Berta", api_name="/create_character")
    for path in ("/etc/passwd", str(PICTURE)):
        assert "not uploaded" in refused(client, character["id"], [{"path": path}], api_name="/add_images")


@pytest.mark.parametrize(
    ("call", "arguments", "code"),
    [
        ("/generate_video", ["a person waves"], "not_available"),
        ("/job_status", ["nobody"], "not_found"),
        ("/cancel_job", ["nobody"], "not_found"),
        ("/job_images", ["../../etc"], "not_found"),
        ("/train", ["nobody"], "not_found"),
        ("/describe_images", ["nobody"], "not_found"),
        ("/examine_images", ["../nobody"], "not_found"),
        ("/compare_checkpoints", ["nobody"], "not_found"),
        ("/comparison", ["../nobody"], "not_found"),
        ("/add_images", ["../nobody", []], "not_found"),
        ("/create_character", [""], "invalid_spec"),
        ("/generate", ["a person", "no-such-model"], "not_found"),
    ],
)
def test_a_refusal_has_a_stable_code(client, call, arguments, code):
    assert refused(client, *arguments, api_name=call).startswith(f"{code}: ")


def test_a_request_and_the_job_it_asks_for_have_one_id(client, page):
    """Gradio runs a queued call in the context of whoever started its queue: each of two has to have its own."""
    config = httpx.get(f"{page.url}/config").json()
    (call,) = [each for each in config["dependencies"] if each["api_name"] == "generate"]
    jobs, ids = [], []
    for session in ("first", "second"):
        asked = {"fn_index": call["id"], "data": ["a person", "demo", [], {}], "session_hash": session}
        ids.append(httpx.post(f"{page.url}/gradio_api/queue/join", json=asked).headers["x-request-id"])
        jobs.append(_answer(page, session))
    lines = [json.loads(line) for line in (page.data_dir / "logs" / "page.jsonl").read_text().splitlines()]
    queued = {line["job_id"]: line["correlation_id"] for line in lines if line["message"] == "job queued"}
    assert [queued[job] for job in jobs] == ids
    for job in jobs:
        client.predict(job, api_name="/cancel_job")


def _answer(page, session):
    with httpx.stream("GET", f"{page.url}/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            said = json.loads(line.removeprefix("data:")) if line else {}
            if said.get("msg") == "process_completed":
                return said["output"]["data"][0]
    return pytest.fail("the stream ended without an answer")


def test_another_site_cannot_call_the_page(page):
    answer = httpx.post(
        f"{page.url}/gradio_api/queue/join", json={}, headers={"origin": "http://evil.example"}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/etc/passwd", "jobs.db", "../data/jobs.db", "logs/page.jsonl"])
def test_no_other_file_is_served(page, path):
    answer = httpx.get(f"{page.url}/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
