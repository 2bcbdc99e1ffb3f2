"""One worker for each device: the lock that makes it the only one, and the process that brings it back."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from filelock import FileLock, Timeout

from isengard.announcer import Announcer
from isengard.equipment import Equipment
from isengard.errors import Conflict, DiskFull, DiskReadOnly, QueueUnavailable
from isengard.files import disk_full_as_error
from isengard.queue.base import JobQueue
from isengard.settings import ROOT, Settings, WorkerMode
from isengard.worker import Worker

log = logging.getLogger(__name__)

#: Longer than another process takes to find out whether the lock is held.
LOCK_TIMEOUT_S = 2.0
LOOK_EVERY_S = 0.25
#: Time a worker has for saving when it is told to end: less than the 10 s after which Docker and others kill everything.
GRACE_S = 8.0
#: Pauses between the starts of a worker that dies at once; a worker that lives for STABLE_S starts anew.
FIRST_PAUSE_S, LAST_PAUSE_S, STABLE_S = 0.5, 30.0, 60.0
#: The worker prints its log and its libraries' progress for weeks. All that matters is in the log, too.
MAX_OUTPUT_BYTES = 5_000_000

#: Host networking gives all containers of a machine one host name, and each of them may have a cuda:0 of its own.
TWO_MACHINES = " (if it is another machine that has this name, give this one its own: ISENGARD_MACHINE)"


class WorkerRunning(Conflict):
    """Another process is this device's worker."""


def worker_name(settings: Settings) -> str:
    """The same at every start, so that a worker can take back what its killed predecessor held."""
    return f"{settings.machine_name}/{settings.device}"


def lock_path(settings: Settings) -> Path:
    return lock_of(settings, worker_name(settings))


def lock_of(settings: Settings, worker: str) -> Path:
    """The file that a worker, of whatever machine, holds locked as long as it lives."""
    return settings.data_dir / "workers" / f"{worker.replace('/', '_').replace(':', '_')}.lock"


@contextmanager
def only_worker(settings: Settings, queue: JobQueue, *, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[str]:
    """Be the only worker of the device and give its name; jobs of a dead predecessor are waiting again.

    Raises:
        WorkerRunning: another process is.
    """
    path, name = lock_path(settings), worker_name(settings)
    lock = FileLock(path)
    try:
        with disk_full_as_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout_s)
    except Timeout:
        raise WorkerRunning(
            f"a worker for {name} is running already on {settings.data_dir}; stop it first, or choose another device"
            + ("" if settings.redis_url is None else TWO_MACHINES)
        ) from None
    try:
        released = queue.release_worker(name)
        log.info("worker ready", extra={"worker": name, "taken_back": released})
        yield name
    finally:
        lock.release()


