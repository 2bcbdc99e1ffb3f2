"""All characters with how ready they are. Many viewers ask for it again and again; the disk is asked now and then."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from isengard.domain.character import Character
from isengard.domain.model import ModelCard
from isengard.domain.readiness import Readiness
from isengard.errors import IsengardError
from isengard.wiring import Application

#: Seconds that viewers may see what was true; whoever changes something sees the truth.
OLD_S = 3.0
#: The same for the models on this machine.
MODELS_OLD_S = 30.0


@dataclass(frozen=True)
class Roster:
    """The characters at one moment."""

    known: Mapping[str, tuple[Character, Readiness]]
    damaged: Mapping[str, str]
    least: int


class Reader:
    """Reads the roster; one reading serves everybody for some seconds."""

    def __init__(self, app: Application, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._lock = threading.Lock()
        self._last: tuple[float, Roster] | None = None
        self._least: tuple[float, int] | None = None

    def read(self, *, fresh: bool) -> Roster:
        """The characters; ``fresh`` as they are now, else perhaps as they were a moment ago."""
        with self._lock:
            now = self._clock()
            if fresh or self._last is None or now - self._last[0] > OLD_S:
                damaged = {each.id: each.reason for each in self._app.characters.damaged()}
                self._last = now, Roster(dict(self._known()), damaged, self._read_least(now))
            return self._last[1]

    def least(self) -> int:
        """The side a picture should have for every base model that can be trained on this machine; 0 without one."""
        with self._lock:
            return self._read_least(self._clock())

    def _known(self) -> Iterator[tuple[str, tuple[Character, Readiness]]]:
        for character in self._app.characters.list():
            try:
                yield character.id, (character, self._app.characters.readiness(character.id))
            except IsengardError:  # deleted or damaged since: the next reading tells
                continue

    def _read_least(self, now: float) -> int:
        if self._least is None or now - self._least[0] > MODELS_OLD_S:
            cards = self._app.catalog.models()
            there = [card for card in cards if card.trainable and not self._app.training.lacking(card)]
            self._least = now, largest_least(there)
        return self._least[1]


def largest_least(models: Iterable[ModelCard]) -> int:
    """The smallest resolution of the most demanding model."""
    return max((model.resolutions[0] for model in models), default=0)
