"""Characters on disk: a folder each, in the layout every trainer reads.

``<characters_dir>/<id>/character.json`` is the record; ``images/<image id>.png`` and ``.txt`` beside it hold a picture
and its caption; ``former/`` has pictures as they were before they were fixed. What people do to these folders by hand is
reported, never hidden, and hurts no other character.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL import Image

from isengard.domain.base import validated
from isengard.domain.character import (
    Character,
    DamagedCharacter,
    ReferenceImage,
    TrashedCharacter,
    free_id,
    suggest_trigger,
)
from isengard.domain.readiness import Finding
from isengard.errors import Conflict, ImageRefused, InvalidSpec, NotFound
from isengard.files import PARTIAL, alone, replacing, sweep, write_text
from isengard.store import caption_changes
from isengard.store.character_files import (
    FORMER,
    IMAGES,
    RECORD,
    caption_path,
    findings,
    image_of,
    read_caption,
)
from isengard.store.former_images import forgotten, remove_files

_STAMP = "%Y%m%dT%H%M%SZ"


class CharacterStore:
    """All characters of one data folder. Changes are made one at a time, across processes and machines."""

    def __init__(
        self,
        *,
        characters_dir: Path,
        trash_dir: Path,
        forget: Callable[[Collection[str]], None] = lambda _image_ids: None,
    ) -> None:
        """``trash_dir`` must hold nothing but deleted characters; ``forget``: is told of images deleted for good."""
        self.characters_dir, self._forget = characters_dir, forget
        self._trash_dir = trash_dir
        self._lock = FileLock(characters_dir / ".lock")

    def scan(self) -> tuple[tuple[Character, ...], tuple[DamagedCharacter, ...]]:
        """All characters by name, and the folders that hold none that can be read."""
        characters, damaged = [], []
        for folder in _folders(self.characters_dir):
            try:
                characters.append(_read(folder))
            except InvalidSpec as error:
                damaged.append(DamagedCharacter(id=folder.name, reason=str(error)))
        return tuple(sorted(characters, key=lambda one: (one.name.casefold(), one.id))), tuple(damaged)

    def version(self) -> str:
        """What is another text after any change, also by another process; reads no record."""
        folders = _folders(self.characters_dir)
        changed = [_changed_at(path) for folder in folders for path in (folder, folder / IMAGES)]
        return hashlib.sha256(
            repr(changed).encode()
        ).hexdigest()  # the newest time would not do: clocks differ

    def get(self, character_id: str) -> Character:
        """Raises: NotFound, InvalidSpec when its record is damaged."""
        return _read(self._folder(character_id))

    def image_path(self, character_id: str, image_id: str) -> Path:
        return self.characters_dir / character_id / IMAGES / f"{image_id}.png"

    def create(self, make: Callable[[Set[str], Set[str]], Character]) -> Character:
        """Add what ``make(taken ids, taken triggers)`` returns. Raises: Conflict when the trigger is taken."""
        with self._changing():
            taken = {folder.name for folder in _folders(self.characters_dir)}
            taken |= {entry.character_id for entry in self.trashed()}
            character = make(taken, self._triggers())
            self._check_trigger(character)
            if (self.characters_dir / character.id).exists():  # of another machine, and not listed here yet
                raise Conflict(
                    f"{character.id!r} was made by another program just now; try again in a minute"
                )
            with replacing(self.characters_dir / character.id) as temporary:
                _write(temporary, character)
        return character

    def update(self, character_id: str, change: Callable[[Character], Character]) -> Character:
        """Change the record; images and captions have their own methods.

        Raises: NotFound, InvalidSpec, Conflict when the new trigger is taken.
        """
        with self._changing(character_id) as folder:
            changed = change(_read(folder))
            self._check_trigger(changed)
            _write(folder, changed)
        return changed

    def add_image(self, character_id: str, image: ReferenceImage, pixels: Image.Image) -> Character:
        """Keep a picture with its caption; the character as it was before, to compare the new picture with.

        Raises: NotFound, InvalidSpec, DiskFull, ImageRefused when the same pixels are there already.
        """
        with self._changing(character_id) as folder:
            before = _read(folder)
            twin = next((other for other in before.images if other.sha256 == image.sha256), None)
            if twin:
                raise ImageRefused(f"the same picture is there already, as {twin.filename!r}")
            with replacing(folder / IMAGES / f"{image.id}.png") as temporary:
                pixels.save(temporary, "PNG", compress_level=1)
            write_text(caption_path(folder, image.id), image.caption)
            images = (*before.images, image)
            _write(folder, before.model_copy(update={"images": images, "updated_at": image.added_at}))
        return before

    def remove_image(self, character_id: str, image_id: str, *, now: float) -> Character:
        """Forget a picture, what it was before, and its caption for good. Raises: NotFound, InvalidSpec."""

        def remove(_: Path, character: Character) -> Character:
            image_of(character, image_id)
            images = tuple(image for image in character.images if image.id != image_id)
            return forgotten(character, image_id).model_copy(update={"images": images})

        return self.alter(character_id, remove, now=now)

    def alter(
        self, character_id: str, change: Callable[[Path, Character], Character], *, now: float
    ) -> Character:
        """Keep what ``change(folder, character)`` returns; it writes the files of new images itself.

        Raises: NotFound, InvalidSpec.
        """
        with self._changing(character_id) as folder:
            before = _read(folder)
            after = change(folder, before)
            _write(folder, after.model_copy(update={"updated_at": now}))
            self._forget(remove_files(folder, before, after))
            return _read(folder)

    def former_path(self, character_id: str, image_id: str) -> Path:
        return self.characters_dir / character_id / FORMER / f"{image_id}.png"

    def set_captions(
        self,
        character_id: str,
        captions: Callable[[Character], Mapping[str, str]],
        *,
        now: float,
        change: str = "",
    ) -> int:
        """Write the captions that ``captions(character)`` gives by image id; how many were changed.

        Those of one ``change``, which may come in several calls, can be taken back together: `undo_captions`.

        Raises: NotFound, InvalidSpec.
        """
        with self._changing(character_id) as folder:
            before = _read(folder)
            changed = {
                image_id: caption
                for image_id, caption in captions(before).items()
                if image_of(before, image_id).caption != caption
            }
            if change and changed:
                caption_changes.add(
                    folder,
                    change,
                    {key: (image_of(before, key).caption, text) for key, text in changed.items()},
                )
            _write_captions(folder, before, changed, now=now)
        return len(changed)

    def undo_captions(self, character_id: str, *, now: float) -> int:
        """Take the last change back, where nobody has changed a caption since; how many are as before.

        Raises: NotFound, InvalidSpec, Conflict when there is none.
        """
        with self._changing(character_id) as folder:
            character = _read(folder)
            texts = {image.id: image.caption for image in character.images}
            change = caption_changes.last(folder)
            if change is None:
                raise Conflict(f"no change of captions of {character_id!r} is left to take back")
            back = {key: old for key, (old, new) in change.items() if texts.get(key) == new}
            _write_captions(folder, character, back, now=now)
            caption_changes.drop_last(folder)
        return len(back)

    def captions_to_undo(self, character_id: str) -> int:
        """How many captions the last change that can be taken back has changed. Raises: NotFound."""
        return len(caption_changes.last(self._folder(character_id)) or ())

    def findings(self, character_id: str) -> tuple[Finding, ...]:
        """What is wrong with the folder itself. Raises: NotFound, InvalidSpec."""
        folder = self._folder(character_id)
        return tuple(findings(folder, _read(folder)))

    def delete(self, character_id: str, *, now: float) -> TrashedCharacter:
        """Move a character, also a damaged one, into the trash. Raises: NotFound."""
        with self._changing(character_id) as folder:
            self._trash_dir.mkdir(parents=True, exist_ok=True)
            while (target := self._trash_dir / _trash_name(now, character_id)).exists():
                now += 1
            folder.rename(target)
        return _trashed(target)

    def trashed(self) -> tuple[TrashedCharacter, ...]:
        """What can be restored, last deleted first."""
        entries = [_trashed(folder) for folder in _folders(self._trash_dir)]
        return tuple(sorted(entries, key=lambda entry: (entry.deleted_at, entry.id), reverse=True))

    def restore(
        self, entry_id: str, *, character_id: str | None = None, trigger: str | None = None
    ) -> Character:
        """Bring a character back, under another id or with another trigger word if given.

        Raises: NotFound, InvalidSpec, Conflict when the id or the trigger is taken meanwhile.
        """
        with self._changing():
            folder = self._trash_folder(entry_id)
            old = _read(folder, trashed=True)
            new = {"id": character_id or old.id, "trigger": trigger or old.trigger}
            character = validated(Character, old.model_dump() | new)
            target = self.characters_dir / character.id
            if target.exists():
                free = free_id(character.id, {folder.name for folder in _folders(self.characters_dir)})
                raise Conflict(
                    f"a character with the id {character.id!r} exists; restore as another, such as {free!r}"
                )
            self._check_trigger(character)
            if character != old:
                _write(folder, character)
            folder.rename(target)
        return character

    def purge(self, entry_id: str) -> None:
        """Delete a trashed character for good. Raises: NotFound."""
        with self._changing():
            folder = self._trash_folder(entry_id)
            image_ids = {path.stem for path in folder.rglob("*.png")}
            doomed = folder.with_name(f"{folder.name}{PARTIAL}")
            folder.rename(doomed)
            sweep(self._trash_dir)
            self._forget(image_ids)

    @contextmanager
    def _changing(self, character_id: str | None = None) -> Iterator[Path]:
        """Hold the lock; gives the character's folder, freed from what killed processes left unfinished."""
        self.characters_dir.mkdir(parents=True, exist_ok=True)
        with alone(self._lock, "characters"):
            folder = self._folder(character_id) if character_id is not None else self.characters_dir
            sweep(folder)
            sweep(folder / IMAGES)
            sweep(folder / FORMER)
            yield folder

    def _folder(self, character_id: str) -> Path:
        folders = {folder.name: folder for folder in _folders(self.characters_dir)}
        if character_id not in folders:
            known = ", ".join(sorted(folders)) or "none yet"
            raise NotFound(f"there is no character {character_id!r}; there are: {known}")
        return folders[character_id]

    def _trash_folder(self, entry_id: str) -> Path:
        folders = {folder.name: folder for folder in _folders(self._trash_dir)}
        if entry_id not in folders:
            known = ", ".join(sorted(folders)) or "nothing"
            raise NotFound(f"there is no {entry_id!r} in the trash; it holds: {known}")
        return folders[entry_id]

    def _triggers(self) -> set[str]:
        return {character.trigger for character in self.scan()[0]}

    def _check_trigger(self, character: Character) -> None:
        others = [other for other in self.scan()[0] if other.id != character.id]
        taken = {other.trigger.lower(): other for other in others}
        if character.trigger.lower() in taken:
            owner = taken[character.trigger.lower()]
            free = suggest_trigger(character.name, self._triggers())
            raise Conflict(
                f"the trigger {character.trigger!r} belongs to {owner.id!r} already; take another, such as {free!r}"
            )


