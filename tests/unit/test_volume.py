"""The data folder of several machines: is it fit, is it the same one, and does what lies in it hold on every machine?"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from filelock import FileLock
from redis import Redis
from starlette.applications import Starlette
from starlette.testclient import TestClient
from typer.testing import CliRunner

from isengard.cli import app as cli
from isengard.cli import doctor
from isengard.domain.job import JobEvent, JobKind
from isengard.errors import VolumeUnfit
from isengard.queue.redis import RedisQueue
from isengard.queue.sqlite import SqliteQueue
from isengard.services import checks
from isengard.services.jobs import owners
from isengard.services.volume import VolumeService
from isengard.settings import Settings
from isengard.store import volume
from isengard.store.own_paths import OwnPaths
from isengard.supervisor import WorkerRunning, lock_of, lock_path, only_worker
from isengard.wiring import build
from tabs.http.health import routes
from tests.redis_servers import Server, new_prefix

MOUNTS = r"""
25 1 252:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
61 25 0:52 / /mnt/nfs rw,relatime shared:2 - nfs4 nas:/export rw,vers=4.2,hard,local_lock=none
62 25 0:53 / /mnt/old rw,relatime - nfs nas:/old rw,vers=3,nolock,local_lock=all
63 25 0:54 / /mnt/smb rw,relatime - cifs //nas/share rw,nobrl
64 25 0:55 / /mnt/ssh rw,nosuid - fuse.sshfs me@nas:/data rw,user_id=0
65 25 0:56 / /mnt/two\040words rw - fuse mountpoint-s3 rw
66 25 0:57 / /workspace rw,relatime - fuse mfs#net:9421 rw,allow_other
67 61 0:58 / /mnt/nfs/local rw,relatime - tmpfs tmpfs rw
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("valkey"))
    yield one
    one.kill()


@pytest.fixture
def queue(server):
    return RedisQueue(server.url, prefix=new_prefix())


@pytest.fixture
def mounts(tmp_path):
    (tmp_path / "mounts").write_text(MOUNTS.lstrip())
    return tmp_path / "mounts"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


def service(folder, ledger, **options):
    return VolumeService(folder=folder, ledger=ledger, **options)


# What the file system has to do


def test_a_fit_folder_passes_every_check_and_nothing_is_left_in_it(folder):
    assert volume.check_locking(folder).startswith("hold")
    assert volume.check_replacing(folder)
    assert abs(volume.clock_ahead(folder)) < 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("import sys; sys.exit(3)", "does not keep other processes out"),
        ("raise OSError(37, 'No locks available')", "cannot be locked .*No locks available"),
        ("raise SystemExit(4)", "cannot be locked .exit code 4"),
    ],
)
def test_locks_that_do_not_hold_are_refused_with_the_way_out(folder, other, said):
    with pytest.raises(VolumeUnfit, match=f"(?s){said}.*ISENGARD_DATA_DIR"):
        volume.check_locking(folder, other=other)


def test_a_lock_that_outlives_its_process_is_refused(folder, monkeypatch):
    monkeypatch.setattr(volume, "RELEASE_S", 0)
    other = (
        "import fcntl, os, sys, time\n"
        "fcntl.flock(os.open(sys.argv[2], os.O_RDWR), fcntl.LOCK_EX)\n"
        "if os.fork(): os.kill(os.getpid(), 9)\n"
        "os.close(1); os.close(2); time.sleep(1)\n"
    )
    with pytest.raises(VolumeUnfit, match="outlives the process that held it"):
        volume.check_locking(folder, other=other)


def test_a_file_that_changes_under_its_reader_is_refused(folder):
    with pytest.raises(VolumeUnfit, match="reads 'new' and 'new', not 'old' and 'new'"):
        volume.check_replacing(folder, write=lambda path, text: path.write_text(text) and None)


