"""A backup is whole, of one moment, and comes back as it was."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isengard.cli import app
from isengard.domain.job import JobKind, JobStatus
from isengard.errors import BackupRefused, Conflict, DiskFull, QueueUnavailable
from isengard.files import write_text
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import Settings
from isengard.store import archive
from isengard.wiring import backups

KEPT = {
    "characters/mira/character.json": "{}",
    "characters/mira/images/1.png": "a picture",
    "configs.yaml": "a: 1",
    "images/job-0.png": "an image",
    "logs/page.jsonl": "{}\n",
    "loras/abc/mira.safetensors": "weights",
    "models/own-paths.json": "{}",
    "runs/abc/checkpoints/step-00000010/state.pt": "state",
    "runs/abc/metrics.jsonl": '{"step": 1}\n',
    "trash/images/old.png": "old",
}
LEFT_OUT = {
    "ai-toolkit/run.py": "fetched again",
    "cache/latents/ab/x.safetensors": "made again",
    "cache/uploads/x.png": "an upload",
    "characters/.lock": "",
    "images/job-1.png.partial-0123": "half",
    "runs/abc/ai-toolkit/dataset/1.png": "made again",
    "volume-id": "word",
    "workers/vm_cpu.lock": "",
}
MODEL = {"models/flux/transformer/model.safetensors": "large"}
TOKEN = {"hub-token": "hf_secret"}


def fill(folder, files):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def content(folder, *, but=("jobs.db", "jobs.db-journal")):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {path: file.read_text() for path, file in files.items() if path not in but}


def ignored(done, total):
    pass


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    fill(folder, KEPT | LEFT_OUT | MODEL | TOKEN)
    return folder


@pytest.fixture
def queue(data):
    return SqliteQueue(data / "jobs.db")


@pytest.fixture
def service(data):
    return backups(Settings(data_dir=data))


@pytest.fixture
def target(tmp_path):
    return tmp_path / "elsewhere"


def make(service, path, *, models=False, token=False, report=ignored):
    return service.make(path, models=models, token=token, report=report)[1]


@pytest.fixture
def made(service, queue, tmp_path):
    path = tmp_path / "backup.tar"
    make(service, path)
    return path


# What is in it


def test_what_is_restored_is_what_was_kept(service, made, target):
    service.restore(made, into=target, report=ignored)
    assert content(target) == KEPT


def test_a_large_and_a_secret_thing_are_in_it_when_asked_for(service, queue, tmp_path, target):
    make(service, tmp_path / "backup.tar", models=True, token=True)
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert content(target) == KEPT | MODEL | TOKEN


def test_times_and_permissions_of_files_come_back(service, queue, data, tmp_path, target):
    (data / "hub-token").chmod(0o600)
    os.utime(data / "images" / "job-0.png", (1_000_000, 1_000_000.5))
    make(service, tmp_path / "backup.tar", token=True)
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert (target / "hub-token").stat().st_mode & 0o777 == 0o600
    assert (target / "images" / "job-0.png").stat().st_mtime == 1_000_000.5


def test_nobody_else_can_read_it(made):
    assert made.stat().st_mode & 0o077 == 0


def test_base_models_that_are_left_out_are_named(service, queue, tmp_path):
    assert make(service, tmp_path / "a.tar").left_out == ("flux",)
    assert make(service, tmp_path / "b.tar", models=True).left_out == ()


def test_linked_files_and_folders_are_in_it_and_circles_end(service, queue, data, tmp_path):
    elsewhere = tmp_path / "disk"
    fill(elsewhere, {"more/1.png": "on another disk"})
    (data / "images" / "linked").symlink_to(elsewhere)
    (elsewhere / "more" / "circle").symlink_to(elsewhere)
    (data / "dangling").symlink_to(data / "nothing")
    held = {file.path for file in make(service, tmp_path / "backup.tar").files}
    assert {path for path in held if "linked" in path} == {"images/linked/more/1.png"}
    assert "dangling" not in held


def test_a_data_folder_without_a_job_list_can_be_kept_too(service, tmp_path, target):
    make(service, tmp_path / "backup.tar")
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert not (target / "jobs.db").exists()
    assert content(target) == KEPT


# The jobs in it


def test_a_job_that_ran_waits_again_at_its_place_and_has_lost_no_attempt(service, queue, tmp_path, target):
    ran, waited = (queue.enqueue(JobKind.TRAIN_LORA, {"n": n}) for n in range(2))
    queue.claim("w", lease_s=3600)
    make(service, tmp_path / "backup.tar")
    assert queue.get(ran.id).status is JobStatus.RUNNING

    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    restored = SqliteQueue(target / "jobs.db")
    assert [job.id for job in restored.jobs(statuses=[JobStatus.QUEUED])] == [ran.id, waited.id]
    assert restored.claim("another machine", lease_s=60).attempt == 1
    assert restored.workers() == []


def test_a_job_that_was_being_cancelled_is_cancelled(service, queue, tmp_path, target):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    queue.claim("w", lease_s=60)
    queue.cancel(job.id)
    make(service, tmp_path / "backup.tar")
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert SqliteQueue(target / "jobs.db").get(job.id).status is JobStatus.CANCELLED


def test_a_damaged_job_list_is_not_passed_on(service, queue, data, tmp_path):
    for number in range(50):
        queue.enqueue(JobKind.TRAIN_LORA, {"text": "x" * 1000, "n": number})
    damaged = bytearray((data / "jobs.db").read_bytes())
    damaged[8192:24576] = b"\x55" * 16384
    (data / "jobs.db").write_bytes(damaged)
    with pytest.raises(QueueUnavailable, match="is damaged"):
        make(service, tmp_path / "backup.tar")
    assert not (tmp_path / "backup.tar").exists()


# One moment, though work goes on


class Meanwhile:
    """Does something while the first file is copied, and once only unless ``always``."""

    def __init__(self, do, *, always=False):
        self.do, self.always, self.times = do, always, 0

    def __call__(self, done, total):
        if self.always or self.times == 0:
            self.times += 1
            self.do()


def test_a_checkpoint_that_goes_while_it_is_copied_is_followed_by_its_successor(
    service, queue, data, tmp_path, target
):
    run = data / "runs" / "abc"

    def next_checkpoint():
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 2}\n')
        fill(run, {"checkpoints/step-00000020/state.pt": "newer"})
        shutil.rmtree(run / "checkpoints" / "step-00000010")

    make(service, tmp_path / "backup.tar", report=Meanwhile(next_checkpoint))
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert [path.name for path in (target / "runs/abc/checkpoints").iterdir()] == ["step-00000020"]
    assert (target / "runs/abc/metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_file_that_is_replaced_while_it_is_copied_is_whole(service, queue, data, tmp_path, target):
    def replace():
        write_text(data / "loras" / "abc" / "mira.safetensors", "other weights, and longer")

    make(service, tmp_path / "backup.tar", report=Meanwhile(replace))
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert (target / "loras/abc/mira.safetensors").read_text() == "other weights, and longer"


@pytest.mark.parametrize("replaced_as_well", [False, True])
def test_the_job_list_in_it_names_no_lora_that_it_lacks(
    service, queue, data, tmp_path, target, *, replaced_as_well
):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    running = queue.claim("w", lease_s=60)

    def end_of_the_training():
        fill(data / "loras" / job.id, {"lora.json": "{}"})
        queue.succeed(running, {"lora": job.id})
        if replaced_as_well:
            write_text(data / "trash" / "images" / "old.png", "newer")

    make(service, tmp_path / "backup.tar", report=Meanwhile(end_of_the_training))
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    is_there = (target / "loras" / job.id / "lora.json").exists()
    status = SqliteQueue(target / "jobs.db").get(job.id).status
    assert (status, is_there) == (
        (JobStatus.SUCCEEDED, True) if replaced_as_well else (JobStatus.QUEUED, False)
    )


def test_a_log_that_grows_all_the_time_holds_nothing_up(service, queue, data, tmp_path, target):
    def grow():
        with (data / "logs" / "page.jsonl").open("a") as file:
            file.write("{}\n")

    make(service, tmp_path / "backup.tar", report=Meanwhile(grow, always=True))
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert set((target / "logs" / "page.jsonl").read_text().splitlines()) == {"{}"}


def test_a_file_that_becomes_shorter_while_it_is_copied_is_copied_again(
    data, queue, service, tmp_path, target
):
    log = data / "logs" / "page.jsonl"
    log.write_text("x" * 100_000)

    def shorten(done, total):
        if 10_000 < done < 100_000:  # in the middle of it
            os.truncate(log, 2)

    make(service, tmp_path / "backup.tar", report=shorten)
    service.restore(tmp_path / "backup.tar", into=target, report=ignored)
    assert (target / "logs" / "page.jsonl").read_text() == "xx"


def test_files_that_never_stand_still_are_given_up_in_plain_words(service, queue, data, tmp_path):
    def replace():
        for path in ("images/job-0.png", "trash/images/old.png"):
            write_text(data / path, "new")

    with pytest.raises(Conflict, match="change faster than they can be copied; pause the running jobs"):
        make(service, tmp_path / "backup.tar", report=Meanwhile(replace, always=True))
    assert list(tmp_path.glob("backup*")) == []


# What is refused


def test_a_backup_that_is_there_is_not_written_over(service, made):
    before = made.read_bytes()
    with pytest.raises(BackupRefused, match="is there already"):
        make(service, made)
    assert made.read_bytes() == before


def test_a_backup_in_the_data_folder_is_refused(service, data):
    with pytest.raises(BackupRefused, match="in the data folder itself"):
        make(service, data / "backup.tar")


@pytest.mark.parametrize("name", [b"\xff.png", b"a\\b.png"])
def test_a_file_whose_name_cannot_be_kept_is_named(service, queue, data, tmp_path, name):
    Path(os.fsdecode(bytes(data / "images") + b"/" + name)).touch()
    with pytest.raises(BackupRefused, match=r"cannot hold a file of the name .*png.*rename"):
        make(service, tmp_path / "backup.tar")


def test_a_file_that_this_user_may_not_read_is_named(service, queue, tmp_path):
    def no():
        raise PermissionError(13, "Permission denied", "data/hub-token")

    with pytest.raises(BackupRefused, match=r"hub-token.*as the user that runs Isengard"):
        make(service, tmp_path / "backup.tar", report=Meanwhile(no))


def test_no_data_folder_is_no_backup(tmp_path):
    with pytest.raises(BackupRefused, match="no data folder"):
        make(backups(Settings(data_dir=tmp_path / "nothing")), tmp_path / "backup.tar")


@pytest.mark.parametrize("do", ["check", "restore"])
def test_a_flipped_byte_is_found_and_named(service, made, target, do):
    damaged = bytearray(made.read_bytes())
    damaged[damaged.index(b"a picture")] ^= 1
    made.write_bytes(damaged)
    into = {"into": target} if do == "restore" else {}
    with pytest.raises(BackupRefused, match=r"damaged: characters/mira/images/1\.png"):
        getattr(service, do)(made, report=ignored, **into)
    assert not target.exists()


@pytest.mark.parametrize("share", [0.3, 0.8, 1])
def test_a_backup_cut_short_is_refused_and_nothing_is_written(service, made, target, share):
    in_the_manifest = made.read_bytes().rindex(archive.MANIFEST.encode()) + 600
    os.truncate(made, int(in_the_manifest * share))
    with pytest.raises(BackupRefused, match="cut short"):
        service.restore(made, into=target, report=ignored)
    assert not target.exists()


def crafted(path, members, names, **changes):
    """A tar file with these members, and a manifest that names these files."""
    manifest = {
        "format": 1, "isengard": "0", "created_at": 0.0,
        "files": [{"path": name, "size": 1, "sha256": hashlib.sha256(b"x").hexdigest()} for name in names],
        **changes,
    }  # fmt: skip
    text = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for member in members:
            member.size = 1 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"x"))
        last = tarfile.TarInfo(archive.MANIFEST)
        last.size = len(text)
        tar.addfile(last, io.BytesIO(text))


def linked(kind):
    member = tarfile.TarInfo("a/b")
    member.type, member.linkname = kind, "/etc/passwd"
    return member


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "a//b", "a\\..\\b"])
def test_no_path_leads_out_of_the_folder(service, tmp_path, target, name):
    crafted(tmp_path / "evil.tar", [tarfile.TarInfo(name)], [name])
    with pytest.raises(BackupRefused, match="leads out of the folder"):
        service.restore(tmp_path / "evil.tar", into=target, report=ignored)
    assert not target.exists()
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(service, tmp_path, target, kind):
    crafted(tmp_path / "evil.tar", [linked(kind)], [])
    with pytest.raises(BackupRefused, match="a/b in it is a link"):
        service.restore(tmp_path / "evil.tar", into=target, report=ignored)


def test_a_member_that_the_manifest_does_not_name_is_not_written(service, tmp_path, target):
    crafted(tmp_path / "more.tar", [tarfile.TarInfo("named"), tarfile.TarInfo("unnamed")], ["named"])
    service.restore(tmp_path / "more.tar", into=target, report=ignored)
    assert content(target) == {"named": "x"}


@pytest.mark.parametrize(
    ("names", "changes", "said"),
    [
        (["lost"], {}, "it lacks lost"),
        ([], {"format": 2, "isengard": "9.1"}, "made by Isengard 9.1, in a format this one cannot read"),
        ([], {"files": 7}, "cannot be read"),
        ([], {"format": "x"}, "cannot be read"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(service, tmp_path, target, names, changes, said):
    crafted(tmp_path / "odd.tar", [], names, **changes)
    with pytest.raises(BackupRefused, match=said):
        service.restore(tmp_path / "odd.tar", into=target, report=ignored)


def test_what_is_no_backup_is_said_to_be_none(service, tmp_path, data):
    with tarfile.open(tmp_path / "foreign.tar", "w") as tar:
        tar.add(data / "configs.yaml", "configs.yaml")
    (tmp_path / "text").write_text("no tar at all")
    for path in (tmp_path / "foreign.tar", tmp_path / "text"):
        with pytest.raises(BackupRefused, match="no backup of Isengard"):
            service.check(path, report=ignored)
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(BackupRefused, match="there is no backup at"):
            service.check(path, report=ignored)


def test_a_folder_that_holds_something_is_left_alone(service, made, target):
    fill(target, {"mine": "keep"})
    with pytest.raises(Conflict, match=r"not empty \(it holds mine\)"):
        service.restore(made, into=target, report=ignored)
    assert content(target) == {"mine": "keep"}
    with pytest.raises(Conflict, match="is a file"):
        service.restore(made, into=target / "mine", report=ignored)


def test_an_empty_volume_and_the_rest_of_a_killed_restore_count_as_empty(service, made, target):
    (target / "lost+found").mkdir(parents=True)
    fill(target, {"restore.partial-0123/characters/x": "half"})
    service.restore(made, into=target, report=ignored)
    assert content(target) == KEPT


def test_a_damaged_backup_leaves_an_empty_folder_empty(service, made, target):
    target.mkdir()
    damaged = bytearray(made.read_bytes())
    damaged[damaged.index(b"a picture")] ^= 1
    made.write_bytes(damaged)
    with suppress(BackupRefused):
        service.restore(made, into=target, report=ignored)
    assert list(target.iterdir()) == []


def test_a_disk_without_room_is_said_before_anything_is_written(service, made, target, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(DiskFull, match="has room for 0"):
        service.restore(made, into=target, report=ignored)
    assert not target.exists()


# The command line


@pytest.fixture
def run(data):
    def run(*arguments):
        return CliRunner().invoke(app, ["--data-dir", str(data), *map(str, arguments)])

    return run


def test_the_command_line_makes_checks_and_restores(run, queue, tmp_path, target):
    done = run("backup", tmp_path)
    (path,) = tmp_path.glob("isengard-*.tar")
    assert done.exit_code == 0, done.output
    assert f"{path} is whole: {len(KEPT) + 1} files" in done.output
    assert "base model flux is not in it: python -m isengard models download flux" in done.output
    assert f"{path} is whole" in run("backup", path, "--check").output

    restored = run("restore", path, target)
    assert restored.exit_code == 0, restored.output
    assert f"start with: python app.py --data-dir {target}" in restored.output
    assert content(target) == KEPT


def test_a_restore_into_the_data_folder_itself_finds_it_empty(run, made, data):
    shutil.rmtree(data)
    assert run("restore", made.with_name("nothing.tar"), data).exit_code == 1
    assert run("restore", made, data).exit_code == 0
    assert content(data) == KEPT


def test_a_job_list_on_a_server_is_said_not_to_be_in_it(run, tmp_path, target, monkeypatch):
    monkeypatch.setenv("ISENGARD_REDIS_URL", "redis://nowhere.example:6379/0")
    done = run("backup", tmp_path / "backup.tar")
    assert "the job list is on the Redis server and not in it" in done.output
    assert "it holds no job list" in run("restore", tmp_path / "backup.tar", target).output
