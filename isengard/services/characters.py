"""What the page and the command line may do with characters."""

import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from uuid import uuid4

from isengard.domain.base import validated
from isengard.domain.captions import clean_caption, fill_template, replaced, resolve_caption
from isengard.domain.character import (
    AddedImage,
    Character,
    DamagedCharacter,
    FormerImage,
    ReferenceImage,
    RefusedImage,
    TrashedCharacter,
    free_id,
    suggest_trigger,
)
from isengard.domain.doctor import Fix
from isengard.domain.readiness import Readiness, assess
from isengard.domain.training import TrainingImage
from isengard.errors import Conflict, ImageRefused, InvalidSpec
from isengard.files import replacing
from isengard.store import former_images
from isengard.store.character_files import image_of
from isengard.store.characters import CharacterStore
from isengard.store.decoding import MAX_PIXELS, MIN_SIDE, CleanImage, decode
from isengard.store.intake import Upload, count, uploads

#: Pictures that are decoded at once: each may need over a gigabyte of memory.
DECODING = 2
#: The pictures of one upload have, over those of one that is as large as can be, at most so many pixels for each byte that
#: was sent. Photos have 2 to 10, flat drawings up to 100, a single-coloured picture that is a bomb 1000.
PIXELS_PER_BYTE = 200

#: What a fresh archive's entries are dated, so that equal characters give equal files.
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


