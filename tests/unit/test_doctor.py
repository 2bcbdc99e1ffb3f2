import json
from collections import namedtuple

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from isengard.cli import app, doctor
from isengard.domain.job import JobKind
from isengard.domain.worker import WorkerState
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import Settings
from isengard.supervisor import lock_path

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def settings(tmp_path):
    return Settings.load({}, data_dir=tmp_path)


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """The findings by what they are about, and the exit code; torch is looked at by one test only."""
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))

    def examine(*options, data_dir=tmp_path):
        result = CliRunner().invoke(app, ["--data-dir", str(data_dir), *options, "doctor", "--json"])
        return {entry["what"]: entry for entry in json.loads(result.stdout)}, result.exit_code

    return examine


def verdict(findings, what):
    return findings[what]["verdict"]


def test_a_good_machine_is_ready_and_nothing_is_left_in_its_data_folder(examine, tmp_path):
    findings, code = examine()
    assert code == 0
    for what in (
        "python",
        "packages",
        "data folder",
        "file locks",
        "sqlite",
        "configs",
        "model demo",
        "jobs",
        "worker",
    ):
        assert verdict(findings, what) == "ok", findings[what]
    assert verdict(findings, "model sdxl") == "warning"
    assert "models download sdxl" in findings["model sdxl"]["detail"]
    assert not list(tmp_path.glob("doctor*"))


def test_the_report_is_a_table_for_a_person(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))
    result = CliRunner().invoke(app, ["--data-dir", str(tmp_path), "doctor"])
    assert "sqlite" in result.stdout
    assert result.stderr == "ready; next: python -m isengard demo\n"


def test_torch_and_the_device_are_looked_at_in_a_process_of_their_own(settings):
    torch, device = doctor._torch(settings.model_copy(update={"device": "cpu"}))
    assert torch.detail.startswith("2.13.0")
    assert (device.verdict, device.detail[:4]) == ("warning", "cpu:")


def test_a_device_that_is_not_there_is_broken(settings):
    _, device = doctor._torch(settings.model_copy(update={"device": "cuda:77"}))
    assert (device.verdict, "cuda:77" in device.detail) == ("broken", True)


def test_a_torch_that_does_not_start_is_broken(settings, monkeypatch):
    monkeypatch.setattr(doctor, "PROBE", ["-c", "import sys; sys.exit('no CUDA libraries')"])
    (finding,) = doctor._safely(doctor._torch, settings)
    assert (finding.verdict, finding.what) == ("broken", "torch")
    assert "no CUDA libraries" in finding.detail
    monkeypatch.setattr(doctor, "PROBE", ["-c", "import os; os._exit(9)"])
    (finding,) = doctor._safely(doctor._torch, settings)
    assert "exit code 9" in finding.detail


def test_a_gpu_is_fine_without_a_word_of_warning(settings, monkeypatch):
    found = {
        "torch": "2.13.0",
        "build": "13.0",
        "device": "cuda:0",
        "title": "H100",
        "memory_bytes": 80 * 10**9,
    }
    monkeypatch.setattr(doctor, "PROBE", ["-c", f"print({json.dumps(found)!r})"])
    _, device = doctor._torch(settings)
    assert (device.verdict, device.detail) == ("ok", "cuda:0: H100, 80.0 GB")


def test_a_package_that_is_missing_or_too_old_is_named(settings, monkeypatch, tmp_path):
    (tmp_path / "list.txt").write_text("# a comment\nno-such-package-xyz>=1\npydantic>=99\n")
    monkeypatch.setattr(doctor, "OURS", tmp_path / "list.txt")
    packages = list(doctor._packages(settings))[1]
    assert packages.verdict == "broken"
    assert "no-such-package-xyz is not installed, pydantic>=99 is needed, 2." in packages.detail
    assert "pip install -r requirements.txt" in packages.detail


def test_a_data_folder_that_cannot_be_written_is_broken_with_the_way_out(examine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    findings, code = examine(data_dir=tmp_path / "file")
    assert code == 1
    assert "--data-dir" in findings["data folder"]["detail"]


@pytest.mark.parametrize(("free", "said"), [(10**7, "broken"), (10**9, "warning"), (10**11, "ok")])
def test_little_space_is_a_warning_and_none_is_broken(settings, monkeypatch, free, said):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(0, 0, free))
    findings = {finding.what: finding for finding in doctor._data_folder(settings)}
    assert findings["disk space"].verdict == said


def test_a_wrong_config_file_is_broken_and_named(examine, tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "models.yaml").write_text("a: [")
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(tmp_path / "configs"))
    findings, code = examine()
    assert code == 1
    assert "models.yaml is not valid YAML" in findings["configs"]["detail"]


def test_an_application_that_cannot_start_is_broken(tmp_path, monkeypatch, examine):
    def fail(context):
        raise OSError("no database")

    monkeypatch.setattr(doctor, "application", fail)
    findings, code = examine()
    assert (code, findings["application"]["detail"]) == (1, "no database")


def test_jobs_that_wait_without_a_worker_are_a_warning_with_the_way_out(examine, settings):
    SqliteQueue(settings.jobs_db).enqueue(JobKind.GENERATE_IMAGES, {})
    findings, _ = examine()
    assert findings["jobs"]["detail"] == "0 running, 1 waiting"
    assert "python -m isengard worker" in findings["worker"]["detail"]


def test_a_running_worker_is_seen(examine, settings):
    path = lock_path(settings)
    path.parent.mkdir(parents=True)
    with FileLock(path):
        findings, _ = examine("--worker", "none")
    assert findings["worker"]["detail"] == "running for device auto"


def test_a_worker_elsewhere_is_seen(examine, settings):
    SqliteQueue(settings.jobs_db).announce(WorkerState(name="pod/cuda:0"))
    findings, _ = examine("--worker", "none")
    assert findings["worker"]["detail"] == "none is running here, and elsewhere: pod/cuda:0"