def test_a_folder_that_cannot_be_written_is_refused_with_what_the_system_says(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(VolumeUnfit, match=r"file cannot be used .*Not a directory.* ISENGARD_DATA_DIR"):
        volume.check_replacing(tmp_path / "file")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me/data", "ext4 (/dev/vda)"),
        ("/mnt/nfs/data", "nfs4 (nas:/export)"),
        ("/mnt/nfs/local/data", "tmpfs (tmpfs)"),
        ("/workspace", "fuse (mfs#net:9421)"),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(tmp_path, mounts, path, kind):
    assert volume.check_file_system(tmp_path / path, mounts=mounts) == kind


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/mnt/old/x", "mounted with local_lock=all.*mount it without that option"),
        ("/mnt/smb/x", "mounted with nobrl"),
        ("/mnt/ssh/x", "fuse.sshfs .me@nas:/data., whose locks end at this machine.*several-machines"),
        ("/mnt/two words/x", "fuse .mountpoint-s3."),
    ],
)
def test_a_file_system_whose_locks_end_at_the_machine_is_refused(tmp_path, mounts, path, said):
    with pytest.raises(VolumeUnfit, match=said):
        volume.check_file_system(tmp_path / path, mounts=mounts)


def test_where_the_system_tells_of_no_mounts_the_file_system_is_unknown(tmp_path):
    assert volume.check_file_system(tmp_path, mounts=tmp_path / "none") == "unknown"
    (tmp_path / "mounts").write_text("")
    assert volume.check_file_system(tmp_path, mounts=tmp_path / "mounts") == "unknown"


# One volume for one job list


def test_a_folder_has_one_id_however_many_ask_for_it_first(folder, tmp_path):
    (tmp_path / "other-mount").symlink_to(folder)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(volume.identity, [folder, tmp_path / "other-mount"] * 8))
    assert len(found) == 1


def test_an_id_that_was_never_written_to_the_end_is_drawn_anew(folder):
    (folder / volume.VOLUME_ID).touch()
    assert volume.identity(folder) == volume.identity(folder) != ""


def test_machines_that_mount_one_volume_at_two_places_agree(folder, tmp_path, queue):
    (tmp_path / "elsewhere").symlink_to(folder)
    service(folder, queue).check()
    service(tmp_path / "elsewhere", queue).check()


def test_a_machine_with_another_folder_is_refused_and_told_both_ways_out(folder, tmp_path, queue):
    service(folder, queue).check()
    theirs, other = volume.identity(folder), tmp_path / "other"
    with pytest.raises(VolumeUnfit, match="mount their volume here and set ISENGARD_DATA_DIR") as refused:
        service(other, queue).check()
    assert f"write {theirs} into {other / 'volume-id'}" in str(refused.value)
    (other / "volume-id").write_text(theirs)
    service(other, queue).check()


def test_a_volume_that_comes_loose_is_noticed_until_it_is_mounted_again(folder, tmp_path, queue):
    ours = service(folder, queue)
    ours.check_still_there()
    folder.rename(tmp_path / "loose")
    with pytest.raises(VolumeUnfit, match="is not there any more; mount it again"):
        ours.check_still_there()
    (tmp_path / "loose").rename(folder)
    ours.check_still_there()


def test_a_job_list_that_nobody_shares_asks_nothing_of_its_folder(tmp_path):
    service(tmp_path / "none", None).check()
    assert service(tmp_path / "none", None).same() == ""
    assert not (tmp_path / "none").exists()


def test_clocks_that_differ_are_a_warning_and_no_hindrance(folder, queue, caplog):
    service(folder, queue, clock=lambda: time.time() + 60).check()
    advice = [record.advice for record in caplog.records if record.message == "clocks differ"]
    assert [one.partition(";")[0] for one in advice] == [
        "the clock of the Redis server is 60 s behind this machine's",
        f"the clock that dates files in {folder} is 60 s behind this machine's",
    ]
    assert list(service(folder, queue).skews()) == []


def test_without_a_server_only_the_clock_of_the_files_is_looked_at(folder):
    (sentence,) = service(folder, None, clock=lambda: time.time() - 60).skews()
    assert "60 s ahead of this machine's" in sentence


