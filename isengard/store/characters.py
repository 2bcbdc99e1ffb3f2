"""Characters on disk: a folder each, in the layout every trainer reads.

``<characters_dir>/<id>/character.json`` is the record; ``images/<image id>.png`` and ``.txt`` beside it hold a picture
and its caption. What people do to these folders by hand is reported, never hidden, and hurts no other character.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from isengard.domain.base import validated
from isengard.domain.captions import clean_caption
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
from isengard.files import PARTIAL, replacing, sweep, write_text

RECORD = "character.json"
IMAGES = "images"
#: Seconds to wait for another process that changes characters; each change takes milliseconds.
LOCK_TIMEOUT_S = 60.0

_STAMP = "%Y%m%dT%H%M%SZ"


class CharacterStore:
    """All characters of one data folder. Changes are made one at a time, across processes and machines."""

    def __init__(self, *, characters_dir: Path, trash_dir: Path) -> None:
        """``trash_dir`` must hold nothing but deleted characters."""
        self._characters_dir = characters_dir
        self._trash_dir = trash_dir
        self._lock = FileLock(characters_dir / ".lock", timeout=LOCK_TIMEOUT_S)

    def scan(self) -> tuple[tuple[Character, ...], tuple[DamagedCharacter, ...]]:
        """All characters by name, and the folders that hold none that can be read."""
        characters, damaged = [], []
        for folder in _folders(self._characters_dir):
            try:
                characters.append(_read(folder))
            except InvalidSpec as error:
                damaged.append(DamagedCharacter(id=folder.name, reason=str(error)))
        return tuple(sorted(characters, key=lambda one: (one.name.casefold(), one.id))), tuple(damaged)

    def version(self) -> str:
        """What is another text after any change, also by another process; reads no record."""
        folders = _folders(self._characters_dir)
        changed = [_changed_at(path) for folder in folders for path in (folder, folder / IMAGES)]
        return f"{len(folders)}-{max(changed, default=0)}"

    def get(self, character_id: str) -> Character:
        """Raises: NotFound, InvalidSpec when its record is damaged."""
        return _read(self._folder(character_id))

    def image_path(self, character_id: str, image_id: str) -> Path:
        return self._characters_dir / character_id / IMAGES / f"{image_id}.png"

    def create(self, make: Callable[[Set[str], Set[str]], Character]) -> Character:
        """Add what ``make(taken ids, taken triggers)`` returns. Raises: Conflict when the trigger is taken."""
        with self._changing():
            taken = {folder.name for folder in _folders(self._characters_dir)}
            taken |= {entry.character_id for entry in self.trashed()}
            character = make(taken, self._triggers())
            self._check_trigger(character)
            with replacing(self._characters_dir / character.id) as temporary:
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
            write_text(_caption_path(folder, image.id), image.caption)
            images = (*before.images, image)
            _write(folder, before.model_copy(update={"images": images, "updated_at": image.added_at}))
        return before

    def remove_image(self, character_id: str, image_id: str, *, now: float) -> Character:
        """Forget a picture and its caption for good. Raises: NotFound, InvalidSpec."""
        with self._changing(character_id) as folder:
            before = _read(folder)
            _image(before, image_id)
            images = tuple(image for image in before.images if image.id != image_id)
            changed = before.model_copy(update={"images": images, "updated_at": now})
            _write(folder, changed)
            self.image_path(character_id, image_id).unlink(missing_ok=True)
            _caption_path(folder, image_id).unlink(missing_ok=True)
        return changed

    def set_captions(
        self, character_id: str, captions: Callable[[Character], Mapping[str, str]], *, now: float
    ) -> int:
        """Write the captions that ``captions(character)`` gives by image id; how many were changed.

        Raises: NotFound, InvalidSpec.
        """
        with self._changing(character_id) as folder:
            before = _read(folder)
            changed = {
                image_id: caption
                for image_id, caption in captions(before).items()
                if _image(before, image_id).caption != caption
            }
            for image_id, caption in changed.items():
                write_text(_caption_path(folder, image_id), caption)
            if changed:
                _write(folder, before.model_copy(update={"updated_at": now}))
        return len(changed)

    def findings(self, character_id: str) -> tuple[Finding, ...]:
        """What is wrong with the folder itself. Raises: NotFound, InvalidSpec."""
        folder = self._folder(character_id)
        return tuple(_findings(folder, _read(folder)))

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
            target = self._characters_dir / character.id
            if target.exists():
                free = free_id(character.id, {folder.name for folder in _folders(self._characters_dir)})
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
            doomed = folder.with_name(f"{folder.name}{PARTIAL}")
            folder.rename(doomed)
            sweep(self._trash_dir)

    @contextmanager
    def _changing(self, character_id: str | None = None) -> Iterator[Path]:
        """Hold the lock; gives the character's folder, freed from what killed processes left unfinished."""
        self._characters_dir.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise Conflict(
                f"another program has been changing characters for {LOCK_TIMEOUT_S:.0f} s; try again later"
            ) from None
        try:
            folder = self._folder(character_id) if character_id is not None else self._characters_dir
            sweep(folder)
            sweep(folder / IMAGES)
            yield folder
        finally:
            self._lock.release()

    def _folder(self, character_id: str) -> Path:
        folders = {folder.name: folder for folder in _folders(self._characters_dir)}
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
    captions = {image.id: _read_caption(folder, image.id) or "" for image in character.images}
    images = tuple(image.model_copy(update={"caption": captions[image.id]}) for image in character.images)
    return character.model_copy(update={"images": images})


