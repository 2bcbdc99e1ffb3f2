"""A machine that costs money by the hour: where its data lie, what runs cost, and how it ends when nobody needs it."""

import json
import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from isengard.cli import doctor
from isengard.domain.job import JobKind, JobStatus, Needs, Phase, Progress
from isengard.domain.memory import Kind, Machine
from isengard.domain.worker import WorkerState
from isengard.errors import InvalidSpec, PodNotStopped, QueueUnavailable
from isengard.queue.sqlite import SqliteQueue
from isengard.services.costs import Costs
from isengard.services.jobs import JobService
from isengard.services.pod import (
    ANNOUNCED_S,
    MENTIONED_S,
    TRY_AGAIN_S,
    IdleWatch,
    Work,
    at_risk,
    check_stop,
    idle_message,
    is_wiped,
)
from isengard.services.workers import WorkerService
from isengard.settings import ROOT, Settings, on_a_volume, variable
from isengard.store.runpod import RunPod
from isengard.store.volume import Mount
from isengard.wiring import build
from tests.receiver import receiving

POD = {"RUNPOD_POD_ID": "abc123", "RUNPOD_API_KEY": "hidden-key"}
GIB = 2**30


# The volume


def test_in_a_pod_the_data_folder_is_on_the_volume_that_is_mounted(tmp_path):
    assert on_a_volume((tmp_path, Path("/proc"))) == {"data_dir": Path("/proc/isengard")}
    assert on_a_volume((tmp_path, tmp_path / "none")) == {}


def test_a_folder_that_was_chosen_is_used_in_a_pod_too(tmp_path):
    assert Settings.load({**POD, "ISENGARD_DATA_DIR": str(tmp_path)}).data_dir == tmp_path
    assert Settings.load(POD, data_dir=tmp_path).data_dir == tmp_path


def mounted(point, kind="ext4", root="/"):
    mount = Mount(point=Path(point), root=root, kind=kind, source="/dev/x", options=frozenset())
    return lambda folder: mount


@pytest.mark.parametrize(
    ("mount", "wiped"),
    [
        (mounted("/", "overlay"), True),
        (mounted("/", "btrfs"), True),
        (mounted("/tmp", "tmpfs"), True),  # noqa: S108
        (mounted("/data", root=f"/var/lib/docker/volumes/{'ab' * 32}/_data"), True),
        (mounted("/workspace", "fuse", root="/"), False),
        (mounted("/workspace", root=f"/var/lib/docker/volumes/{'ab' * 32}/_data"), False),
        (mounted("/runpod-volume", "nfs4"), False),
        (mounted("/mine", "xfs", root="/volumes/abc123"), False),
        (lambda folder: None, False),
    ],
)
def test_a_folder_on_the_disk_of_the_container_is_known_to_be_wiped(mount, wiped):
    assert is_wiped(Path("/workspace/isengard"), mount=mount) is wiped


def test_a_warning_is_for_pods_only(tmp_path):
    assert at_risk(Settings(data_dir=tmp_path)) == ""
    assert at_risk(Settings(data_dir=Path("/dev/shm/isengard"), runpod_pod_id="abc")) == "/dev/shm/isengard"  # noqa: S108


def test_the_template_for_runpod_puts_the_data_on_its_volume_and_sets_only_what_there_is():
    template = json.loads((ROOT / "runpod" / "template.json").read_text())
    given = {**template["env"], "ISENGARD_AUTH": "name:password"}
    settings = Settings.load(given)
    assert settings.data_dir.is_relative_to(template["mounts"]["persistent"]["path"])
    assert template["ports"] == [f"{settings.port}/http"]
    assert settings.host == "0.0.0.0"  # noqa: S104  # RunPod's proxy comes from outside
    known = {variable(field) for field in Settings.model_fields}
    readme = (ROOT / "runpod" / "README.md").read_text()
    assert {*given, *re.findall(r"\b(?:ISENGARD|HF)_[A-Z_]+", readme)} <= known
    documented = {"name", "image", "category", "disk", "mounts", "ports", "env", "serverless", "public"}
    assert set(template) <= documented | {"startJupyter", "startSsh"}


