"""One whole run with a canary for each secret, and a search for them in all that was written, said and answered."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import psutil
import pytest
import yaml
from gradio_client import Client, handle_file
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from isengard.cli import app as command_line
from isengard.settings import ROOT, Settings
from isengard.wiring import build
from tests.canaries import held, held_below
from tests.fake_hub import FakeHub
from tests.redis_servers import Server, free_port
from tests.tiny_app import QUICK, tiny_settings
from tests.waiting import PATIENCE_S, until

#: Each in letters that look different in an address, in JSON or in HTML, where its place allows such letters.
CANARIES = {
    "password": 'c4nary-login/of+"glass"&<ash>',
    "mistyped password": "c4nary-mistyped/tower=of%glass",
    "token of the environment": "hf_C4naryOfTheEnvironment",
    "typed token": "hf_C4naryThatWasTyped",
    "password of the job list": "c4nary/of:the@job?list",
    "webhook": "c4naryWebhookT0ken",
    "key of RunPod": "rpa_C4NARY0RUNPOD0KEY",
    "photo": "c4nary lane 7, home of Mira",
}
USER = "anna"
TOKEN_FILE = "hub-token"  # noqa: S105  # the only place that may hold a secret


def photos(folder):
    """Nine, which all tell where they were taken, each in its own way."""
    folder.mkdir()
    secret = CANARIES["photo"]
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = secret  # description, artist
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + secret.encode()  # user comment
    notes = PngInfo()
    notes.add_text("Comment", secret)
    notes.add_itxt("XML:com.adobe.xmp", f"<place>{secret}</place>", zip=True)
    ways = (
        ("jpg", {"exif": exif, "comment": secret}),
        ("jpg", {"xmp": f"<place>{secret}</place>".encode()}),
        ("png", {"pnginfo": notes, "exif": exif}),
    )
    for number in range(9):
        kind, options = ways[number % 3]
        picture = Image.effect_noise((64, 64), 40 + number).convert("RGB")
        picture.save(folder / f"{number}.{kind}", **options)
        assert held((folder / f"{number}.{kind}").read_bytes(), CANARIES) == {"photo"}
    return sorted(folder.iterdir())


def add_broken_model(settings, model_dir, folder):
    """A model that cannot be loaded: the error quotes what its settings say, and that is a secret."""
    shutil.copytree(model_dir, folder)
    config = folder / "vae" / "config.json"
    blocks = {"down_block_types": [CANARIES["password of the job list"]]}
    config.write_text(json.dumps(json.loads(config.read_text()) | blocks))
    cards = settings.configs_dir / "models.yaml"
    known = yaml.safe_load(cards.read_text())
    cards.write_text(yaml.safe_dump(known | {"broken": {**known["tiny"], "path": str(folder)}}))


class Browser:
    """Asks for what a browser asks for when it opens the page, and keeps the answers."""

    def __init__(self, url, answers):
        self._http = httpx.Client(base_url=url, timeout=30)
        self._answers = answers

    def log_in(self, password):
        return self._http.post("/login", data={"username": USER, "password": password}).status_code

    def open(self):
        for path in ("/", "/config", "/gradio_api/info", "/theme.css", "/health", "/ready", "/metrics"):
            self._answers[path] = self._http.get(path).content
        config = json.loads(self._answers["/config"])
        values = {each["id"]: each["props"].get("value") for each in config["components"]}
        loads = [
            each for each in config["dependencies"] if any(event == "load" for _, event in each["targets"])
        ]
        after = {each["id"] for each in loads}
        follow = [each for each in config["dependencies"] if each["trigger_after"] in after]
        for event in [*loads, *follow]:
            self._answers[f"event {event['id']}"] = self._done(event, values)

    def _done(self, event, values):
        session = uuid.uuid4().hex
        request = {
            "data": [values.get(each) for each in event["inputs"]],
            "fn_index": event["id"],
            "session_hash": session,
        }
        self._http.post("/gradio_api/queue/join", json=request).raise_for_status()
        answer = self._http.get("/gradio_api/queue/data", params={"session_hash": session}).content
        assert b'"success":true' in answer.replace(b" ", b""), answer
        return answer


def ended(app, client, job):
    """Wait until it has ended; what the page says of it then."""
    end = time.monotonic() + PATIENCE_S
    with app.jobs.listening(job) as wait:
        while not app.jobs.get(job).finished_at:
            assert time.monotonic() < end
            wait(1.0)
    return client.predict(job, api_name="/job_status")


def work(app, client, pictures, answers):
    """From photos to images, and a job that fails; that one."""
    client.predict("Mira", "mrxq", api_name="/create_character")
    taken = client.predict("mira", [handle_file(str(path)) for path in pictures], api_name="/add_images")
    assert all(each["added"] for each in taken)
    client.predict("mira", "a portrait of [trigger]", api_name="/caption_images")
    short = {"steps": 2, "save_every": 2, "validate_every": 2, "sample_every": 2}
    lora = client.predict("mira", "tiny", "quick", short, api_name="/train")
    trained = ended(app, client, lora)
    assert trained["status"] == "succeeded", trained
    options = {"width": 64, "height": 64}
    made = client.predict("a face", "tiny", [{"lora": lora}], options, api_name="/generate")
    failing = client.predict("a face", "broken", None, options, api_name="/generate")
    done, failed = ended(app, client, made), ended(app, client, failing)
    assert (done["status"], failed["status"]) == ("succeeded", "failed"), (done, failed)
    (image,) = client.predict(made, api_name="/job_images")
    answers["image"] = Path(image).read_bytes()
    answers["calls"] = json.dumps([taken, trained, done, failed]).encode()
    return failed


def command(environment, *words, typed=None):
    done = CliRunner().invoke(command_line, words, input=typed, env=environment)
    assert done.exit_code == 0, done.output
    return done.output.encode()


def exports(app, folder, answers):
    answers["AI-Toolkit config"] = app.training.export_ai_toolkit(
        character_id="mira", base_model="tiny", preset="quick", overrides=QUICK
    ).encode()
    answers["character export"] = app.characters.export("mira", folder / "mira.zip").read_bytes()


class Page:
    """``python app.py`` with its worker; what both print goes into a file."""

    def __init__(self, environment, output):
        self.url = f"http://127.0.0.1:{environment['ISENGARD_PORT']}"
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=file, stderr=file
            )

    def wait_until_it_answers(self):
        def answers():
            with suppress(httpx.TransportError):
                return httpx.get(f"{self.url}/health").raise_for_status()

        until(answers, alive=lambda: self.process.poll() is None, every_s=0.05)

    def family(self):
        """What everybody on the machine sees of it and of its children, and what these were given."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        assert children
        lines = " ".join(
            word for each in (psutil.Process(self.process.pid), *children) for word in each.cmdline()
        )
        given = " ".join(value for each in children for value in each.environ().values())
        return lines.encode(), given

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "job list", "--requirepass", CANARIES["password of the job list"], durable=True)
    yield one
    one.kill()


