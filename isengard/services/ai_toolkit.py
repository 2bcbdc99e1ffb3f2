"""What the page and the command line may do with AI-Toolkit: look whether it is here, and install it."""

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.errors import Conflict, IsengardError, JobCancelled
from isengard.store.ai_toolkit import Checkout, CheckoutState, Report, Stage

log = logging.getLogger(__name__)

#: Seconds for which an answer holds: every open page asks again and again.
LOOK_EVERY_S = 1.0


class Outcome(StrEnum):
    """How the last installation in this process ended."""

    NONE = ""  # there was none, or it still runs
    INSTALLED = "installed"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Installation(Frozen):
    """An installation in the background of this process."""

    running: bool = False
    stage: Stage | None = None
    fraction: float | None = None
    message: str = ""
    outcome: Outcome = Outcome.NONE
    error: str = ""
    ended: int = Field(0, description="installations that have ended in this process")


class AiToolkitService:
    """Looks at the checkout, at most every `LOOK_EVERY_S` seconds, and installs it one at a time."""

    def __init__(self, *, checkout: Checkout, clock: Callable[[], float] = time.monotonic) -> None:
        self._checkout, self._clock = checkout, clock
        self._seen: tuple[float, CheckoutState] | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._cancelled = threading.Event()
        self._installation = Installation()

    def state(self) -> CheckoutState:
        seen, now = self._seen, self._clock()
        if seen is None or now - seen[0] >= LOOK_EVERY_S:
            seen = self._seen = (now, self._checkout.state())
        return seen[1]

    def absence(self) -> str:
        """Why no training can use it now, and the way out; empty when one can."""
        state = self.state()
        return "" if state.usable else state.reason

    def install(self, report: Report) -> CheckoutState:
        """Install what is missing, and return when that is done. Raises: as `Checkout.install`."""
        try:
            return self._checkout.install(report)
        finally:
            self._seen = None

    def start(self) -> None:
        """Install in the background; `installation` tells how far it is.

        Raises:
            Conflict: that runs already.
        """
        with self._lock:
            if self._installation.running:
                raise Conflict("AI-Toolkit is being installed already; wait until that has ended")
            self._cancelled.clear()
            self._installation = Installation(
                running=True, stage=Stage.SOURCE, ended=self._installation.ended
            )
            self._thread = threading.Thread(target=self._work, name="install-ai-toolkit", daemon=True)
            self._thread.start()

    def installation(self) -> Installation:
        return self._installation

    def cancel(self) -> None:
        """Ask the installation in the background to end; what is whole by then stays."""
        self._cancelled.set()

    def wait(self, timeout_s: float) -> None:
        """Return when nothing is installed in the background any more, or after this time."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _work(self) -> None:
        outcome, said = Outcome.FAILED, "this is a bug in Isengard; the log has the details"
        try:
            self.install(self._report)
            outcome, said = Outcome.INSTALLED, ""
        except JobCancelled:
            outcome, said = Outcome.CANCELLED, ""
        except (IsengardError, OSError) as error:
            log.info("installation failed", extra={"error": str(error)})
            said = str(error)
        finally:
            ended = self._installation.ended + 1
            self._installation = Installation(outcome=outcome, error=said, ended=ended)

    def _report(self, stage: Stage, fraction: float | None, message: str) -> None:
        if self._cancelled.is_set():
            raise JobCancelled
        self._installation = self._installation.model_copy(
            update={"stage": stage, "fraction": fraction, "message": message}
        )