def test_the_server_tells_what_it_keeps_and_a_user_who_may_not_ask_hears_nothing(server, queue):
    facts = queue.server_facts()
    assert facts.program.startswith("Valkey ")
    assert (facts.appends, facts.syncs) == (False, "everysec")
    admin = Redis.from_url(server.url)
    admin.acl_setuser(
        "guest", enabled=True, nopass=True, keys="*", channels="*", categories=["+@all", "-@admin"]
    )
    admin.acl_setuser("deaf", enabled=True, nopass=True, keys="*", channels="*", categories=["+@all", "-@admin"],
                      commands=["-info"])  # fmt: skip
    guest, deaf = (
        RedisQueue(server.url.replace("//", f"//{user}:x@"), prefix=new_prefix()).server_facts()
        for user in ("guest", "deaf")
    )
    assert (guest.appends, guest.syncs) == (False, "")
    assert (deaf.program, deaf.appends, deaf.syncs) == ("Redis", None, "")


# What is kept holds wherever the volume is mounted


def test_own_folders_among_the_models_are_found_at_another_mount(tmp_path):
    before, after = tmp_path / "a" / "models", tmp_path / "b" / "models"
    OwnPaths(before / "own-paths.json").set("flux", before / "mine")
    OwnPaths(before / "own-paths.json").set("sdxl", tmp_path / "far")
    before.parent.rename(after.parent)
    paths = OwnPaths(after / "own-paths.json")
    assert (paths.get("flux"), paths.get("sdxl")) == (after / "mine", tmp_path / "far")


def test_machines_of_a_shared_list_write_a_log_each(tmp_path):
    ours = Settings(data_dir=tmp_path, redis_url="redis://h", machine="pod-1")
    assert ours.log_file("worker").name == "worker-pod-1.jsonl"
    assert ours.log_file("worker", machine="pod 2/x").name == "worker-pod_2_x.jsonl"
    assert Settings(data_dir=tmp_path, machine="pod-1").log_file("worker").name == "worker.jsonl"


def test_the_owners_of_a_job_are_read_from_its_history(queue):
    queue.enqueue(JobKind.TRAIN_LORA, {}, job_id="j")
    for worker in ("pod-1/cuda:0", "pod-2/cpu", "pod-1/cuda:0"):
        queue.release(queue.claim(worker, lease_s=60), reason="x")
    assert owners(queue.events("j")) == ("pod-1/cuda:0", "pod-2/cpu")
    assert owners([JobEvent(job_id="j", at=0, kind="queued")]) == ()


# Two machines of one name


def test_a_machine_with_the_host_name_of_another_is_told_to_take_its_own(tmp_path, queue):
    first = Settings(data_dir=tmp_path, device="cpu", redis_url="redis://h", machine="pod")
    second = first.model_copy(update={"machine": "pod-2"})
    with only_worker(first, queue) as one, only_worker(second, queue) as two:
        assert (one, two) == ("pod/cpu", "pod-2/cpu")
        with (
            pytest.raises(WorkerRunning, match="ISENGARD_MACHINE"),
            only_worker(first, queue, timeout_s=0),
        ):
            pass


def test_on_one_machine_a_second_worker_is_told_of_devices_only(tmp_path):
    settings = Settings(data_dir=tmp_path, device="cpu")
    queue = SqliteQueue(_made(settings.jobs_db))
    with (
        FileLock(_made(lock_path(settings))),
        pytest.raises(WorkerRunning) as refused,
        only_worker(settings, queue, timeout_s=0),
    ):
        pass
    assert "ISENGARD_MACHINE" not in str(refused.value)


