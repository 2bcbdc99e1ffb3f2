"""Files on their way into a character. It goes on when the browser that sent them is gone."""

import html
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from isengard.domain.character import AddedImage, RefusedImage
from isengard.errors import NotFound
from tabs.common import handled

Take = Callable[[str, Sequence[Path]], Iterator[AddedImage | RefusedImage]]

#: Seconds a request waits for news. Proxies in front of the app give up on a request after a minute or two.
WAIT_S = 20.0
#: Requests that wait at once; each holds one of the server's threads. Further ones are answered with what there is.
WAITING = 16
#: Seconds the results of an ended intake are kept.
KEPT_S = 600.0


@dataclass
class Intake:
    """One upload: results so far, and how it ended."""

    results: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    ended_at: float | None = None


class Intakes:
    """Takes uploads in threads, two at a time, and tells how far each is."""

    def __init__(self, take: Take, *, wait_s: float = WAIT_S, at_once: int = 2) -> None:
        self._take = take
        self._wait_s = wait_s
        self._places = threading.Semaphore(at_once)
        self._news = threading.Condition()
        self._waiting = 0
        self._intakes: dict[str, Intake] = {}

    def start(self, character_id: str, files: Sequence[tuple[Path, str]]) -> dict[str, Any]:
        """Take uploaded files, each under the name the user knows it by; the answer is that of `look`."""
        intake_id = uuid.uuid4().hex
        with self._news:
            self._forget_old()
            intake = self._intakes[intake_id] = Intake()
        arguments = (intake, character_id, tuple(files))
        threading.Thread(target=self._run, args=arguments, name="intake", daemon=True).start()
        return self.look(intake_id, seen=0)

    def look(self, intake_id: str, *, seen: int) -> dict[str, Any]:
        """The results after the first ``seen``, waiting for news if there are none. Raises: NotFound."""
        with self._news:
            intake = self._intakes.get(intake_id)
            if intake is None:
                raise NotFound("the app was started anew while it took this file in: send it again")
            self._waiting += 1
            self._news.wait_for(
                lambda: intake.ended_at is not None or len(intake.results) > seen,
                timeout=self._wait_s if self._waiting <= WAITING else 0,
            )
            self._waiting -= 1
            return {
                "intake": intake_id,
                "results": intake.results[seen:],
                "done": intake.ended_at is not None,
                "error": intake.error,
            }

    def _run(self, intake: Intake, character_id: str, files: Sequence[tuple[Path, str]]) -> None:
        try:
            with self._places:
                handled(self._take_in)(intake, character_id, files)
        except gr.Error as error:
            intake.error = html.unescape(str(error.message))
        finally:
            with self._news:
                intake.ended_at = time.monotonic()
                self._news.notify_all()

    def _take_in(self, intake: Intake, character_id: str, files: Sequence[tuple[Path, str]]) -> None:
        with tempfile.TemporaryDirectory(prefix="intake-", dir=files[0][0].parent) as folder:
            named = [
                _move(path, Path(folder) / str(number), name) for number, (path, name) in enumerate(files)
            ]
            for result in self._take(character_id, named):
                with self._news:
                    intake.results.append(told(result))
                    self._news.notify_all()

    def _forget_old(self) -> None:
        limit = time.monotonic() - KEPT_S
        for intake_id, intake in list(self._intakes.items()):
            if intake.ended_at is not None and intake.ended_at < limit:
                del self._intakes[intake_id]


def told(result: AddedImage | RefusedImage) -> dict[str, Any]:
    """A result for the browser."""
    if isinstance(result, AddedImage):
        return {"file": result.filename, "added": True, "notes": list(result.notes)}
    return {"file": result.filename, "added": False, "notes": [result.reason]}


def safe_name(name: str, instead: str) -> str:
    """The file's own name as a name on this disk: no folders, nothing unprintable, at most 60 characters."""
    plain = "".join(letter for letter in Path(name).name if letter.isprintable()).lstrip(".")
    path = Path(plain or instead)
    return f"{path.stem[:50]}{path.suffix[:10]}"


def _move(path: Path, folder: Path, name: str) -> Path:
    folder.mkdir()
    return Path(shutil.move(path, folder / safe_name(name, path.name)))
