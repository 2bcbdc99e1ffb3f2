"""compose.yaml, as far as it goes without Docker: what its services start is started as plain processes.

They run from a folder that holds what the image does.
"""

import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from gradio_client import Client

from isengard.settings import ROOT, Settings, variable
from tests import image
from tests.redis_servers import PROGRAMS, free_port
from tests.waiting import until

FILE = ROOT / "compose.yaml"
GIVEN = {"REDIS_PASSWORD": "abc123", "ISENGARD_AUTH": "me:secret"}
OURS = ("app", "worker", "worker-cpu")
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?}")


class Missing(Exception):
    """A variable that the file asks for."""


def filled(text, given):
    """The text with variables as compose puts them in."""

    def value(match):
        name, what, more = match.groups()
        if given.get(name):
            return given[name]
        if what == "?":
            raise Missing(more)
        return more or ""

    return VARIABLE.sub(value, text)


def composed(given=GIVEN):
    return yaml.safe_load(filled(FILE.read_text(encoding="utf-8"), given))


@pytest.mark.parametrize("name", GIVEN)
def test_what_has_no_safe_default_is_asked_for_in_words(name):
    given = {key: value for key, value in GIVEN.items() if key != name}
    with pytest.raises(Missing, match=rf"write {name}=.* into the file \.env"):
        composed(given)


@pytest.mark.parametrize("service", OURS)
def test_each_variable_of_a_service_is_a_setting_with_a_fitting_value(service):
    environment = {name: str(value) for name, value in composed()["services"][service]["environment"].items()}
    assert set(environment) <= {variable(name) for name in Settings.model_fields} | {"GOMP_SPINCOUNT"}
    assert Settings.load(environment).data_dir == Path("/data")


def test_only_the_page_can_be_reached_from_outside_and_it_asks_for_a_login():
    services = composed()["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["app"]
    assert "ISENGARD_AUTH" in services["app"]["environment"]


def test_page_and_workers_share_what_they_keep():
    composition = composed()
    for name in OURS:
        assert composition["services"][name]["volumes"] == ["data:/data"]
    assert set(composition["volumes"]) == {"data", "redis"}


def test_the_passwords_stay_out_of_the_repository():
    assert "/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_the_images_health_check_is_for_the_page_only():
    services = composed()["services"]
    assert {name for name in OURS if services[name].get("healthcheck") == {"disable": True}} == {
        "worker",
        "worker-cpu",
    }
    assert "healthcheck" not in services["app"]


class Stack:
    """The services' commands, files and environments, with the paths and ports of a container put elsewhere."""

    def __init__(self, folder):
        self._folder, self._composition = folder, composed()
        self._app = folder / "app"
        image.copy_to(self._app)
        self._places = {
            "redis:6379": f"127.0.0.1:{free_port()}",
            "0.0.0.0": "127.0.0.1",  # noqa: S104  # as in the file
            "7860": str(free_port()),
            "/data": str(folder),
            "/etc/isengard.conf": str(folder / "isengard.conf"),
        }
        self.url = f"http://127.0.0.1:{self._places['7860']}"
        self._started = []

    def here(self, text):
        for there, here in self._places.items():
            text = str(text).replace(there, here)
        return text

    def start_redis(self):
        service, content = (
            self._composition["services"]["redis"],
            self._composition["configs"]["redis"]["content"],
        )
        port = self._places["redis:6379"].partition(":")[2]
        Path(self._places[service["configs"][0]["target"]]).write_text(f"port {port}\n{self.here(content)}")
        self._start([PROGRAMS["valkey"], *map(self.here, service["command"][1:])], {})

    def start(self, name):
        service = self._composition["services"][name]
        environment = {key: self.here(value) for key, value in service["environment"].items()}
        return self._start(self.python(service["command"]), environment)

    def python(self, command):
        assert command[0] == "python"
        return [sys.executable, *map(self.here, command[1:])]

    def is_ready(self):
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/ready").status_code == 200

    def is_healthy(self):
        command, port = [sys.executable, *image.health_check()], self._places["7860"]
        return subprocess.run(command, env={"ISENGARD_PORT": port}, check=False).returncode == 0

    def _start(self, command, environment):
        output = (self._folder / "output").open("ab")
        inherited = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
        with output:
            process = subprocess.Popen(
                command, cwd=self._app, env={**inherited, **environment}, stdout=output, stderr=output
            )
        self._started.append(process)
        return process

    def end(self):
        for process in self._started:
            process.kill()
            process.wait()


@pytest.fixture
def stack(tmp_path):
    one = Stack(tmp_path)
    yield one
    one.end()


@pytest.mark.slow
def test_what_compose_starts_makes_an_image_for_one_who_logs_in(stack):
    stack.start_redis()
    app, worker = stack.start("app"), stack.start("worker-cpu")
    until(stack.is_ready, every_s=0.1)
    assert stack.is_healthy()
    page = Client(stack.url, auth=tuple(GIVEN["ISENGARD_AUTH"].split(":")), verbose=False)
    options = {"num_inference_steps": 1}
    job = page.predict("a face", "demo", None, options, api_name="/generate")
    ended = until(
        lambda: (now := page.predict(job, api_name="/job_status"))["finished_at"] and now, every_s=0.1
    )
    assert (ended["status"], ended["error"]) == ("succeeded", None)
    for process in (app, worker):
        process.terminate()
        assert process.wait(timeout=20) == 0
