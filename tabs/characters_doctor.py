"""The doctor of photos in the characters tab: a look at all photos, what it found, and what was done about it."""

import html
import threading
from dataclasses import dataclass
from typing import Any

import gradio as gr

from isengard.domain.base import validated
from isengard.domain.character import Character, FormerImage
from isengard.domain.doctor import Examination, Finding, Fix
from isengard.errors import IsengardError
from isengard.services.characters import CharacterService
from isengard.services.doctor import DoctorService
from tabs.common import handled
from tabs.pictures import Pictures


class _StoppedError(Exception):
    """Somebody has pressed the button that stops a look at the photos."""


@dataclass
class Round:
    """One look at all photos of a character."""

    done: int = 0
    photos: int = 0
    error: str = ""
    running: bool = True
    stopped: bool = False


class Doctor:
    """The handlers of the doctor's part; a look goes on when the browser that asked for it is gone."""

    def __init__(self, *, doctor: DoctorService, characters: CharacterService, pictures: Pictures) -> None:
        self._doctor, self._characters, self._pictures = doctor, characters, pictures
        self._rounds: dict[str, Round] = {}
        self._current: dict[str, tuple[Examination | None, Character, bool]] = {}
        self._lock = threading.Lock()
        self._place = threading.Semaphore()

    def examine(self, character: str) -> dict[str, Any]:
        """Begin to look at all photos, unless somebody does already; the answer is that of `look`."""
        photos = len(self._characters.get(character).images)
        with self._lock:
            present = self._rounds.get(character)
            if present is None or not present.running:
                present = self._rounds[character] = Round(photos=photos)
                threading.Thread(
                    target=self._run, args=(character, present), name="doctor", daemon=True
                ).start()
        return self.look(character)

    def look(self, character: str) -> dict[str, Any]:
        """How far the look at the photos is."""
        found = self._rounds.get(character) or Round(running=False)
        return {"running": found.running, "done": found.done, "photos": found.photos, "error": found.error}

    def stop(self, character: str) -> dict[str, Any]:
        """Stop after the photo that is looked at now."""
        if found := self._rounds.get(character):
            found.stopped = True
        return self.look(character)

    def fix(self, character: str, image: str, fix: dict[str, Any]) -> dict[str, Any]:
        """Do about a photo what a finding proposes."""
        self._characters.fix(character, image, validated(Fix, fix))
        return {}

    def undo(self, character: str, image: str) -> dict[str, Any]:
        """Bring a photo back as it was."""
        self._characters.bring_back(character, image)
        return {}

    def forget(self, character: str, image: str) -> dict[str, Any]:
        """Delete a photo that was left out for good."""
        self._characters.forget(character, image)
        return {}

    def shown(self, character: Character | None) -> dict[str, Any]:
        """What is shown of a character; without photos, and without any that could be brought back, nothing."""
        if character is None or not (character.images or character.former):
            return {}
        try:
            last = self._doctor.last(character.id)
            current = self._is_current(last, character)
        except IsengardError:  # deleted or damaged since: the next painting tells
            return {}
        return {
            "character": character.id,
            "photos": len(character.images),
            "round": self.look(character.id),
            "current": current,
            "last": last and self._told(last, character),
            "former": [self._former(character, entry) for entry in character.undoable],
        }

    def _is_current(self, last: Examination | None, character: Character) -> bool:
        """The doctor's answer, asked for anew when something has changed: it reads all captions for it."""
        known = self._current.get(character.id)
        if known is None or known[0] is not last or known[1] != character:
            known = self._current[character.id] = (last, character, self._doctor.is_current(character.id))
        return known[2]

    def _run(self, character: str, present: Round) -> None:
        def report(done: int, photos: int) -> None:
            if present.stopped:
                raise _StoppedError
            present.done, present.photos = done, photos

        @handled
        def examine() -> None:
            try:
                self._doctor.examine(character, report=report)
            except _StoppedError:
                return

        try:
            with self._place:
                examine()
        except gr.Error as error:
            present.error = html.unescape(str(error.message))
        finally:
            present.running = False

    def _told(self, last: Examination, character: Character) -> dict[str, Any]:
        findings = [self._finding(each, character) for each in last.findings]
        of_photos = {
            str(each.image): self._photo(character, each.image) for each in last.findings if each.image
        }
        return {
            "made_at": last.made_at,
            "findings": findings,
            "pictures": of_photos,
            "facts": last.facts.model_dump(mode="json"),
        }

    def _finding(self, finding: Finding, character: Character) -> dict[str, Any]:
        others = [self._photo(character, image_id) for image_id in finding.images]
        return finding.model_dump(mode="json") | {"others": others}

    def _photo(self, character: Character, image_id: str) -> dict[str, Any]:
        image = character.image(image_id)
        if image is None:  # removed since the look
            return {"name": "", "picture": "", "width": 0, "height": 0}
        path = self._characters.image_path(character.id, image_id)
        return {
            "name": image.filename,
            "picture": self._pictures.thumbnail(path),
            "width": image.width,
            "height": image.height,
        }

    def _former(self, character: Character, entry: FormerImage) -> dict[str, Any]:
        image = entry.image
        path = self._characters.former_path(character.id, image.id)
        if entry.instead == image.id:
            path = self._characters.image_path(character.id, image.id)
        return {
            "image": image.id,
            "name": image.filename,
            "fix": entry.fix.kind,
            "picture": self._pictures.thumbnail(path),
        }