# RunPod is asked


def runpod(receiver):
    return RunPod(pod_id="abc123", api_key=SecretStr("hidden-key"), endpoint=f"{receiver.url}/v2")


def test_a_pod_is_stopped_by_the_request_that_runpod_documents():
    with receiving((200, {}, {"id": "abc123", "status": "EXITED"})) as receiver:
        runpod(receiver).stop()
    ((path, headers, body),) = receiver.requests
    assert (path, body) == ("/v2/pods/abc123/action", {"action": "stop"})
    assert headers["authorization"] == "Bearer hidden-key"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            (403, {}, {"title": "Forbidden", "status": 403, "detail": "no access"}),
            "403 no access; .*RUNPOD_API_KEY",
        ),
        ((409, {}, {"title": "Conflict", "status": 409}), "409 Conflict; stop it in RunPod's console"),
        ((500, {}, ["strange"]), "500 Internal Server Error"),
        ((502, {}, None), "502 Bad Gateway"),
        ((307, {"location": "http://127.0.0.1:9/"}, None), "307 Temporary Redirect"),
    ],
)
def test_a_refusal_is_told_with_its_reason_and_a_way_out_and_without_the_key(answer, words):
    with receiving(answer) as receiver, pytest.raises(PodNotStopped, match=words) as raised:
        runpod(receiver).stop()
    assert "hidden" not in str(raised.value)


def test_runpod_may_be_away():
    with receiving() as gone:
        pass
    with pytest.raises(PodNotStopped, match="could not be asked"):
        runpod(gone).stop()


def test_a_stop_that_cannot_be_is_refused_at_the_start():
    wanted = {"ISENGARD_STOP_WHEN_IDLE_MINUTES": "30"}
    check_stop(Settings.load({}))
    check_stop(Settings.load({**wanted, **POD}))
    with pytest.raises(
        InvalidSpec, match="STOP_WHEN_IDLE_MINUTES is 30, and RUNPOD_POD_ID and RUNPOD_API_KEY not set"
    ):
        check_stop(Settings.load(wanted))


def test_the_key_of_the_pod_is_shown_to_nobody_and_given_to_no_worker(monkeypatch):
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    assert "hidden" not in f"{settings!r} {settings.model_dump()} {settings.child_environment()}"
    assert Settings.load(settings.child_environment()).runpod_pod_id == "abc123"


def test_the_page_of_a_pod_has_an_address():
    assert Settings.load({**POD, "ISENGARD_PORT": "8000"}).page_url == "https://abc123-8000.proxy.runpod.net"
    assert Settings.load({}).page_url is None


# Whether there is work


@pytest.fixture
def queue(tmp_path, clock):
    return SqliteQueue(tmp_path / "jobs.db", clock=clock)


def work(queue, clock, *, shared=False):
    workers = WorkerService(queue=queue, machine=lambda: None, shared=shared, clock=clock)
    return Work(queue=queue, workers=workers, machine="pod", shared=shared)


def announce(queue, name, **options):
    memory = {
        "total_bytes": 24 * GIB,
        "free_bytes": 24 * GIB,
        "system_total_bytes": 0,
        "system_free_bytes": 0,
    }
    card = Machine(kind=Kind.CUDA, name="RTX 4090", **memory)
    queue.announce(WorkerState(name=name, machine=card, **options))


def test_a_job_that_waits_or_runs_is_work_and_a_paused_or_ended_one_is_not(queue, clock):
    here = work(queue, clock)
    assert not here()
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert here()
    announce(queue, "pod/auto")
    assert here()
    claimed = queue.claim("pod/auto", lease_s=60)
    assert here()
    queue.pause(job.id)
    queue.stopped(claimed)
    assert not here()


