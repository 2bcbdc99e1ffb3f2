import json
import logging
import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from isengard import __version__
from isengard.cli import BUG, Guarded, app, main
from isengard.errors import NotFound
from isengard.settings import ROOT, Settings, WorkerMode

log = logging.getLogger("isengard.test")


@pytest.fixture
def run(tmp_path):
    """Run a command line on an empty data folder."""

    def run(*arguments, using=app):
        return CliRunner().invoke(using, ["--data-dir", str(tmp_path), *arguments])

    return run


@pytest.fixture
def trying():
    """The same frame around commands that end in every way."""
    trying = typer.Typer(cls=Guarded)
    trying.callback()(main)

    @trying.command()
    def expected(context: typer.Context):
        raise NotFound("there is no character 'anna' [trigger]")

    @trying.command()
    def bug(context: typer.Context):
        raise ValueError("token=abcdef is wrong")

    @trying.command()
    def interrupted(context: typer.Context):
        raise KeyboardInterrupt

    @trying.command()
    def settings(context: typer.Context):
        log.info("routine", extra={"step": 1})
        typer.echo(context.obj.model_dump_json())

    @trying.command()
    def worker(context: typer.Context):
        log.info("worker ready")

    return trying


def logged(tmp_path, name="cli"):
    return [json.loads(line) for line in (tmp_path / "logs" / f"{name}.jsonl").read_text().splitlines()]


def test_an_expected_failure_ends_with_its_text_and_code_1(run, trying, tmp_path):
    result = run("expected", using=trying)
    assert (result.exit_code, result.output) == (1, "error: there is no character 'anna' [trigger]\n")
    assert logged(tmp_path)[0]["code"] == "not_found"


def test_a_bug_ends_with_one_line_and_code_70_and_its_traceback_is_in_the_log(run, trying, tmp_path):
    result = run("bug", using=trying)
    assert result.exit_code == BUG
    assert result.output.startswith("error: this is a bug in Isengard: ValueError: token=*** is wrong; ")
    assert f"{tmp_path}/logs/cli.jsonl" in result.output
    assert "Traceback" not in result.output
    (line,) = logged(tmp_path)
    assert line["exception"].startswith("Traceback")
    assert "abcdef" not in line["exception"].replace('"token=abcdef is wrong"', "")


def test_ctrl_c_ends_with_130(run, trying):
    assert run("interrupted", using=trying).exit_code == 130


@pytest.mark.parametrize("arguments", [["--nope"], ["nope"], ["doctor", "--nope"]])
def test_wrong_usage_ends_with_2(run, arguments):
    assert run(*arguments).exit_code == 2


def test_a_wrong_setting_ends_with_1_and_names_its_variable(run):
    result = run("--device", "gpu", "doctor")
    assert result.exit_code == 1
    assert "ISENGARD_DEVICE" in result.output


def test_a_bug_before_the_settings_are_read_is_still_one_line(trying):
    @trying.callback()
    def broken():
        raise ValueError("early")

    result = CliRunner().invoke(trying, ["settings"])
    assert (result.exit_code, result.output) == (BUG, "error: this is a bug in Isengard: ValueError: early\n")


def test_options_become_settings_for_the_command(run, trying, tmp_path):
    result = run("--worker", "thread", "--device", "cpu", "--log-level", "DEBUG", "settings", using=trying)
    settings = Settings.model_validate_json(result.stdout)
    assert settings.data_dir == tmp_path
    assert (settings.worker, settings.device, settings.log_level) == (WorkerMode.THREAD, "cpu", "DEBUG")


def test_every_line_of_a_command_has_one_correlation_id(run, trying, tmp_path):
    run("settings", using=trying)
    run("settings", using=trying)
    first, second = logged(tmp_path)
    assert first["correlation_id"] != second["correlation_id"]


def test_a_person_sees_no_routine_lines_and_a_script_can_have_them_as_json(run, trying):
    assert run("settings", using=trying).stderr == ""
    (line,) = run("--log-json", "settings", using=trying).stderr.splitlines()
    assert json.loads(line)["message"] == "routine"


def test_a_worker_logs_to_a_file_of_its_own_and_to_its_terminal(run, trying, tmp_path):
    result = run("worker", using=trying)
    assert "worker ready" in result.stderr
    assert logged(tmp_path, "worker")[0]["message"] == "worker ready"


def test_the_version_is_said():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"isengard {__version__}\n")


def test_help_names_every_command_and_the_first_steps():
    said = subprocess.run(
        [sys.executable, "-m", "isengard", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    for command in ("characters", "jobs", "worker", "models", "doctor"):
        assert f"│ {command} " in said
    assert "python -m isengard doctor" in said


def test_models_are_listed_and_one_is_explained(run):
    table = run("models")
    assert "flux1-dev" in table.stdout
    assert "FLUX.1 [dev]" in table.stdout
    one = run("models", "list", "sdxl")
    assert re.search(r"sdxl   missing  yes     yes     -/1\d\.\d ", one.stdout)
    assert "python -m isengard models download sdxl" in one.stdout
    assert "demo-base" in run("models", "list", "demo").stdout


def test_models_are_json_for_a_script(run):
    (card,) = json.loads(run("models", "list", "demo", "--json").stdout)
    assert (card["name"], card["state"]) == ("demo", "ready")


def test_an_unknown_model_is_answered_with_the_known_ones(run):
    result = run("models", "list", "sdx")
    assert result.exit_code == 1
    assert "known: demo, flux2-klein-base-4b" in result.stderr


def test_a_terminal_that_lacks_a_letter_still_gets_an_answer(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "isengard", "--data-dir", str(tmp_path / "é"), "models", "list", "sdxl"],
        capture_output=True,
        cwd=ROOT,
        env={"PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert rb"\xe9/models/sdxl" in done.stdout