def _write(folder: Path, character: Character) -> None:
    record = character.model_dump(mode="json", exclude={"images": {"__all__": {"caption"}}})
    write_text(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False))


def _image(character: Character, image_id: str) -> ReferenceImage:
    image = character.image(image_id)
    if image is None:
        known = ", ".join(image.id for image in character.images) or "none"
        raise NotFound(f"{character.id!r} has no image {image_id!r}; it has: {known}")
    return image


def _caption_path(folder: Path, image_id: str) -> Path:
    return folder / IMAGES / f"{image_id}.txt"


def _read_caption(folder: Path, image_id: str) -> str | None:
    """The caption, empty when there is no file; None when the file cannot be read as one."""
    try:
        return clean_caption(_caption_path(folder, image_id).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, InvalidSpec):
        return None


def _findings(folder: Path, character: Character) -> Iterator[Finding]:
    ids = {image.id for image in character.images}
    states = {image.id: _png_state(folder / IMAGES / f"{image.id}.png", image) for image in character.images}
    if missing := tuple(image_id for image_id, state in states.items() if state == "missing"):
        text = (
            f"{len(missing)} image files are missing in {folder / IMAGES}: put them back or remove the images"
        )
        yield Finding(kind="image_missing", text=text, images=missing, blocks=True)
    if changed := tuple(image_id for image_id, state in states.items() if state == "changed"):
        text = f"{len(changed)} image files in {folder / IMAGES} were changed by hand: remove the images and add the files anew"
        yield Finding(kind="image_changed", text=text, images=changed, blocks=True)
    if unread := tuple(image_id for image_id in sorted(ids) if _read_caption(folder, image_id) is None):
        text = f"{len(unread)} caption files cannot be read as UTF-8 text and count as empty: write them anew"
        yield Finding(kind="caption_damaged", text=text, images=unread)
    if extra := _extra_files(folder, ids):
        names = ", ".join(extra[:5]) + (", ..." if len(extra) > 5 else "")
        text = f"{len(extra)} files in {folder} belong to nothing and are not used: {names}"
        yield Finding(kind="extra_files", text=text)


def _png_state(path: Path, image: ReferenceImage) -> str:
    try:
        with Image.open(path, formats=("PNG",)) as found:
            return "fine" if found.size == (image.width, image.height) else "changed"
    except FileNotFoundError:
        return "missing"
    except (OSError, SyntaxError, ValueError):
        return "changed"


def _extra_files(folder: Path, ids: Set[str]) -> list[str]:
    known = {f"{image_id}{suffix}" for image_id in ids for suffix in (".png", ".txt")} | {RECORD, IMAGES}
    images = folder / IMAGES
    entries = [*folder.iterdir(), *(images.iterdir() if images.is_dir() else ())]
    return sorted(
        entry.name
        for entry in entries
        if entry.name not in known and not entry.name.startswith(".") and PARTIAL not in entry.name
    )


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