def test_what_only_others_can_do_is_not_work_for_this_machine(queue, clock):
    here = work(queue, clock, shared=True)
    announce(queue, "pod/auto", models=("flux",))
    announce(queue, "other/auto", models=("sdxl",))
    queue.enqueue(JobKind.TRAIN_LORA, {}, needs=Needs(model="sdxl"))
    assert not here()
    assert queue.claim("other/auto", lease_s=60)
    assert not here()
    queue.enqueue(JobKind.TRAIN_LORA, {}, needs=Needs(model="flux"))
    assert here()
    queue.drain("pod/auto")
    assert not here()


# Idle


@pytest.fixture
def pod(clock):
    """A pod that stops itself after half an hour."""

    class Pod:
        busy, said, stops, fault = False, (), 0, None

        def is_busy(self):
            if isinstance(self.busy, Exception):
                raise self.busy
            return self.busy

        def stop(self):
            self.stops += 1
            if self.fault:
                raise self.fault

        def mention(self, idle_s):
            self.said = (*self.said, idle_s)

        def wait(self, seconds):
            clock.now += seconds
            self.watch.look()
            return self.watch.state()

    made = Pod()
    made.watch = IdleWatch(
        busy=made.is_busy, mention=made.mention, stop=made.stop, stop_after_s=1800, clock=clock
    )
    return made


def test_an_idle_pod_is_stopped_once_and_says_so(pod):
    assert pod.wait(1799).stopping is False
    assert pod.wait(1).stopping is True
    pod.wait(2)
    assert pod.stops == 1


@pytest.mark.parametrize("busy", [True, QueueUnavailable("the job list is away")])
def test_a_pod_with_work_or_of_which_nothing_is_known_goes_on(pod, busy):
    pod.busy = busy
    for _ in range(5):
        pod.wait(1800)
    assert (pod.stops, pod.watch.state().idle_s) == (0, 0)
    pod.busy = False
    pod.wait(1799)
    assert pod.stops == 0


def test_who_uses_the_page_keeps_the_pod_running(pod):
    pod.wait(1500)
    pod.watch.used(100)
    assert pod.wait(1699).stopping is False
    pod.watch.used(5000)  # another browser, which nobody has touched for long
    assert pod.wait(1).stopping is True


def test_the_end_is_announced_with_the_time_that_is_left(pod):
    assert pod.wait(1800 - ANNOUNCED_S - 1).stops_in_s is None
    assert pod.wait(1).stops_in_s == ANNOUNCED_S
    assert pod.wait(60).stops_in_s == ANNOUNCED_S - 60
    pod.watch.used()
    assert pod.wait(0).stops_in_s is None


def test_a_pod_that_runpod_does_not_stop_says_why_and_is_tried_again(pod):
    pod.fault = PodNotStopped("RunPod did not stop this pod: 403")
    assert pod.wait(1800).trouble == "RunPod did not stop this pod: 403"
    pod.wait(TRY_AGAIN_S - 1)
    assert pod.stops == 1
    pod.fault = None
    assert pod.wait(1).stopping is True
    assert pod.watch.state().trouble == ""
    pod.watch.used()
    assert pod.wait(0).stopping is False


def test_a_long_idle_time_is_mentioned_once(pod):
    pod.wait(MENTIONED_S - 1)
    assert pod.said == ()
    assert pod.wait(1).mentioned
    pod.wait(1)
    assert pod.said == (MENTIONED_S,)
    pod.watch.used()
    pod.wait(0)
    pod.wait(MENTIONED_S)
    assert len(pod.said) == 2


def test_what_a_webhook_is_told_of_an_idle_machine():
    told = idle_message(1200, per_hour=0.44, page=None)
    assert (
        told["text"]
        == told["content"]
        == "Isengard's machine has been idle for 20 min and costs $0.44 an hour"
    )
    assert (
        idle_message(1200, per_hour=None, page=None)["text"] == "Isengard's machine has been idle for 20 min"
    )