@pytest.fixture
def hub():
    one = FakeHub()
    one.tokens = {CANARIES["typed token"]: []}
    yield one
    one.close()


@pytest.fixture
def settings(tmp_path, tiny_flux):
    made = tiny_settings(tmp_path, tiny_flux)
    add_broken_model(made, tiny_flux, tmp_path / "broken")
    return made


@pytest.fixture
def environment(settings, server, hub):
    """With a secret in each place that there is for one."""
    kept = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}  # noqa: TID251
    password = quote(CANARIES["password of the job list"], safe="")
    return kept | {
        "ISENGARD_DATA_DIR": str(settings.data_dir),
        "ISENGARD_CONFIGS_DIR": str(settings.configs_dir),
        "ISENGARD_DEVICE": "cpu",
        "ISENGARD_PORT": str(free_port()),
        "ISENGARD_LOG_LEVEL": "DEBUG",
        "ISENGARD_AUTH": f"{USER}:{CANARIES['password']}",
        "ISENGARD_REDIS_URL": server.url.replace("//", f"//:{password}@"),
        "ISENGARD_WEBHOOK_URL": f"http://127.0.0.1:{free_port()}/{CANARIES['webhook']}",
        "HF_TOKEN": CANARIES["token of the environment"],
        "HF_ENDPOINT": hub.url,
        "RUNPOD_API_KEY": CANARIES["key of RunPod"],
        "OMP_NUM_THREADS": "1",
    }


@pytest.mark.slow
def test_a_whole_run_leaves_no_secret_anywhere_but_in_the_tokens_own_file(tmp_path, settings, environment):
    answers = {"models token": command(environment, "models", "token", typed=CANARIES["typed token"])}
    page = Page(environment, tmp_path / "output")
    try:
        page.wait_until_it_answers()
        browser = Browser(page.url, answers)
        assert browser.log_in(CANARIES["mistyped password"]) in (400, 401)
        assert browser.log_in(CANARIES["password"]) == 200
        client = Client(
            page.url, auth=(USER, CANARIES["password"]), verbose=False, download_files=tmp_path / "got"
        )
        app = build(Settings.load(environment))
        failed = work(app, client, photos(tmp_path / "photos"), answers)
        browser.open()
        for words in (
            ["jobs", "show", failed["id"]],
            ["jobs", "show", failed["id"], "--json"],
            ["workers", "list"],
            ["logs", failed["id"]],
        ):
            answers[" ".join(words)] = command(environment, *words)
        exports(app, tmp_path, answers)
        answers["command lines"], given = page.family()
        found = held_below(settings.data_dir, CANARIES)
    finally:
        page.end()
    answers["what was printed"] = (tmp_path / "output").read_bytes()

    for folder in (settings.data_dir, tmp_path / "job list"):
        found |= held_below(folder, CANARIES)
    found |= {(name, what) for what, said in answers.items() for name in held(said, CANARIES)}
    assert found == {("typed token", TOKEN_FILE)}
    assert stat.S_IMODE((settings.data_dir / TOKEN_FILE).stat().st_mode) == 0o600
    assert [name for name in ("password", "key of RunPod") if CANARIES[name] in given] == []
    (line,) = [each for each in log_lines(settings) if each["message"] == "job failed"]
    assert line["reference"] in failed["error"]["message"]
    assert "Traceback" in line["exception"]
    assert "ValueError: *** does not exist" in line["exception"]


def log_lines(settings):
    text = "".join(path.read_text(encoding="utf-8") for path in settings.logs_dir.glob("worker*.jsonl"))
    return [json.loads(line) for line in text.splitlines()]
