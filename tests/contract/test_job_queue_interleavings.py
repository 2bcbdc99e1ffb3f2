"""Random sequences of everything a queue can be told, compared with a model that is simple enough to be believed."""

import random
from dataclasses import dataclass, field

import pytest

from isengard.domain.job import (
    Job,
    JobError,
    JobKind,
    JobStatus,
    Lane,
    Needs,
    Phase,
    Progress,
    Requests,
    Signals,
    Stop,
)
from isengard.domain.worker import WorkerState, largest_memory, serves
from isengard.errors import Conflict, LeaseLost, NotFound
from isengard.queue.base import ALIVE_S, MAX_STALLED, PREFER_WARM_S, YIELD_AFTER_S
from tests.machines import gpu

LEASE = 60.0
QUEUED, RUNNING, PAUSED = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED
MODELS = ("flux", "sdxl")
NEEDS = [
    Needs(memory_gb=gb, engine=engine, model=model)
    for gb in (0, 20, 100)
    for engine in ("", "native")
    for model in ("", *MODELS)
]


@dataclass
class Known:
    """What the model knows of one job."""

    id: str
    lane: Lane
    needs: Needs
    status: JobStatus = QUEUED
    worker: str | None = None
    lease_until: float = 0
    waiting_since: float = 0
    stop: Stop | None = None
    fence: int = 0
    losses: int = 0
    stalled: int = 0
    best: int = 0
    wishes: set[str] = field(default_factory=set)


class Model:
    """A queue in a list, in the order of claiming."""

    def __init__(self, clock) -> None:
        self.clock, self.jobs = clock, []
        self.workers: dict[str, WorkerState] = {}

    def held(self, worker):
        return [job.id for job in self.jobs if job.status is RUNNING and job.worker == worker]

    def alive(self):
        return [known for known in self.workers.values() if known.seen_at > self.clock.now - ALIVE_S]

    def gives(self, worker, job):
        """Whether such a job is for the worker at all."""
        known = self.workers.get(worker)
        if known is None:
            return True
        return not known.draining and serves(known, job.needs, largest_gb=largest_memory(self.alive()))

    def leaves(self, worker, job):
        """Whether the worker leaves the job to another that has its model loaded."""
        is_new = job.lane is Lane.INTERACTIVE and job.waiting_since > self.clock.now - PREFER_WARM_S
        known = self.workers.get(worker)
        if not is_new or known is None or job.needs.model in ("", known.warm):
            return False
        idle = [other for other in self.alive() if not self.held(other.name)]
        return any(other.warm == job.needs.model and self.gives(other.name, job) for other in idle)

    def find(self, job_id):
        return next(job for job in self.jobs if job.id == job_id)

    def to_the_end(self, job):
        self.jobs.remove(job)
        self.jobs.append(job)

    def let_go(self, job):
        job.status = {
            Stop.CANCEL: JobStatus.CANCELLED,
            Stop.PAUSE: PAUSED,
            None: QUEUED,
        }[job.stop]
        job.worker, job.stop, job.waiting_since = None, None, self.clock.now

    def lose(self, job):
        job.losses += 1
        job.stalled += 1
        if job.stop is None and job.stalled >= MAX_STALLED:
            job.status, job.worker = JobStatus.FAILED, None
        else:
            self.let_go(job)

    def lose_silent(self):
        for job in self.jobs:
            if job.status is RUNNING and job.lease_until <= self.clock.now:
                self.lose(job)

    def claim(self, worker):
        self.lose_silent()
        waiting = [job for job in self.jobs if job.status is QUEUED]
        waiting.sort(key=lambda job: job.lane is Lane.TRAINING)
        for job in waiting:
            if not self.gives(worker, job) or self.leaves(worker, job):
                continue
            job.status, job.worker, job.lease_until = RUNNING, worker, self.clock.now + LEASE
            job.fence += 1
            return job
        return None

    def owner(self, claimed: Job):
        job = next((job for job in self.jobs if job.id == claimed.id), None)
        return job if job and job.status is RUNNING and job.fence == claimed.fence else None

    def somebody_waits_for_an_image(self, worker):
        then = self.clock.now - YIELD_AFTER_S
        return any(
            job.lane is Lane.INTERACTIVE
            and self.gives(worker, job)
            and (
                (job.status is QUEUED and job.waiting_since <= then)
                or (job.status is RUNNING and job.lease_until <= then)
            )
            for job in self.jobs
        )


