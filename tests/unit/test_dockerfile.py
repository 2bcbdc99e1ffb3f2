"""The Dockerfile, as far as it goes without Docker: all that it names is there and fits."""

import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from typer.testing import CliRunner

from isengard.cli import app
from isengard.settings import ROOT, Settings, variable
from isengard.store.ai_toolkit import COMMIT, REPOSITORY
from tests import image

#: Of Python's own, of Ubuntu's base image, and of the packages that are installed.
PROGRAMS = {
    "rm": "", "ln": "", "install": "", "userdel": "", "useradd": "", "apt-get": "",
    "git": "git", "tini": "tini", "python3.12": "python3.12-venv", "python": "python3.12-venv", "pip": "python3.12-venv",
}  # fmt: skip


def apt_packages():
    (command,) = [each for each in image.commands() if each[:2] == ["apt-get", "install"]]
    return [word for word in command[2:] if not word.startswith("-")]


def test_all_that_is_copied_is_there_and_not_ignored():
    sent = image.sent()
    for line in image.all_of("COPY"):
        *sources, _ = line.split()
        assert all(source == "." or Path(source) in sent for source in sources)


def test_all_files_of_the_program_get_into_the_image():
    listed = subprocess.run(
        ["git", "ls-files", "app.py", "isengard", "tabs", "configs"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert {Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()} <= image.sent()


def test_nothing_else_gets_into_the_image(tmp_path):
    for name in (
        ".env", ".git/config", ".venv/pyvenv.cfg", "app.py.bak", "data/hub-token", "data/jobs.db", "docs/notes.md",
        "hub-token", "isengard/__pycache__/errors.pyc", "scripts/check.sh", "secrets.json", "tests/image.py",
        "isengard/errors.py",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert image.sent(tmp_path) == {Path("isengard/errors.py")}


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-ai-toolkit.txt"])
def test_a_list_of_packages_can_be_read_and_is_copied_before_it_is_used(name):
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        assert not line or line.startswith("#") or Requirement(line)
    steps = image.instructions()
    copied = steps.index(("COPY", f"{name} ./"))
    used = next(place for place, (kind, rest) in enumerate(steps) if kind == "RUN" and f"-r {name}" in rest)
    assert copied < used < steps.index(("COPY", ". ."))


def test_one_python_is_installed_and_it_is_one_that_isengard_runs_on():
    named = set(re.findall(r"python(3\.\d+)", image.DOCKERFILE.read_text(encoding="utf-8")))
    (version,) = named
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert version in SpecifierSet(re.findall(r'requires-python = "(.*)"', project)[0])
    assert {f"python{version}-dev", f"python{version}-venv", "g++"} <= set(apt_packages())


def test_each_program_that_is_run_is_of_the_base_image_or_of_a_package_that_is_installed():
    entry = re.findall(r"\w+", image.one("ENTRYPOINT"))[0]
    assert {command[0] for command in image.commands()} | {entry} <= set(PROGRAMS)
    assert {PROGRAMS[entry], *(PROGRAMS[command[0]] for command in image.commands())} - {""} <= set(
        apt_packages()
    )


def test_each_command_of_isengard_that_is_named_exists():
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("Dockerfile", "compose.yaml")]
    named = [
        words
        for text in texts
        for words in re.findall(r"python,? -m,? isengard,? ([^&\]\\\n]+)", text.replace("\\\n", ""))
    ]
    assert len(named) >= 3
    for words in named:
        done = CliRunner().invoke(app, [*words.replace(",", "").split(), "--help"])
        assert done.exit_code == 0, words


def test_the_commit_of_ai_toolkit_is_the_tested_one():
    assert image.one("ARG") == f"AI_TOOLKIT_COMMIT={COMMIT}"
    (fetched,) = [command for command in image.commands() if "fetch" in command]
    assert fetched[-2:] == [REPOSITORY, "$AI_TOOLKIT_COMMIT"]
    assert image.variables()["ISENGARD_AI_TOOLKIT"] == fetched[2]


def test_each_variable_is_a_setting_with_a_fitting_value():
    given = image.variables()
    assert set(given) <= {variable(name) for name in Settings.model_fields} | {"PATH", "HOME", "HF_HOME"}
    settings = Settings.load(given)
    assert (settings.host, settings.port) == ("0.0.0.0", int(image.one("EXPOSE")))  # noqa: S104


def test_what_starts_the_container_is_in_the_image():
    assert image.one("ENTRYPOINT").endswith(' "/app/scripts/container.sh"]')
    assert image.one("WORKDIR") == "/app"
    assert image.one("CMD") == '["python", "app.py"]'
    assert {Path("scripts/container.sh"), Path("app.py")} <= image.sent()


@contextmanager
def answering(status):
    """A page that answers so at /health."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_asks_the_page_at_its_port(status, code):
    with answering(status) as port:
        done = subprocess.run(
            [sys.executable, *image.health_check()],
            env={"ISENGARD_PORT": str(port)},
            capture_output=True,
            check=False,
        )
    assert done.returncode == code


def test_the_health_check_knows_the_port_where_none_is_set():
    assert f"or {image.one('EXPOSE')}" in image.health_check()[-1]