def test_the_application_tells_of_idleness_only_where_it_costs(tmp_path):
    with receiving() as receiver:
        options = {"data_dir": tmp_path, "device": "cpu", "webhook_url": receiver.url}
        build(Settings(**options)).idle._mention(1200)
        assert receiver.requests == []
        build(Settings(**options, price_per_hour=0.44)).idle._mention(1200)
    assert receiver.messages[0]["price_per_hour"] == 0.44


def test_the_application_stops_its_pod_where_that_was_asked_for(tmp_path):
    options = {"data_dir": tmp_path, "device": "cpu", "runpod_pod_id": "abc", "runpod_api_key": "key"}
    for minutes, seconds in ((None, None), (30, 1800)):
        watch = build(Settings(**options, stop_when_idle_minutes=minutes)).idle
        assert watch._stop_after_s == seconds
        watch.look()
        assert watch.state().idle_s < 60


def test_the_watch_looks_by_itself(clock):
    watch = IdleWatch(busy=lambda: True, mention=lambda _: None, clock=clock)
    with watch.watching():
        pass


# What it costs


@pytest.fixture
def costs(tmp_path, queue, clock):
    return Costs(per_hour=0.72, jobs=JobService(queue=queue, runs_dir=tmp_path), clock=clock)


def test_a_run_costs_the_time_that_workers_had_it(queue, costs, clock):
    queue.enqueue(JobKind.TRAIN_LORA, {})
    first = queue.claim("w", lease_s=9999)
    clock.now += 1000
    assert costs.so_far(queue.get(first.id)) == pytest.approx(0.20)
    queue.release(first, reason="made room")
    clock.now += 100_000  # over night
    assert costs.so_far(queue.get(first.id)) == pytest.approx(0.20)
    second = queue.claim("w", lease_s=9999)
    clock.now += 500
    queue.heartbeat(second, lease_s=9999, progress=Progress(phase=Phase.TRAINING, step=1, total=2, eta_s=500))
    job = queue.get(second.id)
    assert (costs.so_far(job), costs.total(job)) == (pytest.approx(0.30), pytest.approx(0.40))
    queue.succeed(second, {})
    ended = queue.get(second.id)
    assert (ended.status, costs.so_far(ended), costs.total(ended)) == (
        JobStatus.SUCCEEDED,
        pytest.approx(0.30),
        None,
    )


def test_without_a_price_nothing_is_said(tmp_path, queue):
    costs = Costs(per_hour=None, jobs=JobService(queue=queue, runs_dir=tmp_path))
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert (costs.of(60), costs.so_far(job), costs.total(job)) == (None, None, None)


def test_many_jobs_are_not_remembered_for_ever(queue, costs):
    jobs = [queue.enqueue(JobKind.TRAIN_LORA, {}) for _ in range(3)]
    for number in range(300):
        costs.so_far(jobs[0].model_copy(update={"fence": number}))
    assert len(costs._known) < 300


# The doctor


def examined(data_dir, **environment):
    app = build(Settings.load(environment, data_dir=data_dir, device="cpu"))
    return {found.what: (found.verdict, found.detail) for found in doctor._safely(doctor._pod, app)}


def test_the_doctor_says_what_is_rented_and_what_would_be_lost(tmp_path):
    wanted = {"ISENGARD_STOP_WHEN_IDLE_MINUTES": "30", "ISENGARD_WEBHOOK_URL": "https://hooks.example/hidden"}
    found = examined(tmp_path, **POD, **wanted)
    assert found["runpod"][0] == ("warning" if is_wiped(tmp_path) else "ok")
    assert found["stop when idle"][0] == "ok"
    assert found["webhook"] == ("ok", "the ends of runs are told to hooks.example")


def test_the_doctor_finds_a_stop_that_cannot_be_and_is_silent_at_home(tmp_path):
    assert examined(tmp_path) == {}
    assert examined(tmp_path, ISENGARD_STOP_WHEN_IDLE_MINUTES="30")["pod"][0] == "broken"