class Game:
    """Plays the same move on the queue and on the model."""

    def __init__(self, queue, clock, seed) -> None:
        self.queue, self.clock, self.model = queue, clock, Model(clock)
        self.random = random.Random(seed)
        self.handles: list[Job] = []
        self.count = 0

    def play(self) -> None:
        moves = {
            self.enqueue: 6,
            self.claim: 8,
            self.heartbeat: 12,
            self.finish: 6,
            self.kill_worker: 2,
            self.announce: 16,
            self.drain: 2,
            self.leave: 1,
            self.user: 12,
            self.move: 3,
            self.wait: 4,
        }
        self.random.choices(list(moves), list(moves.values()))[0]()
        self.compare()

    def compare(self) -> None:
        truth = {job.id: job for job in self.queue.jobs(limit=1000)}
        assert {(job.id, job.status, job.fence, job.worker, job.stop) for job in truth.values()} == {
            (job.id, job.status, job.fence, job.worker, job.stop) for job in self.model.jobs
        }
        waiting = [job for job in self.model.jobs if job.status is QUEUED]
        waiting.sort(key=lambda job: job.lane is Lane.TRAINING)
        listed = [job.id for job in truth.values() if job.status is QUEUED]
        assert listed == [job.id for job in waiting]
        known = {worker.name: worker for worker in self.queue.workers()}
        assert {
            name: worker.model_copy(update={"job": None}) for name, worker in known.items()
        } == self.model.workers
        for name, worker in known.items():
            assert worker.job in (self.model.held(name) or [None])

    def pick(self) -> Known | None:
        return self.random.choice(self.model.jobs) if self.model.jobs else None

    def enqueue(self) -> None:
        self.count += 1
        lane, needs = self.random.choice(list(Lane)), self.random.choice(NEEDS)
        job = self.queue.enqueue(JobKind.TRAIN_LORA, {}, lane=lane, needs=needs, job_id=f"j{self.count}")
        self.model.jobs.append(Known(job.id, lane, needs, waiting_since=self.clock.now))

    def claim(self) -> None:
        worker = self.random.choice("ab")
        claimed, expected = self.queue.claim(worker, lease_s=LEASE), self.model.claim(worker)
        assert (claimed and claimed.id) == (expected and expected.id)
        if claimed:
            assert claimed.attempt == expected.losses + 1
            self.handles.append(claimed)

    def heartbeat(self) -> None:
        if not self.handles:
            return
        handle, step = self.random.choice(self.handles), self.random.randint(0, 30)
        job = self.model.owner(handle)
        if job is None:
            with pytest.raises(LeaseLost):
                self.queue.heartbeat(handle, lease_s=LEASE)
            return
        signals = self.queue.heartbeat(
            handle, lease_s=LEASE, progress=Progress(phase=Phase.TRAINING, step=step)
        )
        job.lease_until = self.clock.now + LEASE
        if step > job.best:
            job.best, job.stalled = step, 0
        if signals.stop is Stop.YIELD:
            assert job.stop is None
            assert job.lane is Lane.TRAINING
            assert self.model.somebody_waits_for_an_image(job.worker)
        else:
            assert signals.stop is job.stop
        if signals.stop:
            assert signals.requests == Requests()
        else:
            assert signals == Signals(requests=Requests(**dict.fromkeys(job.wishes, True)))
            job.wishes.clear()

    def finish(self) -> None:
        if not self.handles:
            return
        handle = self.random.choice(self.handles)
        job = self.model.owner(handle)
        name = self.random.choice(["succeed", "fail", "release", "stopped"])
        say = {
            "succeed": lambda: self.queue.succeed(handle, {}),
            "fail": lambda: self.queue.fail(handle, JobError(code="x", message="y")),
            "release": lambda: self.queue.release(handle, reason="z"),
            "stopped": lambda: self.queue.stopped(handle),
        }[name]
        if job is None:
            with pytest.raises(LeaseLost):
                say()
            return
        say()
        if name in ("release", "stopped"):
            self.model.let_go(job)
        else:
            job.status = {"succeed": JobStatus.SUCCEEDED, "fail": JobStatus.FAILED}[name]
            job.worker = job.stop = None

    def kill_worker(self) -> None:
        worker = self.random.choice("ab")
        held = [job for job in self.model.jobs if job.worker == worker]
        assert self.queue.release_worker(worker) == len(held)
        for job in held:
            self.model.lose(job)

    def announce(self) -> None:
        name = self.random.choice("ab")
        said = WorkerState(
            name=name,
            machine=gpu(self.random.choice([8, 24, 24])),
            engines=self.random.choice([(), ("native",)]),
            models=self.random.choice([MODELS, MODELS, MODELS[:1]]),
            warm=self.random.choice(["", *MODELS, *MODELS]),
        )
        before = self.model.workers.get(name)
        added = {"seen_at": self.clock.now, "draining": before is not None and before.draining}
        self.model.workers[name] = said.model_copy(update=added)
        assert self.queue.announce(said).model_copy(update={"job": None}) == self.model.workers[name]

    def drain(self) -> None:
        name, draining = self.random.choice("ab"), self.random.choice([True, False, False])
        if name not in self.model.workers:
            with pytest.raises(NotFound):
                self.queue.drain(name, draining=draining)
            return
        assert self.queue.drain(name, draining=draining).draining is draining
        self.model.workers[name] = self.model.workers[name].model_copy(update={"draining": draining})

    def leave(self) -> None:
        name = self.random.choice("ab")
        self.queue.leave(name)
        self.model.workers.pop(name, None)

    def user(self) -> None:
        job, needs = self.pick(), self.random.choice(NEEDS)
        if job is None:
            return
        name = self.random.choice(["cancel", "pause", "resume", "requeue", "save", "sample", "remove"])
        ask = {
            "cancel": lambda: self.queue.cancel(job.id),
            "pause": lambda: self.queue.pause(job.id),
            "resume": lambda: self.queue.resume(job.id),
            "requeue": lambda: self.queue.requeue(job.id, {}, needs=needs),
            "save": lambda: self.queue.request(job.id, save=True),
            "sample": lambda: self.queue.request(job.id, sample=True),
            "remove": lambda: self.queue.remove(job.id),
        }[name]
        before = [Known(**vars(known)) for known in self.model.jobs]
        self.model.lose_silent()
        change = self.expected_change(name, job, needs)
        if change is None:
            self.model.jobs = before
            with pytest.raises(Conflict):
                ask()
        else:
            ask()
            change()

    def expected_change(self, name, job, needs):
        """What a user's wish does to the model; None when it has to be refused."""

        def become(**values):
            return lambda: vars(job).update(values)

        now = self.clock.now
        running = job.status is RUNNING
        changes = {
            "cancel": [
                (job.status in (QUEUED, PAUSED), become(status=JobStatus.CANCELLED)),
                (running, become(stop=Stop.CANCEL)),
            ],
            "pause": [
                (job.status is QUEUED, become(status=PAUSED)),
                (running and job.stop is not Stop.CANCEL, become(stop=Stop.PAUSE)),
            ],
            "resume": [
                (job.status is PAUSED, become(status=QUEUED, waiting_since=now)),
                (running and job.stop is Stop.PAUSE, become(stop=None)),
            ],
            "save": [(running, lambda: job.wishes.add("save"))],
            "sample": [(running, lambda: job.wishes.add("sample"))],
            "remove": [(job.status.ended, lambda: self.model.jobs.remove(job))],
            "requeue": [
                (
                    job.status in (JobStatus.FAILED, JobStatus.CANCELLED),
                    lambda: (
                        become(
                            status=QUEUED, needs=needs, waiting_since=now, stalled=0, best=0, wishes=set()
                        )(),
                        self.model.to_the_end(job),
                    ),
                )
            ],
        }
        return next((change for allowed, change in changes[name] if allowed), None)

    def move(self) -> None:
        job, other = self.pick(), self.pick()
        waiting = [known for known in self.model.jobs if known.status is QUEUED]
        if job not in waiting or other not in waiting or other.lane is not job.lane or other is job:
            return
        self.model.lose_silent()
        self.queue.move(job.id, before=other.id)
        self.model.jobs.remove(job)
        self.model.jobs.insert(self.model.jobs.index(other), job)

    def wait(self) -> None:
        self.clock.advance(self.random.choice([0.3, 0.5, 0.5, 2, 2, 30, 61]))


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_calls_ends_as_the_promises_say(queue, clock, seed):
    game = Game(queue, clock, seed)
    for _ in range(250):
        game.play()
