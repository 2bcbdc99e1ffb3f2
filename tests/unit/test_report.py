"""The zip that goes with a report of a problem, and what must not be in it."""

import io
import json
import sqlite3
import zipfile
from contextlib import closing

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from isengard import logs
from isengard.cli import app as cli
from isengard.domain.job import JobError, JobKind
from isengard.errors import NotFound
from isengard.services import report
from isengard.services.report import Redaction, ReportService
from isengard.settings import SECRET, Settings
from isengard.wiring import build, reporting

CANARIES = {
    "auth": "anna:tower-of-glass",
    "redis_url": "redis://user:p%40ss-word@queue:6379/0",
    "hub_token": "hf_canaryCANARYcanary",
}


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, device="cpu")


@pytest.fixture
def jobs(settings):
    return build(settings).jobs


@pytest.fixture
def queue(settings):
    return build(settings).queue


def said(command, *, said):
    said("")
    said(f"asked {command[-1]}")
    return 1


@pytest.fixture
def service(settings, jobs):
    return ReportService(
        settings=settings, jobs=jobs, secrets=set, run=said, doctor=["doctor"], clock=lambda: 1_800_000_000.0
    )


def opened(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_report_has_all_that_is_needed_to_find_out(service, queue, settings):
    job = queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    settings.logs_dir.mkdir()
    (settings.logs_dir / "worker.jsonl").write_text(json.dumps({"message": "x", "job_id": job.id}) + "\n")
    (settings.logs_dir / "worker-output.log").write_text("Segmentation fault, token=abcdef123\n")
    found = opened(service.content())
    assert list(found) == [
        "README.txt",
        "about.json",
        "settings.json",
        "jobs.json",
        "logs/worker.jsonl",
        "logs/worker-output.log",
        "doctor.txt",
    ]
    assert "made on 2027-01-15 08:00 UTC.\n" in found["README.txt"]
    assert json.loads(found["about.json"])["packages"]["gradio"]
    assert json.loads(found["settings.json"])["device"] == "cpu"
    (told,) = json.loads(found["jobs.json"])
    assert (told["payload"], [event["kind"] for event in told["history"]]) == ({"name": "Nova"}, ["queued"])
    assert found["doctor.txt"] == "asked doctor"
    assert found["logs/worker-output.log"] == "Segmentation fault, token=***\n"


def test_a_report_about_a_job_has_that_job_and_all_its_lines(service, queue, settings, monkeypatch):
    monkeypatch.setattr(report, "TAIL_BYTES", 10)
    one, _ = (queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(2))
    settings.logs_dir.mkdir()
    for name in ("worker.jsonl", "worker.jsonl.20261123T120000.000000-7"):
        (settings.logs_dir / name).write_text(json.dumps({"message": name, "job_id": one.id}) + "\n")
    found = opened(service.content(one.id))
    assert [told["id"] for told in json.loads(found["jobs.json"])] == [one.id]
    assert len(found[f"logs/job-{one.id}.jsonl"].splitlines()) == 2
    assert f"about job {one.id}" in found["README.txt"]


def test_the_end_of_a_log_goes_on_into_the_file_before(service, settings, monkeypatch):
    monkeypatch.setattr(report, "TAIL_BYTES", 30)
    settings.logs_dir.mkdir()
    (settings.logs_dir / "page.jsonl.20261123T120000.000000-7").write_text(
        "a long line of old\nlast of old\n"
    )
    (settings.logs_dir / "page.jsonl").write_text("first of new\n")
    assert opened(service.content())["logs/page.jsonl"] == "last of old\nfirst of new\n"


def test_a_job_that_is_not_there_is_said_at_once(service):
    with pytest.raises(NotFound, match="nobody"):
        service.content("nobody")


def test_a_doctor_that_cannot_start_is_what_the_report_says(settings, jobs):
    def absent(command, *, said):
        raise FileNotFoundError("no python")

    made = ReportService(settings=settings, jobs=jobs, secrets=set, run=absent, doctor=["doctor"])
    assert opened(made.content())["doctor.txt"] == "the doctor cannot be started: no python"


def test_a_job_list_that_breaks_later_is_what_the_report_says(service, settings):
    with closing(sqlite3.connect(settings.jobs_db)) as connection:
        connection.execute("DROP TABLE jobs")
    assert "no such table" in json.loads(opened(service.content())["jobs.json"])["error"]


def test_secrets_are_taken_out_wherever_their_value_stands(tmp_path):
    given = {name: SecretStr(value) for name, value in CANARIES.items()}
    settings = Settings(data_dir=tmp_path, **given)
    queue = build(Settings(data_dir=tmp_path)).queue
    job = queue.enqueue(JobKind.GENERATE_IMAGES, {"prompt": 'glass "tower-of-glass" p@ss-word'})
    queue.claim("w", lease_s=60)
    queue.fail(queue.get(job.id), JobError(code="internal", message="hf_typedTYPEDtyped1 was refused"))
    settings.logs_dir.mkdir()
    (tmp_path / "hub-token").write_text("typed-here-98765\n")
    (settings.logs_dir / "page.jsonl").write_text(
        '{"message": "p%40ss-word typed-here-98765 env\\"secret"}\n'
    )
    made = ReportService(
        settings=settings,
        jobs=build(Settings(data_dir=tmp_path)).jobs,
        secrets=lambda: settings.secret_values({"MY_API_KEY": 'env"secret'}) | {"typed-here-98765"},
        run=said,
        doctor=["the doctor saw anna:tower-of-glass"],
    )
    everything = "\n".join(opened(made.content(job.id)).values())
    for part in (
        "tower-of-glass",
        "p@ss-word",
        "p%40ss-word",
        "canary",
        "typed-here",
        "TYPED",
        'env\\"secret',
    ):
        assert part not in everything
    assert logs.HIDDEN in everything
    told = json.loads(opened(made.content())["settings.json"])
    assert {told[name] for name in CANARIES} == {"set"}


def test_the_services_report_knows_the_token_that_was_typed(tmp_path, monkeypatch):
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "hub-token").write_text("typed-here-98765\n")
    made = reporting(settings, jobs=None)
    assert "typed-here-98765" in made._secrets()
    monkeypatch.setattr(made, "_run", said)
    assert "cannot be opened" in opened(made.content())["jobs.json"]


def test_without_a_secret_nothing_is_replaced():
    assert Redaction(set())("as it is") == "as it is"


def test_each_secret_setting_is_only_said_to_be_set(tmp_path):
    told = Settings(data_dir=tmp_path).public()
    assert {name: told[name] for name in SECRET} == dict.fromkeys(SECRET)


def test_what_is_short_is_no_secret_to_replace_everywhere(tmp_path):
    settings = Settings(data_dir=tmp_path, auth=SecretStr("me:abc"))
    assert settings.secret_values({"SOME_TOKEN": "a", "PATH": "/usr/bin:/bin"}) == {"me:abc"}


# The command


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setattr("isengard.store.child.run", lambda *_, **__: 0)
    return lambda *words: CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "report", *words])


def test_the_command_writes_the_zip_and_names_it(call, tmp_path):
    target = tmp_path / "here.zip"
    assert call("--output", str(target)).stdout == f"{target}\n"
    assert "README.txt" in opened(target.read_bytes())


def test_the_command_works_also_when_the_job_list_is_damaged(call, tmp_path):
    (tmp_path / "jobs.db").write_bytes(b"no database" * 1000)
    result = call("--output", str(tmp_path / "here.zip"))
    assert result.exit_code == 0
    assert "is damaged" in result.stderr
    assert "cannot be opened" in opened((tmp_path / "here.zip").read_bytes())["jobs.json"]
