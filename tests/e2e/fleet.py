"""Worker processes that share a Valkey server, and all that can befall them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from random import Random

from isengard.domain.job import JobKind, JobStatus
from isengard.files import PARTIAL
from isengard.settings import ROOT
from tests.redis_servers import Network
from tests.waiting import PATIENCE_S

#: How often each befalls them.
DISTURBANCES = {"kill": 6, "stop": 5, "cut": 1, "outage": 2}
#: How long a worker is stopped or cut off, and the server away: so many leases, from and to.
TOO_LONG = (1.2, 2.0)
OUTAGE = (0.1, 1.3)


@dataclass(frozen=True)
class Disturbance:
    kind: str
    ended: int  # jobs, before it comes
    pause_s: float  # since the last one
    leases: float  # it lasts so many
    victim: float  # in [0, 1), of those it can befall
    while_writing: bool  # or at any moment


def schedule(dice: Random, *, before: int) -> list[Disturbance]:
    """What will happen until ``before`` jobs have ended."""
    kinds = [kind for kind, times in DISTURBANCES.items() for _ in range(times)]
    dice.shuffle(kinds)
    moments = sorted(dice.sample(range(2, before), len(kinds)))
    return [
        Disturbance(
            kind=kind,
            ended=moment,
            pause_s=dice.uniform(0, 1),
            leases=dice.uniform(*(OUTAGE if kind == "outage" else TOO_LONG)),
            victim=dice.random(),
            while_writing=dice.random() < 0.5,
        )
        for kind, moment in zip(kinds, moments, strict=True)
    ]


class Machine:
    """One worker process, which is started again when it has ended."""

    def __init__(self, name, start):
        self.name, self._start, self.stopped = name, start, False
        self.start()

    def start(self):
        self.pid = self._start(self.name)

    def send(self, number):
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def is_alive(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self):
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self):
        until = time.monotonic() + PATIENCE_S
        while self.is_alive:
            if time.monotonic() > until:
                raise TimeoutError(f"worker {self.name} did not end")
            time.sleep(0.01)


class Fleet:
    """Three workers, each with a network of its own between itself and the server."""

    def __init__(self, app, server, *, notes, lease_s):
        self._app, self._server, self._lease_s = app, server, lease_s
        self._networks = {name: Network(server.port) for name in ("near", "other", "far")}
        with notes.with_suffix(".output").open("w") as output:
            self._nursery = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.watched_worker", str(notes)],
                env={**app.settings.child_environment(), "OMP_NUM_THREADS": "1"},
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        self.machines = {name: Machine(name, self._start) for name in self._networks}
        self.server_is_up = True
        self.diary = []
        self._undo = []  # (when, what)

    @property
    def is_whole(self):
        return not self._undo

    def tick(self):
        """End what has lasted long enough, and start again what has ended."""
        for moment, what in list(self._undo):
            if time.monotonic() >= moment:
                self._undo.remove((moment, what))
                what()
        for machine in self.machines.values():
            if not machine.is_alive:
                self._note(f"{machine.name} has ended, and is started again")
                machine.start()

    def suffer(self, disturbance):
        """Whether it could be done just now: most of them befall a machine that is at work."""
        if disturbance.kind == "outage":
            self._note(f"the server is killed for {disturbance.leases:.1f} leases")
            self._server.kill()
            self.server_is_up = False
            self._later(disturbance, self._bring_back)
            return True
        victims = self._at_work()
        if not victims:
            return False
        victim, job = victims[int(disturbance.victim * len(victims))]
        if disturbance.while_writing:
            self._wait_for_a_write(job)
        words = f"{disturbance.kind} {victim.name} at {job.id} ({job.progress and job.progress.phase})"
        self._note(f"{words} for {disturbance.leases:.1f} leases")
        if disturbance.kind == "kill":
            victim.kill()
            victim.start()
        elif disturbance.kind == "stop":
            self._stop(victim, disturbance)
        else:
            self._networks[victim.name].cut()
            self._later(disturbance, self._networks[victim.name].mend)
        return True

    def end(self):
        """Tell all workers to end, so that nothing of theirs is under way any more."""
        for machine in self.machines.values():
            machine.send(signal.SIGTERM)
        for machine in self.machines.values():
            machine.wait()

    def kill(self):
        for machine in self.machines.values():
            machine.kill()
        self._nursery.kill()
        self._nursery.communicate()
        for network in self._networks.values():
            network.close()

    def _start(self, name):
        self._nursery.stdin.write(f"{name} {self._networks[name].url}\n")
        self._nursery.stdin.flush()
        return int(self._nursery.stdout.readline())

    def _at_work(self):
        """Machines that own a job; trainings count thrice, as they last longer than it takes to look."""
        found = []
        for job in self._app.queue.jobs(statuses=[JobStatus.RUNNING]):
            machine = self.machines[job.worker.partition("/")[0]]
            if not machine.stopped:
                found += [(machine, job)] * (3 if job.kind is JobKind.TRAIN_LORA else 1)
        return found

    def _wait_for_a_write(self, job):
        """Until something of the job is about to take its place; not for long, as it may be over."""
        settings = self._app.settings
        until = time.monotonic() + 1
        while time.monotonic() < until:
            if any(settings.images_dir.glob(f"{job.id}-*{PARTIAL}*")):
                return
            if any((settings.runs_dir / job.id).rglob(f"*{PARTIAL}*")):
                return
            time.sleep(0.001)

    def _stop(self, victim, disturbance):
        victim.send(signal.SIGSTOP)
        victim.stopped = True

        def wake():
            victim.stopped = False
            self._note(f"{victim.name} goes on")
            victim.send(signal.SIGCONT)

        self._later(disturbance, wake)

    def _bring_back(self):
        self._note("the server comes back")
        self._server.start()
        self.server_is_up = True

    def _later(self, disturbance, what):
        self._undo.append((time.monotonic() + disturbance.leases * self._lease_s, what))

    def _note(self, words):
        self.diary.append(f"{time.strftime('%H:%M:%S')} {words}")
