"""``ai-toolkit install``, ``ai-toolkit status``, and what the doctor says of it."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from isengard.cli import ai_toolkit, app, doctor
from isengard.services.ai_toolkit import AiToolkitService
from isengard.settings import Settings
from isengard.store.ai_toolkit import Checkout, Stage
from isengard.wiring import build
from tests.checkouts import whole


class Ready(Checkout):
    """Reports like a real one, and is whole."""

    def install(self, report):
        report(Stage.SOURCE, None, "")
        report(Stage.SOURCE, 0.5, "Receiving objects: [50%]")
        report(Stage.PACKAGES, None, "Collecting einops")
        return self.state()


def ready(folder, **options):
    made = whole(folder, **options)
    made.__class__ = Ready
    return made


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Let the commands use this checkout."""
    application = build(Settings(data_dir=tmp_path / "data"))

    def given(checkout):
        changed = replace(application, ai_toolkit=AiToolkitService(checkout=checkout))
        for module in (ai_toolkit, doctor):
            monkeypatch.setattr(module, "application", lambda context: changed)
        return changed

    return given


@pytest.fixture
def call(tmp_path):
    return lambda *words: CliRunner().invoke(app, ["--data-dir", str(tmp_path / "data"), *words])


def test_install_says_where_it_is_and_which_commit(call, given, tmp_path):
    commit = given(ready(tmp_path / "a")).ai_toolkit.state().commit
    result = call("ai-toolkit", "install")
    assert result.exit_code == 0
    assert result.stdout == f"AI-Toolkit in {tmp_path / 'a'}, commit {commit[:10]} (the tested one)\n"
    assert "ai-toolkit status" in result.stderr


def test_install_into_a_given_checkout_of_another_commit_says_so(call, given, tmp_path):
    given(ready(tmp_path / "a", owned=False, commit="f" * 40))
    result = call("ai-toolkit", "install")
    assert "(tested is ffffffffff)" in result.stdout
    assert f"git -C {tmp_path / 'a'} checkout" in result.stderr


def test_a_failed_installation_ends_with_1_and_its_reason(call, given, tmp_path):
    given(Checkout(tmp_path / "nothing", owned=False, lock=tmp_path / "lock"))
    result = call("ai-toolkit", "install")
    assert (result.exit_code, "holds no AI-Toolkit" in result.stderr) == (1, True)


def test_status_says_what_is_here_and_what_is_missing(call, tmp_path, given):
    assert "AI-Toolkit is not installed; get it with" in call("ai-toolkit", "status").stdout
    given(whole(tmp_path / "a", commit="f" * 40))
    said = call("ai-toolkit", "status").stdout
    assert "(tested is ffffffffff)" in said
    assert "pydantic>=2" in said
    assert "Isengard is made for ffffffffff" in said


def test_status_is_json_for_a_script(call, tmp_path, given):
    commit = given(whole(tmp_path / "a")).ai_toolkit.state().commit
    state = json.loads(call("ai-toolkit", "status", "--json").stdout)
    assert (state["commit"], state["pinned"], state["is_pinned"], state["usable"]) == (
        commit,
        commit,
        True,
        True,
    )
    assert (state["missing"], state["reason"]) == ([], "")
    assert state["packages"][0]["name"] == "pydantic"


# The doctor


def examine(application):
    return [(found.what, str(found.verdict), found.detail) for found in doctor._ai_toolkit(application)]


def test_the_doctor_takes_its_absence_for_fine(given, tmp_path):
    app = given(Checkout(tmp_path / "nothing", owned=True, lock=tmp_path / "lock"))
    way = "not installed; get it with: python -m isengard ai-toolkit install"
    assert examine(app) == [("ai-toolkit", "ok", way)]


def test_the_doctor_warns_of_a_variable_that_names_no_checkout(given, tmp_path):
    app = given(Checkout(tmp_path / "nothing", owned=False, lock=tmp_path / "lock"))
    ((_, verdict, detail),) = examine(app)
    assert (verdict, "ISENGARD_AI_TOOLKIT" in detail) == ("warning", True)


def test_the_doctor_says_commit_and_versions(given, tmp_path):
    (_, fine, commit), (_, good, versions) = examine(given(whole(tmp_path / "a")))
    assert (fine, good, versions.startswith("pydantic 2.")) == ("ok", "ok", True)
    assert commit.endswith("the tested one")


def test_the_doctor_warns_of_another_commit_and_of_missing_packages(given, tmp_path):
    (tmp_path / "list.txt").write_text("no-such-package-xyz\n")
    app = given(whole(tmp_path / "a", commit="f" * 40, requirements=tmp_path / "list.txt"))
    (_, first, commit), (_, second, missing) = examine(app)
    assert (first, second) == ("warning", "warning")
    assert commit.endswith("tested is ffffffffff")
    assert "no-such-package-xyz is not installed" in missing


def smoke(application):
    ((found),) = doctor._safely(doctor._smoke, application)
    return str(found.verdict), found.detail


def test_the_smoke_training_is_a_process_that_ends_well_or_says_its_last_line(given, tmp_path, monkeypatch):
    app = given(whole(tmp_path / "a"))
    monkeypatch.setattr(doctor, "SMOKE", ["-c", "pass"])
    assert smoke(app) == ("ok", "two steps on a tiny model")
    monkeypatch.setattr(
        doctor, "SMOKE", ["-c", "import sys; print('x', file=sys.stderr); sys.exit('no loss')"]
    )
    assert smoke(app) == ("broken", "AI-Toolkit does not train: no loss")
    monkeypatch.setattr(doctor, "SMOKE", ["-c", "import os; os._exit(9)"])
    assert smoke(app) == ("broken", "AI-Toolkit does not train: exit code 9")


def test_a_smoke_training_that_hangs_is_broken(given, tmp_path, monkeypatch):
    app = given(whole(tmp_path / "a"))
    monkeypatch.setattr(doctor, "SMOKE", ["-c", "import time; time.sleep(60)"])
    monkeypatch.setattr(doctor, "SMOKE_TIMEOUT_S", 0.2)
    verdict, detail = smoke(app)
    assert (verdict, "timed out" in detail) == ("broken", True)


def test_without_ai_toolkit_no_smoke_training_is_tried(given, tmp_path):
    app = given(Checkout(tmp_path / "nothing", owned=True, lock=tmp_path / "lock"))
    verdict, detail = smoke(app)
    assert (verdict, detail.startswith("not tried: AI-Toolkit is not installed")) == ("warning", True)


def test_the_smoke_training_is_tried_on_request_only(call, given, tmp_path, monkeypatch):
    given(whole(tmp_path / "a"))
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))
    monkeypatch.setattr(doctor, "SMOKE", ["-c", "pass"])
    assert "ai-toolkit smoke" not in call("doctor", "--json").stdout
    assert "ai-toolkit smoke" in call("doctor", "--smoke", "--json").stdout
