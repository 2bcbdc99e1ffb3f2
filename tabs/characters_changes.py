"""What the characters tab does when something is pressed: one service call each."""

import html
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from isengard.domain.character import suggest_trigger, trigger_warning
from isengard.errors import Conflict, InvalidSpec, NotFound
from isengard.services.admission import Asked
from isengard.wiring import Application
from tabs.characters_intake import Intakes
from tabs.characters_roster import Reader
from tabs.characters_view import counted, flags, sentence
from tabs.common import asked_by, handled, typed, uploaded
from tabs.pictures import address

#: Seconds an exported archive stays for its download.
EXPORT_KEPT_S = 3600


class Changes:
    """The handlers. Those that take one mapping are called by the scripts of our own components."""

    def __init__(self, app: Application, reader: Reader) -> None:
        self._app = app
        self._reader = reader
        self._intakes = Intakes(lambda character, paths: app.characters.add_files(character, paths))

    def count(self, request: gr.Request) -> None:
        """Count what makes something new. Raises: TooMany."""
        self._app.admission.count(Asked.CHANGES, asked_by(request))

    def suggest(self, name: str, trigger: str, suggested: str) -> tuple[str, str]:
        """A trigger for a name, unless somebody has typed one: the field, and what was suggested last."""
        if trigger.strip() != suggested:
            return trigger, suggested
        word = suggest_trigger(name, self._triggers()) if name.strip() else ""
        return word, word

    def warn(self, trigger: str) -> str:
        """Why a trigger word is a poor one, as Markdown; empty when it is fine."""
        warning = trigger_warning(trigger.strip())
        return f"⚠ {html.escape(sentence(warning))}" if warning else ""

    def create(self, name: str, class_word: str, trigger: str) -> str:
        """Add a character; its id."""
        character = self._app.characters.create(
            name.strip(), trigger=trigger.strip() or None, class_word=str(class_word).strip()
        )
        gr.Success(f"{html.escape(character.name)} is created. Now add photos.", duration=4)
        return character.id

    def edit(
        self, character_id: str, name: str, trigger: str, class_word: str, notes: str, scorer: str
    ) -> None:
        """Change the record."""
        character = self._app.characters.edit(
            character_id,
            name=name.strip(),
            trigger=trigger.strip(),
            class_word=str(class_word).strip(),
            notes=notes.strip(),
            scorer=scorer,
        )
        gr.Success(f"{html.escape(character.name)} is saved.", duration=4)

    def suggested(self, character_id: str) -> dict[str, str]:
        """What the photos suggest to tell the character apart by; the first time each photo is looked at."""
        if not character_id:
            return {}
        as_if_unchosen = self._app.characters.get(character_id).model_copy(update={"scorer": None})
        return {"scorer": self._app.likeness.kind(as_if_unchosen)}

    def take(self, character: str, files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Take one upload: a picture, perhaps with its caption, or an archive."""
        self._app.characters.get(character)
        if not files:
            raise InvalidSpec("no file was sent: choose at least one")
        paths = uploaded(file.get("path") for file in files)
        named = [(path, str(file.get("name", ""))) for path, file in zip(paths, files, strict=True)]
        return self._intakes.start(character, named)

    def more(self, intake: str, seen: int) -> dict[str, Any]:
        """What became of an upload since."""
        return self._intakes.look(intake, seen=seen)

    def describe(self, character: str, name: str, text: str) -> dict[str, Any]:
        """Take a caption that came without its picture: it goes to the images of that name; how many."""
        stem = Path(name).stem.casefold()
        images = self._app.characters.get(character).images
        owners = [image.id for image in images if Path(image.filename).stem.casefold() == stem]
        if not owners:
            raise NotFound("no picture of this character has this name, so it is nobody's caption")
        for image_id in owners:
            self._app.characters.set_caption(character, image_id, text)
        return {"captions": len(owners)}

    def caption(self, character: str, image: str, text: str) -> dict[str, Any]:
        """Keep a caption as it is being typed; what is wrong with the picture now."""
        self._app.characters.set_caption(character, image, text)
        changed = self._app.characters.get(character).image(image)
        if changed is None:
            return {"flags": []}
        return {"flags": flags(changed, self._app.characters.readiness(character), self._reader.least())}

    def remove_image(self, character_id: str, image_id: str) -> None:
        """Delete one picture and its caption for good."""
        self._app.characters.remove_image(character_id, image_id)

    def caption_all(self, character_id: str, template: str, only_empty: bool) -> None:  # noqa: FBT001
        """Give the images a caption by a template."""
        if not template.strip():
            raise InvalidSpec(
                "the template is empty: write one, for example 'a photo of [trigger], [caption]'"
            )
        changed = self._app.characters.caption_all(character_id, template, only_empty=only_empty)
        gr.Info(f"{counted(changed, 'caption')} changed.", duration=4)

    def replace(self, character_id: str, find: str, replace: str) -> None:
        """Replace a text in all captions."""
        changed = self._app.characters.replace_in_captions(character_id, find, replace)
        gr.Info(f"{counted(changed, 'caption')} changed.", duration=4)

    def export(self, character_id: str, resolve: bool) -> str:  # noqa: FBT001
        """Write the zip; its address."""
        character = self._app.characters.get(character_id)
        if not character.images:
            raise Conflict(f"{character.name} has no images to export: add some first")
        exports = self._app.settings.exports_dir
        _sweep(exports)
        path = exports / uuid.uuid4().hex / f"{character.id}.zip"
        return address(self._app.characters.export(character_id, path, resolve=resolve))

    def delete(self, character_id: str) -> None:
        """Move a character into the trash; nothing when the question was answered with no."""
        if not character_id:
            return
        entry = self._app.characters.delete(character_id)
        gr.Info(f"{html.escape(entry.name)} is in the trash.", duration=4)

    def restore(self, entry: str, trigger: str = "") -> dict[str, Any]:
        """Bring a character back: its id, or a free trigger to ask for when another has taken its own."""
        try:
            return {"id": self._app.characters.restore(entry, trigger=trigger or None).id}
        except Conflict as error:
            return {
                "error": str(error),
                "trigger": suggest_trigger(entry.split("-", 1)[-1], self._triggers()),
            }

    def purge(self, entry: str) -> None:
        """Delete a character in the trash for good."""
        self._app.characters.purge(entry)
        gr.Info("It is deleted for good.", duration=4)

    def _triggers(self) -> set[str]:
        return {character.trigger for character in self._app.characters.list()}


def _sweep(exports: Path) -> None:
    """Remove exports that were downloaded long ago."""
    for folder in exports.glob("*"):
        with suppress(FileNotFoundError):  # another page has removed it
            if folder.stat().st_mtime < time.time() - EXPORT_KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


def answering(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Make a handler callable by a script: it gets one mapping, and fails as ``{"error": words}``."""
    guarded = handled(typed(function))

    def answer(given: Any) -> Any:
        try:
            return (
                guarded(**given) if isinstance(given, dict) else {"error": "This request is not understood."}
            )
        except gr.Error as error:
            return {"error": html.unescape(str(error.message))}

    answer.__name__ = function.__name__
    return answer
