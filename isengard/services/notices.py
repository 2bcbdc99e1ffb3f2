"""Tells a webhook how runs ended: each end once, whichever worker it was and whatever happened to it then.

A worker notes each claim before it begins to work. The note stays until somebody has told how that claim ended: this
worker, the next one after a crash, or a worker elsewhere. Whether and how it ended only the queue says. So an end is told
that no worker lived to see, and none that the queue did not take. Who dies between the receiver's answer and the removal
of the note, some milliseconds, leaves an end that is told twice.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from isengard.domain.job import Job, JobKind, JobStatus
from isengard.errors import IsengardError, NotFound
from isengard.logs import redact
from isengard.queue.base import JobQueue
from isengard.store.outbox import Outbox
from isengard.store.webhook import Outcome

log = logging.getLogger(__name__)

#: Images are told of when they took so long.
LONG_S = 60.0
#: Of an error, so much is shown: Discord takes 2,000 characters.
SHOWN = 1500
#: Seconds between two looks at what workers left behind that died.
LOOK_EVERY_S = 30.0
#: Pauses between two tries, and how long after its end a run is told of.
FIRST_PAUSE_S, LAST_PAUSE_S, GIVE_UP_S = 2.0, 120.0, 3600.0
#: A process that ends waits so long for a message on its way.
ENDING_S = 1.0

Post = Callable[[Mapping[str, Any]], Outcome]
Report = TypeVar("Report")
Result = TypeVar("Result")


def message(job: Job, *, page: str | None) -> dict[str, Any] | None:
    """What is told of an ended job; None when nothing is. ``text`` and ``content``: what Slack and Discord show."""
    training = job.kind is JobKind.TRAIN_LORA
    if not training and not is_long(job):
        return None
    error = redact(job.error.message) if job.error else None
    outcome = {JobStatus.SUCCEEDED: "done", JobStatus.CANCELLED: "cancelled"}.get(
        job.status, f"failed: {error}"
    )
    name = str(job.payload.get("name", "")) or None
    what = {
        JobKind.TRAIN_LORA: f"{name}: training",
        JobKind.CAPTION_IMAGES: f"{name}: captions",
        JobKind.EVALUATE_CHECKPOINTS: f"{name}: comparison of the checkpoints",
    }.get(job.kind, "Images")
    said = f"{what} {outcome}"[:SHOWN]
    return {
        "event": "job_ended",
        "job": job.id,
        "kind": job.kind,
        "status": job.status,
        "character": name,
        "lora": (job.result or {}).get("lora"),
        "error": error,
        "finished_at": job.finished_at,
        "url": page,
        "text": said,
        "content": said,
    }


def is_long(job: Job) -> bool:
    """Whether one has looked elsewhere meanwhile."""
    return (job.finished_at or 0) - (job.started_at or 0) >= LONG_S


class Notices:
    """Keeps the notes, and a thread that sends."""

    def __init__(
        self,
        *,
        queue: JobQueue,
        outbox: Outbox,
        post: Post | None,
        page: str | None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``post``: None where nobody wants to be told. ``page``: its address, where it is known."""
        self._queue, self._outbox, self._post, self._page = queue, outbox, post, page
        self._clock = clock
        self._wake = threading.Event()
        self._pause_s = FIRST_PAUSE_S

    def watched(self, handler: Callable[[Job, Report], Result]) -> Callable[[Job, Report], Result]:
        """The handler, which notes the claim first."""
        if self._post is None:
            return handler

        def run(job: Job, report: Report) -> Result:
            try:
                self._outbox.add(job.id, job.fence)
            except (IsengardError, OSError) as error:
                log.warning("end will not be told", extra={"reason": str(error)})
            return handler(job, report)

        return run

    def soon(self) -> None:
        """A job may have ended."""
        self._wake.set()

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send while the block runs. What is not sent then is left to the next one."""
        if self._post is None:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._go_on, args=(self._post, done), name="webhook", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            self._wake.set()
            thread.join(ENDING_S)

    def _go_on(self, post: Post, done: threading.Event) -> None:
        pause_s = self.send(post)
        while not done.is_set():
            self._wake.wait(pause_s)
            self._wake.clear()
            pause_s = self.send(post)

    def send(self, post: Post) -> float:
        """Tell what there is to tell; seconds until the next try."""
        try:
            with self._outbox.alone() as alone:
                entries = self._outbox.entries() if alone else ()
                settled = [self._settled(*entry, post) for entry in entries]
        except (IsengardError, OSError) as error:
            log.warning("webhook waits", extra={"reason": str(error)})
            settled = [False]
        if all(settled):
            self._pause_s = FIRST_PAUSE_S
            return LOOK_EVERY_S
        pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, LAST_PAUSE_S)
        return pause_s

    def _settled(self, job_id: str, fence: int, post: Post) -> bool:
        """Whether nothing is left to do about a claim for now."""
        try:
            job = self._queue.get(job_id)
        except NotFound:
            self._outbox.remove(job_id, fence)
            return True
        if job.fence == fence and not job.status.ended:
            return True
        said = message(job, page=self._page) if job.fence == fence else None
        outcome = post(said) if said else Outcome.TAKEN
        if outcome is Outcome.AWAY and self._clock() < (job.finished_at or 0) + GIVE_UP_S:
            return False
        if outcome is not Outcome.TAKEN:
            log.warning("end was not told", extra={"job_id": job_id, "outcome": outcome})
        self._outbox.remove(job_id, fence)
        return True
