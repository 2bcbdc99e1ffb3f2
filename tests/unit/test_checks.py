"""What `/ready` looks at, and what is told of the disk."""

import errno
import json
import shutil
import sqlite3
import threading
from contextlib import closing

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from isengard.domain.worker import WorkerState
from isengard.errors import QueueUnavailable
from isengard.services import checks
from isengard.services.checks import LOOK_EVERY_S, Checks
from isengard.services.footprint import LOOK_EVERY_S as SIZES_EVERY_S
from isengard.services.footprint import Footprint
from isengard.services.machine import Machine
from isengard.settings import Settings
from isengard.wiring import build
from tabs.http.health import routes


@pytest.fixture
def app(tmp_path):
    made = build(Settings(data_dir=tmp_path / "data", device="cpu"))
    made.queue.announce(WorkerState(name="pod/cpu"))
    return made


@pytest.fixture
def clock():
    return [100.0]


@pytest.fixture
def look(app, clock):
    """The failed checks with their reasons; ``machine`` is asked for its GPU."""

    def look(machine=None):
        made = Checks(
            folder=app.settings.data_dir,
            jobs=app.jobs,
            workers=app.workers,
            volume=app.volume,
            machine=machine,
            clock=lambda: clock[0],
        )
        return {check.name: check.reason for check in made.look() if not check.ok}

    return look


def test_all_is_well_with_a_worker_and_room_on_the_disk(look):
    assert look() == {}


def test_without_a_living_worker_it_is_not_well(look, app):
    app.queue.leave("pod/cpu")
    assert look() == {"worker": "no worker is alive"}


def test_a_job_list_that_is_locked_or_read_only_is_not_well(look, app, monkeypatch):
    def refuse(_):
        raise QueueUnavailable(f"the job list {app.settings.jobs_db} cannot be used")

    monkeypatch.setattr(type(app.jobs), "check_writable", refuse)
    assert look() == {"jobs": "the job list cannot be written just now (queue_unavailable)"}


def test_a_job_list_that_cannot_be_read_tells_of_no_worker(look, app):
    with closing(sqlite3.connect(app.settings.jobs_db)) as connection:
        connection.execute("DROP TABLE workers")
    assert look() == {"worker": "the job list does not tell whether a worker is alive"}


def test_a_file_that_is_read_only_cannot_be_written(app, monkeypatch):
    """As root every file can be written, so SQLite is told."""
    before = app.settings.jobs_db.read_bytes()
    real = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: real(f"file:{path}?mode=ro", uri=True, **options)
    )
    with pytest.raises(QueueUnavailable, match="is read-only"):
        app.jobs.check_writable()
    assert app.settings.jobs_db.read_bytes() == before


def test_a_full_disk_is_not_well_and_neither_is_none(look, app, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=checks.FREE_BYTES_NEEDED - 1))
    assert look() == {"disk": "the disk is full"}

    def gone(_):
        raise OSError(errno.ENOENT, "no such folder")

    monkeypatch.setattr(shutil, "disk_usage", gone)
    assert look() == {"disk": "the disk cannot be looked at"}


@pytest.mark.parametrize(("device", "well"), [("cuda:0", False), ("auto", False), ("cpu", True)])
def test_a_gpu_that_was_asked_for_or_has_a_driver_must_be_visible(look, tmp_path, monkeypatch, device, well):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    failed = look(Machine(device=device))
    assert failed == ({} if well else {"gpu": "a GPU is expected and none is visible"})


def test_a_machine_without_a_driver_needs_no_gpu(look, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look(Machine(device="auto")) == {}


def test_an_answer_holds_for_a_moment(app, clock):
    made = Checks(
        folder=app.settings.data_dir, jobs=app.jobs, workers=app.workers, volume=app.volume, machine=None,
        clock=lambda: clock[0],
    )  # fmt: skip
    first = made.look()
    app.queue.leave("pod/cpu")
    assert made.look() is first
    clock[0] += LOOK_EVERY_S
    assert not all(check.ok for check in made.look())


def test_who_asks_while_everything_waits_is_told_so(app, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def hang(_):
        begun.set()
        go_on.wait(10)

    monkeypatch.setattr(type(app.jobs), "check_writable", hang)
    monkeypatch.setattr(checks, "PATIENCE_S", 0.01)
    first = threading.Thread(target=app.checks.look)
    first.start()
    begun.wait(10)
    (only,) = app.checks.look()
    go_on.set()
    first.join()
    assert (only.ok, only.reason) == (False, "the job list or the disk makes everything wait")


def test_a_change_for_the_worse_and_the_better_is_logged_once(app, clock, caplog):
    caplog.set_level("INFO", "isengard.services.checks")
    made = Checks(
        folder=app.settings.data_dir, jobs=app.jobs, workers=app.workers, volume=app.volume, machine=None,
        clock=lambda: clock[0],
    )  # fmt: skip
    app.queue.leave("pod/cpu")
    for _ in range(3):
        made.look()
        clock[0] += LOOK_EVERY_S
    app.queue.announce(WorkerState(name="pod/cpu"))
    made.look()
    assert [record.message for record in caplog.records] == ["check failed", "check passes again"]


def test_ready_tells_what_is_wrong_and_nothing_of_the_machine(app, tmp_path, monkeypatch):
    client = TestClient(Starlette(routes=routes(app)))
    answer = client.get("/ready")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")
    assert set(answer.json()["checks"]) == {"jobs", "worker", "data", "disk", "gpu"}
    app.settings.jobs_db.write_bytes(b"no database" * 1000)
    monkeypatch.setattr(checks, "LOOK_EVERY_S", 0)
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["jobs"] == {
        "ok": False,
        "reason": "the job list cannot be written just now (queue_unavailable)",
    }
    assert str(tmp_path) not in answer.text


def test_the_footprint_says_what_each_part_of_the_folder_takes(tmp_path):
    (tmp_path / "runs" / "a1" / "deep").mkdir(parents=True)
    (tmp_path / "runs" / "a1" / "deep" / "state").write_bytes(b"x" * 1000)
    (tmp_path / "runs" / "link").symlink_to("/usr")
    (tmp_path / "jobs.db").write_bytes(b"x" * 10)
    now = [0.0]
    footprint = Footprint(tmp_path, clock=lambda: now[0])
    footprint.sizes()
    footprint.wait(10)
    sizes = footprint.sizes()
    assert (sizes["runs"], sizes["other"], sizes["images"]) == (1000, 10, 0)
    (tmp_path / "jobs.db").write_bytes(b"x" * 20)
    now[0] = SIZES_EVERY_S
    footprint.sizes()
    footprint.wait(10)
    assert footprint.sizes()["other"] == 20
    assert json.dumps(sizes)