@contextmanager
def own_card(settings: Settings, cards: Sequence[str]) -> Iterator[Settings]:
    """Keep other workers on this data folder, those in other containers too, off the card that this one uses.

    ``auto`` takes the first card that is free; where there are several, the settings it gives name that one.

    Args:
        settings: With the device as it was asked for.
        cards: The ids of the cards, by index; none on a machine without.

    Raises:
        WorkerRunning: another worker has the card, or each of them has one.
    """
    wanted = range(len(cards))
    if settings.device != "auto":
        index = int(settings.device.partition(":")[2] or 0)
        wanted = wanted[index : index + 1]
    if not wanted:
        yield settings
        return
    folder = settings.data_dir / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    for index in wanted:
        lock = FileLock(folder / f"card-{cards[index]}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        try:
            yield settings if len(cards) == 1 else settings.model_copy(update={"device": f"cuda:{index}"})
        finally:
            lock.release()
        return
    which = f"each of the {len(cards)} cards here" if settings.device == "auto" else settings.device
    raise WorkerRunning(
        f"{which} has a worker on {settings.data_dir} already; start one worker for each card, or stop another first"
    )


class Supervisor:
    """Keeps one worker process alive, unless and until another process is the device's worker."""

    def __init__(
        self,
        *,
        command: Sequence[str],
        environment: Mapping[str, str],
        lock: Path,
        output: Path,
        grace_s: float = GRACE_S,
        first_pause_s: float = FIRST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``output`` is written anew with what the process prints: a crash of the interpreter is in no log."""
        self._command, self._environment, self._lock, self._output = command, environment, lock, output
        self._grace_s, self._first_pause_s, self._clock = grace_s, first_pause_s, clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        with suppress(OSError):  # what cannot be removed is appended to
            self._output.unlink(missing_ok=True)
        self._thread.start()

    def stop(self) -> None:
        """End the worker: it gets the grace time for saving its job, then it is killed."""
        self._stop.set()
        self._thread.join()

    def _supervise(self) -> None:
        pause_s = self._first_pause_s
        while not self._stop.is_set():
            started_at = self._clock()
            try:
                if is_held(self._lock):
                    self._stop.wait(LOOK_EVERY_S)
                    continue
                code = self._run_once()
            except OSError as error:  # the disk is full or read-only, and will not be for ever
                log.warning("no worker can start", extra={"reason": str(error)})
            else:
                if self._stop.is_set():
                    return
                log.warning("worker ended", extra={"returncode": code, "output": str(self._output)})
            if self._clock() - started_at >= STABLE_S:
                pause_s = self._first_pause_s
            self._stop.wait(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _run_once(self) -> int:
        self._output.parent.mkdir(parents=True, exist_ok=True)
        with self._output.open("ab") as output:
            child = subprocess.Popen(  # noqa: S603  # our own command line
                self._command,
                env=self._environment,
                cwd=ROOT,  # where ``-m isengard`` is found
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for the parent, who ends the child
            )
        while child.poll() is None and not self._stop.wait(LOOK_EVERY_S):
            self._bound_output()
        child.terminate()
        try:
            return child.wait(self._grace_s)
        except subprocess.TimeoutExpired:
            log.warning("worker killed", extra={"grace_s": self._grace_s})
            child.kill()
            return child.wait()

    def _bound_output(self) -> None:
        with suppress(OSError):
            if self._output.stat().st_size > MAX_OUTPUT_BYTES:
                os.truncate(self._output, 0)  # what the child prints next is appended


def is_held(lock: Path) -> bool:
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def end_with_parent(parent: int, stop: threading.Event) -> None:
    """Set ``stop`` when the process ``parent`` is gone, however it ended."""

    def watch() -> None:
        while os.getppid() == parent and not stop.wait(LOOK_EVERY_S):
            pass
        stop.set()

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Give an event that SIGTERM and SIGINT set; a second signal ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    former = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def local_worker(settings: Settings, queue: JobQueue, equip: Callable[[], Equipment]) -> Iterator[None]:
    """See to it that a worker runs while the block does, as ``settings.worker`` says.

    Nothing is started as long as another process is the device's worker; when that one ends, ours takes over.
    """
    if settings.worker is WorkerMode.NONE:
        yield
    elif settings.worker is WorkerMode.THREAD:
        stop = threading.Event()
        thread = threading.Thread(
            target=_work, args=(settings, queue, equip(), stop), name="worker", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(GRACE_S)  # what hangs longer ends with the process, as a killed worker does
    else:
        supervisor = Supervisor(
            command=[sys.executable, "-m", "isengard", "worker", "--parent", str(os.getpid())],
            environment=settings.child_environment(),
            lock=lock_path(settings),
            output=settings.log_file("worker-output").with_suffix(".log"),
        )
        supervisor.start()
        try:
            yield
        finally:
            supervisor.stop()


def _work(settings: Settings, queue: JobQueue, equipment: Equipment, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            with only_worker(settings, queue, timeout_s=LOOK_EVERY_S) as name:
                announcer = Announcer(queue=queue, name=name, describe=equipment.describe)

                def after_job(announcer: Announcer = announcer) -> None:
                    announcer.soon()
                    equipment.after_job()

                worker = Worker(
                    queue=queue,
                    handlers=equipment.handlers,
                    name=name,
                    lease_s=settings.lease_s,
                    after_job=after_job,
                    check_files=equipment.check_files,
                )
                with equipment.beside(), announcer.announcing():
                    worker.run(stop)
        except WorkerRunning:
            continue
        except (QueueUnavailable, DiskFull, DiskReadOnly) as error:
            log.warning("no worker can start", extra={"reason": str(error)})
            stop.wait(LOOK_EVERY_S)