def _folders(parent: Path) -> list[Path]:
    """The folders of characters in a directory: not hidden, not half deleted."""
    if not parent.is_dir():
        return []
    return sorted(
        folder
        for folder in parent.iterdir()
        if folder.is_dir() and not folder.name.startswith(".") and PARTIAL not in folder.name
    )


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # deleted meanwhile
        return 0


def _read(folder: Path, *, trashed: bool = False) -> Character:
    """Raises: InvalidSpec: which file is damaged, how, and what can be done."""
    path = folder / RECORD
    way_out = "repair the file, or delete the character"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        character = validated(Character, record)
    except FileNotFoundError:
        raise InvalidSpec(f"{path} is missing: restore the file, or delete the character") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidSpec(f"{path} cannot be read ({error}): {way_out}") from error
    except InvalidSpec as error:
        raise InvalidSpec(f"{path} is damaged ({error}): {way_out}") from error
    if character.id != folder.name and not trashed:
        raise InvalidSpec(f"{path} has the id {character.id!r}: rename it or its folder")
    captions = {image.id: read_caption(folder, image.id) or "" for image in character.images}
    images = tuple(image.model_copy(update={"caption": captions[image.id]}) for image in character.images)
    return character.model_copy(update={"images": images})


def _write(folder: Path, character: Character) -> None:
    record = character.model_dump(mode="json", exclude={"images": {"__all__": {"caption"}}})
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))


def _write_captions(folder: Path, character: Character, captions: Mapping[str, str], *, now: float) -> None:
    for image_id, caption in captions.items():
        write_text(caption_path(folder, image_id), caption)
    if captions:
        _write(folder, character.model_copy(update={"updated_at": now}))


def _trash_name(deleted_at: float, character_id: str) -> str:
    return f"{datetime.fromtimestamp(deleted_at, UTC):{_STAMP}}-{character_id}"


def _trashed(folder: Path) -> TrashedCharacter:
    """What a folder in the trash holds, as far as it can be read."""
    stamp, _, character_id = folder.name.partition("-")
    try:
        deleted_at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC).timestamp()
    except ValueError:
        deleted_at = folder.stat().st_mtime
    try:
        character = _read(folder, trashed=True)
        character_id, name, images = character.id, character.name, len(character.images)
    except InvalidSpec:
        name, images = "", 0
    return TrashedCharacter(
        id=folder.name, character_id=character_id, name=name, deleted_at=deleted_at, images=images
    )
