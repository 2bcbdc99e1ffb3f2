"""A run of many jobs on a fleet that is disturbed all the time, and the traces it leaves."""

import json
import time
from random import Random

from isengard.domain.job import JobStatus
from tests.e2e.fleet import Fleet, schedule

#: Jobs that wait or run, at most: a user asks for more when something is done.
AT_ONCE = 6
#: At least so many, for the disturbances need somebody at work.
AT_WORK = 3


class Chaos:
    """Asks for ``jobs``, each by its name, in a random order; ``submit`` gives the id of one."""

    def __init__(self, app, server, *, jobs, submit, notes, lease_s, seed):
        dice = Random(seed)
        self.app, self._submit, self._notes = app, submit, notes
        self._total, self._waiting = len(jobs), dice.sample(jobs, len(jobs))
        self.plan = schedule(dice, before=len(jobs) - 3 * AT_ONCE)
        self.asked = {}  # name by job id
        self.fleet = Fleet(app, server, notes=notes, lease_s=lease_s)

    def run(self, *, limit_s):
        """Until all jobs have ended and nothing disturbs any more. Raises: TimeoutError."""
        until = time.monotonic() + limit_s
        quiet_since = time.monotonic()
        while not self._is_over():
            if time.monotonic() > until:
                raise TimeoutError(f"it did not end within {limit_s} seconds\n{self.report()}")
            self.fleet.tick()
            if self.fleet.server_is_up:
                ended = sum(job.status.ended for job in self.jobs())
                self._ask(ended)
                if self._is_due(ended, time.monotonic() - quiet_since) and self.fleet.suffer(self.plan[0]):
                    self.plan.pop(0)
                    quiet_since = time.monotonic()
            time.sleep(0.05)
        self.fleet.end()

    def _is_over(self):
        going_on = self._waiting or not self.fleet.is_whole
        return not going_on and all(job.status.ended for job in self.jobs())

    def _ask(self, ended):
        """Keep some jobs waiting, and hold others back for the disturbances to come."""
        up_to = ended + AT_ONCE
        if self.plan:
            up_to = min(up_to, max(self.plan[0].ended + AT_ONCE, ended + AT_WORK))
        while self._waiting and len(self.asked) < up_to:
            name = self._waiting.pop()
            self.asked[self._submit(self.app, name)] = name

    def _is_due(self, ended, quiet_s):
        return self.plan and ended >= self.plan[0].ended and quiet_s >= self.plan[0].pause_s

    # Traces

    def jobs(self):
        return self.app.queue.jobs(limit=1000)

    def claims(self):
        """When each job was claimed and on which machine, as the server says. The first claim has fence 1, and so on."""
        return {
            job_id: [
                (event.at, event.detail.removeprefix("by ").partition("/")[0])
                for event in self.app.queue.events(job_id)
                if event.kind == "claimed"
            ]
            for job_id in self.asked
        }

    def lines(self):
        """What the workers logged while they had a job."""
        texts = [path.read_text() for path in self.app.settings.logs_dir.glob("worker*.jsonl")]
        lines = [json.loads(line) for text in texts for line in text.splitlines()]
        return sorted((line for line in lines if "job_id" in line), key=lambda line: line["time"])

    def notes(self):
        """Each file that took its place: when, which, for which job and fence, on which machine."""
        return [json.loads(line) for line in self._notes.read_text().splitlines()]

    def report(self):
        """What happened, and what is known about the jobs that did not succeed."""
        told = list(self.fleet.diary)
        for job in self.jobs() if self.fleet.server_is_up else ():
            if job.status is not JobStatus.SUCCEEDED:
                events = [f"{event.kind} {event.detail}" for event in self.app.queue.events(job.id)]
                about = job.model_dump(mode="json", exclude={"payload"}, exclude_none=True)
                told.append(f"{about}\n  {events}")
        return "\n".join([*told, *map(str, self.lines()[-20:])])