class CharacterService:
    """Characters, their images and captions. Everything returned is on disk already."""

    def __init__(
        self,
        *,
        store: CharacterStore,
        clock: Callable[[], float] = time.time,
        check_room: Callable[[int], None] = lambda _needed: None,
    ) -> None:
        """``check_room``: raises DiskFull where so many bytes more cannot be kept."""
        self._store, self._check_room = store, check_room
        self._clock = clock
        self._decoding = threading.Semaphore(DECODING)

    def create(
        self, name: str, *, trigger: str | None = None, class_word: str = "person", notes: str = ""
    ) -> Character:
        """Add a character without images; without a trigger it gets a rare word that no other has.

        Raises:
            InvalidSpec: a value breaks a rule of `Character`.
            Conflict: another character has the trigger.
        """
        now = self._clock()

        def make(ids: Set[str], triggers: Set[str]) -> Character:
            values = {
                "id": free_id(name, ids),
                "name": name,
                "trigger": suggest_trigger(name, triggers) if trigger is None else trigger,
                "class_word": class_word,
                "notes": notes,
                "created_at": now,
                "updated_at": now,
            }
            return validated(Character, values)

        return self._store.create(make)

    def edit(
        self,
        character_id: str,
        *,
        name: str | None = None,
        trigger: str | None = None,
        class_word: str | None = None,
        notes: str | None = None,
        scorer: str | None = None,
    ) -> Character:
        """Change what is not None; the id stays. ``scorer``: a `ScorerKind`, or empty for what the images suggest.

        Raises: NotFound, InvalidSpec, Conflict.
        """
        given = {"name": name, "trigger": trigger, "class_word": class_word, "notes": notes}
        new: dict[str, object] = {key: value for key, value in given.items() if value is not None}
        if scorer is not None:
            new["scorer"] = scorer or None
        new["updated_at"] = self._clock()
        return self._store.update(
            character_id, lambda character: validated(Character, character.model_dump() | new)
        )

    def list(self) -> tuple[Character, ...]:
        """All characters that can be read, by name."""
        return self._store.scan()[0]

    def damaged(self) -> tuple[DamagedCharacter, ...]:
        """Folders among the characters that need a person's hand."""
        return self._store.scan()[1]

    def version(self) -> str:
        """Another text after any change of any character; cheap enough to ask for each second."""
        return self._store.version()

    def get(self, character_id: str) -> Character:
        """Raises: NotFound, InvalidSpec when its record is damaged."""
        return self._store.get(character_id)

    def image_path(self, character_id: str, image_id: str) -> Path:
        """The picture's file, for showing it."""
        return self._store.image_path(character_id, image_id)

    def count_files(self, paths: Sequence[Path]) -> int:
        """How many results `add_files` will give, without the refused captions: for a progress bar."""
        return count(paths)

    def add_files(
        self, character_id: str, paths: Sequence[Path], *, min_side: int = MIN_SIDE, resolution: int = 0
    ) -> Iterator[AddedImage | RefusedImage]:
        """Take images, zip archives and captions; one result per file, as it is done.

        Args:
            character_id: Whose images they are.
            paths: Files; what their names say is not believed.
            min_side: Pictures with a shorter side are refused.
            resolution: Side the base model is trained at; a smaller picture gets a note.

        Raises:
            NotFound, InvalidSpec: before the first result.
            DiskFull: before the first result; or later, and what was yielded before is kept.
        """
        self._store.get(character_id)
        self._check_room(sum(map(_size, paths)))
        room = MAX_PIXELS + PIXELS_PER_BYTE * sum(map(_size, paths))
        for upload in uploads(paths):
            if isinstance(upload, RefusedImage):
                yield upload
                continue
            try:
                with self._decoding:
                    clean = decode(upload.content, min_side=min_side, room=room)
                room -= clean.pixels.width * clean.pixels.height
                yield self._add(character_id, upload, clean, resolution)
            except ImageRefused as error:
                yield RefusedImage(filename=upload.filename, reason=str(error))

    def remove_image(self, character_id: str, image_id: str) -> Character:
        """Delete one picture and its caption for good. Raises: NotFound."""
        return self._store.remove_image(character_id, image_id, now=self._clock())

    def fix(self, character_id: str, image_id: str, fix: Fix) -> Character:
        """Change one picture; what it was stays, to be brought back.

        Raises: NotFound, Conflict, DiskFull, InvalidSpec: the picture or its caption cannot be changed so.
        """
        image, path = (
            image_of(self._store.get(character_id), image_id),
            self._store.image_path(character_id, image_id),
        )
        self._check_room(2 * _size(path))
        former = FormerImage(image=image, fix=fix, place=0, fixed_at=self._clock())
        with self._decoding:
            change = former_images.change(path, former)
        return self._store.alter(character_id, change, now=former.fixed_at)

    def bring_back(self, character_id: str, image_id: str) -> Character:
        """Undo the latest fix of a picture, under the id that it had before. Raises: NotFound, Conflict, DiskFull."""
        return self._store.alter(
            character_id,
            lambda folder, character: former_images.brought_back(folder, character, image_id),
            now=self._clock(),
        )

    def forget(self, character_id: str, image_id: str) -> Character:
        """Delete what a picture was before its fixes for good, or one that was left out. Raises: NotFound."""
        return self._store.alter(
            character_id,
            lambda _folder, character: former_images.not_kept(character, image_id),
            now=self._clock(),
        )

    def former_path(self, character_id: str, image_id: str) -> Path:
        """The file of a picture as it was before a fix, for showing it."""
        return self._store.former_path(character_id, image_id)

    def set_caption(self, character_id: str, image_id: str, caption: str) -> None:
        """Raises: NotFound, InvalidSpec."""
        caption = clean_caption(caption)
        self._set_captions(character_id, lambda _: {image_id: caption})

    def caption_all(self, character_id: str, template: str, *, only_empty: bool = False) -> int:
        """Give every image, or those without one, a caption; how many changed. Raises: NotFound, InvalidSpec.

        ``[trigger]`` and ``[class]`` stay in the caption; ``[caption]`` stands for the image's present one.
        """
        return self._set_captions(
            character_id,
            lambda character: {
                image.id: fill_template(template, image.caption)
                for image in character.images
                if not (only_empty and image.caption)
            },
            change=uuid4().hex,
        )

    def replace_captions(
        self, character_id: str, captions: Mapping[str, tuple[str, str]], *, change: str
    ) -> int:
        """Write captions where there is still the one that is to be replaced; how many were.

        Args:
            character_id: Whose images they are.
            captions: By image id: what is to be replaced, and the new caption.
            change: What this belongs to; all of it is taken back at once.

        Raises: NotFound, InvalidSpec.
        """
        return self._set_captions(
            character_id,
            lambda character: {
                image.id: clean_caption(captions[image.id][1])
                for image in character.images
                if image.id in captions and image.caption == captions[image.id][0]
            },
            change=change,
        )

    def undo_captions(self, character_id: str) -> int:
        """Take the last change of many captions back, but for those that were changed since; how many are as before.

        Raises: NotFound, InvalidSpec, Conflict when there is none.
        """
        return self._store.undo_captions(character_id, now=self._clock())

    def captions_to_undo(self, character_id: str) -> int:
        """How many captions `undo_captions` would take back, if nobody changed them since."""
        return self._store.captions_to_undo(character_id)

    def replace_in_captions(self, character_id: str, find: str, replace: str) -> int:
        """Replace a text, in upper and lower case as given; how many captions changed.

        Raises: NotFound, InvalidSpec.
        """
        if not find:
            raise InvalidSpec("the text to find is empty: give at least one character")
        return self._set_captions(
            character_id,
            lambda character: {
                image.id: clean_caption(replaced(image.caption, find, replace)) for image in character.images
            },
            change=uuid4().hex,
        )

    def readiness(self, character_id: str) -> Readiness:
        """Raises: NotFound, InvalidSpec when its record is damaged."""
        return assess(self._store.get(character_id), self._store.findings(character_id))

    def training_images(self, character_id: str) -> tuple[TrainingImage, ...]:
        """The images of a training, with paths `under` the folder of characters.

        Raises: NotFound, InvalidSpec, Conflict when not ready.
        """
        character = self._store.get(character_id)
        readiness = assess(character, self._store.findings(character_id))
        if not readiness.ready:
            raise Conflict(f"{character_id!r} cannot be trained yet: {readiness.reason}")
        return tuple(
            TrainingImage(
                path=self._store.image_path(character_id, image.id).relative_to(self._store.characters_dir),
                sha256=image.sha256,
                width=image.width,
                height=image.height,
                caption=resolve_caption(image.caption, character.trigger, character.class_word),
            )
            for image in character.images
        )

    def export(self, character_id: str, path: Path, *, resolve: bool = False) -> Path:
        """Write a zip of pictures and captions that any trainer reads; ``resolve`` puts the words into captions.

        Raises: NotFound, InvalidSpec, DiskFull, Conflict when ``path`` exists or an image's file is missing.
        """
        character = self._store.get(character_id)
        if path.exists():
            raise Conflict(f"{path} exists already: choose another name or remove it first")
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            for image in character.images:
                caption = image.caption
                if resolve:
                    caption = resolve_caption(caption, character.trigger, character.class_word)
                source = self._store.image_path(character_id, image.id)
                if not source.is_file():
                    raise Conflict(f"{source} is missing: put it back or remove the image {image.id}")
                for entry, content in (
                    (source.name, source.read_bytes()),
                    (f"{image.id}.txt", caption.encode()),
                ):
                    info = zipfile.ZipInfo(entry, _ZIP_DATE)
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, content)
        return path

    def delete(self, character_id: str) -> TrashedCharacter:
        """Move a character, also a damaged one, into the trash. Raises: NotFound."""
        return self._store.delete(character_id, now=self._clock())

    def trashed(self) -> tuple[TrashedCharacter, ...]:
        """What can be restored, last deleted first."""
        return self._store.trashed()

    def restore(
        self, entry_id: str, *, character_id: str | None = None, trigger: str | None = None
    ) -> Character:
        """Bring a character back, by its trash entry or its id (then as last deleted).

        Raises: NotFound, InvalidSpec, Conflict when the id or the trigger is taken: give another.
        """
        return self._store.restore(self._entry(entry_id), character_id=character_id, trigger=trigger)

    def purge(self, entry_id: str) -> None:
        """Delete one trashed character for good, by its trash entry or its id. Raises: NotFound."""
        self._store.purge(self._entry(entry_id))

    def purge_all(self) -> int:
        """Empty the trash; how many characters were in it."""
        entries = self._store.trashed()
        for entry in entries:
            self._store.purge(entry.id)
        return len(entries)

    def _entry(self, entry_or_character_id: str) -> str:
        """The newest entry in the trash that is meant; what is unknown is left to the store to refuse."""
        entries = self._store.trashed()
        meant = (entry.id for entry in entries if entry_or_character_id in (entry.id, entry.character_id))
        return next(meant, entry_or_character_id)

    def _set_captions(
        self, character_id: str, captions: Callable[[Character], Mapping[str, str]], *, change: str = ""
    ) -> int:
        return self._store.set_captions(character_id, captions, now=self._clock(), change=change)

    def _add(self, character_id: str, upload: Upload, clean: CleanImage, resolution: int) -> AddedImage:
        image = ReferenceImage(
            **clean.facts,
            filename=upload.filename,
            added_at=self._clock(),
            caption=upload.caption,
        )
        before = self._store.add_image(character_id, image, clean.pixels)
        notes = [*clean.notes]
        if min(clean.pixels.size) < resolution:
            notes.append(f"{image.width} x {image.height} is under the model's {resolution} pixels")
        if twins := [other.filename for other in before.images if other.near(image)]:
            notes.append(f"looks nearly like {', '.join(twins)}")
        return AddedImage(filename=upload.filename, image=image, notes=tuple(notes))


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except (OSError, ValueError):  # said when it is opened
        return 0