def _made(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# At start, and by the doctor


@pytest.fixture
def shared(tmp_path, server, monkeypatch):
    """Settings of a machine of the shared list, which is in the environment, too."""
    Redis.from_url(server.url).flushall()
    monkeypatch.setenv("ISENGARD_REDIS_URL", server.url)
    monkeypatch.setenv("ISENGARD_MACHINE", "here")
    monkeypatch.setattr(doctor, "_torch", lambda settings: iter(()))
    return Settings.load(data_dir=tmp_path / "data", device="cpu")


def run(settings, *words):
    return CliRunner().invoke(cli, ["--data-dir", str(settings.data_dir), "--device", "cpu", *words])


@pytest.mark.parametrize(
    "words", [("worker", "--once"), ("train", "mira"), ("generate", "--model", "demo", "--prompt", "x")]
)
def test_with_another_volume_nothing_starts_and_one_sentence_says_why(shared, words):
    queue = RedisQueue(shared.redis_url.get_secret_value())
    queue.claim_volume("theirs")
    result = run(shared, *words)
    assert result.exit_code == 1
    assert "is not the data folder of the others" in result.stderr
    assert queue.jobs() == []


def test_a_page_whose_volume_came_loose_is_not_ready(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "LOOK_EVERY_S", 0)
    app = build(shared)
    shared.data_dir.mkdir()
    client = TestClient(Starlette(routes=routes(app)))
    assert client.get("/ready").json()["checks"]["data"]["ok"]
    shared.data_dir.rename(tmp_path / "loose")
    answer = client.get("/ready")
    assert answer.status_code == 503
    assert answer.json()["checks"]["data"]["reason"] == "the data folder is not there (volume_unfit)"


def examined(settings):
    result = run(settings, "doctor", "--json")
    findings = json.loads(result.stdout)
    return {entry["what"]: (entry["verdict"], entry["detail"]) for entry in findings}, result.exit_code


def test_the_doctor_of_a_shared_list_looks_at_server_volume_clocks_and_locks(shared, server):
    findings, code = examined(shared)
    assert code == 0
    assert "sqlite" not in findings
    for what in ("file locks", "file system", "job server", "volume", "clocks", "locks of workers"):
        assert findings[what][0] == "ok", findings[what]
    assert f"127.0.0.1:{server.port}" in findings["job server"][1]
    verdict, detail = findings["jobs on disk"]
    assert (verdict, "appendonly yes, appendfsync always" in detail) == ("warning", True)


def test_the_doctor_names_a_volume_that_is_not_the_others(shared):
    RedisQueue(shared.redis_url.get_secret_value()).claim_volume("theirs")
    findings, code = examined(shared)
    assert (code, findings["volume"][0]) == (1, "broken")


def test_the_doctor_warns_of_working_workers_whose_locks_are_not_seen(shared):
    queue = RedisQueue(shared.redis_url.get_secret_value())
    for _ in range(2):
        queue.enqueue(JobKind.TRAIN_LORA, {})
    for worker in ("here/cpu", "there/cuda:0"):
        queue.claim(worker, lease_s=60)
    with FileLock(_made(lock_of(shared, "here/cpu"))):
        findings, _ = examined(shared)
        verdict, detail = findings["locks of workers"]
        assert (verdict, detail.partition(":")[0]) == ("warning", "there/cuda")
        with FileLock(lock_of(shared, "there/cuda:0")):
            assert examined(shared)[0]["locks of workers"] == (
                "ok",
                "seen from here: here/cpu, there/cuda:0",
            )


@pytest.mark.parametrize(
    ("appends", "syncs", "verdict", "said"),
    [
        (True, "always", "ok", "appendfsync always"),
        (True, "everysec", "warning", "may cost a second"),
        (True, "", "warning", "appendfsync not told"),
        (None, "", "warning", "does not tell"),
    ],
)
def test_a_server_that_may_lose_jobs_is_a_warning(appends, syncs, verdict, said):
    facts = doctor.ServerFacts(where="x", program="Redis 7", appends=appends, syncs=syncs)
    finding = doctor._on_disk(facts)
    assert (finding.verdict, said in finding.detail) == (verdict, True)


def test_a_clock_that_is_wrong_is_a_warning_of_the_doctor(shared):
    wrong = service(shared.data_dir, None, clock=lambda: time.time() + 90)
    (finding,) = doctor._clocks(replace(build(shared), volume=wrong))
    assert (finding.verdict, "90 s behind" in finding.detail) == ("warning", True)
