"""Pictures that were fixed or left out: they stay as they were, in a folder beside the images, and can be brought back.

The functions write what is new and return the character as it will be; whoever writes its record removes afterwards what
belongs to it no more, so that a process may be killed at any instruction.
"""

import shutil
from collections.abc import Callable, Iterable, Set
from pathlib import Path

from PIL import Image

from isengard.domain.captions import clean_caption
from isengard.domain.character import Character, FormerImage, ReferenceImage
from isengard.domain.doctor import FixKind
from isengard.errors import Conflict, NotFound
from isengard.files import replacing, write_text
from isengard.store.character_files import FORMER, IMAGES, caption_path, image_of, kept
from isengard.store.retouch import retouched


def change(path: Path, former: FormerImage) -> Callable[[Path, Character], Character]:
    """What does a fix to the folder and the record of a character; the new pixels are made now.

    Raises: NotFound, InvalidSpec.
    """
    fix = former.fix
    if fix.kind is FixKind.LEAVE_OUT:
        return lambda folder, character: left_out(folder, character, former)
    if fix.kind is FixKind.EDIT_CAPTION:
        clean = fix.model_copy(update={"caption": clean_caption(fix.caption or "")})
        entry = former.model_copy(update={"fix": clean})
        return lambda folder, character: recaptioned(folder, character, entry)
    made = retouched(path, fix)
    new = former.image.model_copy(update=made.facts)
    return lambda folder, character: put_instead(folder, character, new, made.pixels, former=former)


def put_instead(
    folder: Path, character: Character, new: ReferenceImage, pixels: Image.Image, *, former: FormerImage
) -> Character:
    """Put a picture in the place of another, under the caption that it has now. Raises: NotFound, Conflict, DiskFull."""
    if twin := character.image(new.id):
        raise Conflict(f"it would be the same picture as {twin.filename!r}, so leave it out instead")
    old = image_of(character, former.image.id)
    with replacing(folder / IMAGES / f"{new.id}.png") as temporary:
        pixels.save(temporary, "PNG", compress_level=1)
    write_text(caption_path(folder, new.id), old.caption)
    changed = _set_aside(folder, character, old, former.model_copy(update={"instead": new.id}))
    new = new.model_copy(update={"caption": old.caption})
    images = (new if image.id == old.id else image for image in character.images)
    return changed.model_copy(update={"images": tuple(images)})


def left_out(folder: Path, character: Character, former: FormerImage) -> Character:
    """Raises: NotFound, DiskFull."""
    old = image_of(character, former.image.id)
    changed = _set_aside(folder, character, old, former)
    return changed.model_copy(
        update={"images": tuple(image for image in character.images if image.id != old.id)}
    )


def recaptioned(folder: Path, character: Character, former: FormerImage) -> Character:
    """Raises: NotFound, DiskFull."""
    old, caption = image_of(character, former.image.id), former.fix.caption or ""
    write_text(caption_path(folder, old.id), caption)
    entry = former.model_copy(update={"image": old, "instead": old.id})
    return character.model_copy(update={"former": (*character.former, entry)})


def brought_back(folder: Path, character: Character, image_id: str) -> Character:
    """Undo the latest fix of what is now, or was, the picture. A caption that was written since stays.

    Raises: NotFound; Conflict when something else was done since.
    """
    entry = _latest(character, image_id)
    if entry not in character.undoable:
        raise Conflict(f"{entry.image.filename!r} was changed again since: undo that first")
    rest = tuple(each for each in character.former if each is not entry)
    changed = character.model_copy(update={"former": rest})
    if entry.fix.kind is FixKind.EDIT_CAPTION:
        if image_of(character, image_id).caption != entry.fix.caption:
            raise Conflict("the caption was written anew since: change it by hand")
        write_text(caption_path(folder, image_id), entry.image.caption)
        return changed
    present, twin = character.image(entry.instead), character.image(image_id)
    _take_back(folder, entry, caption=(twin or present or entry.image).caption)
    place = character.images.index(present) if present else entry.place
    others = [image for image in character.images if image.id not in (entry.instead, image_id)]
    return changed.model_copy(update={"images": (*others[:place], entry.image, *others[place:])})


def not_kept(character: Character, image_id: str) -> Character:
    """Without what a picture was before its latest fix. Raises: NotFound."""
    return forgotten(character, _latest(character, image_id).image.id)


def forgotten(character: Character, image_id: str) -> Character:
    """Without the fixes that led to a picture, or on from it."""
    gone, former = {image_id}, []
    for entry in reversed(character.former):
        if {entry.image.id, entry.instead} & gone:
            gone.add(entry.image.id)
        else:
            former.append(entry)
    return character.model_copy(update={"former": tuple(reversed(former))})


def remove_files(folder: Path, before: Character, after: Character) -> set[str]:
    """Remove the pictures that the character had and has no more; return the ids of those that are not kept either."""
    for image_id in _gone(before.images, after.images):
        (folder / IMAGES / f"{image_id}.png").unlink(missing_ok=True)
        caption_path(folder, image_id).unlink(missing_ok=True)
    for image_id in kept(before) - kept(after):
        (folder / FORMER / f"{image_id}.png").unlink(missing_ok=True)
    had, has = ({image.id for image in one.images} | kept(one) for one in (before, after))
    return had - has


def _set_aside(folder: Path, character: Character, old: ReferenceImage, former: FormerImage) -> Character:
    with replacing(folder / FORMER / f"{old.id}.png") as temporary:
        _copy(folder / IMAGES / f"{old.id}.png", temporary)
    entry = former.model_copy(update={"image": old, "place": character.images.index(old)})
    return character.model_copy(update={"former": (*character.former, entry)})


def _take_back(folder: Path, entry: FormerImage, *, caption: str) -> None:
    with replacing(folder / IMAGES / f"{entry.image.id}.png") as temporary:
        _copy(folder / FORMER / f"{entry.image.id}.png", temporary)
    write_text(caption_path(folder, entry.image.id), caption)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise NotFound(f"{source} is missing: put it back or remove the image") from None


def _latest(character: Character, image_id: str) -> FormerImage:
    for entry in reversed(character.former):
        if entry.image.id == image_id:
            return entry
    known = ", ".join(entry.image.id for entry in character.former) or "none"
    raise NotFound(f"{character.id!r} has no former image {image_id!r}; it has: {known}")


def _gone(before: Iterable[ReferenceImage], after: Iterable[ReferenceImage]) -> Set[str]:
    return {image.id for image in before} - {image.id for image in after}
