"""What is in a character's folder, and what is wrong with it."""

from collections.abc import Iterator, Set
from pathlib import Path

from PIL import Image

from isengard.domain.captions import clean_caption
from isengard.domain.character import Character, ReferenceImage
from isengard.domain.readiness import Finding
from isengard.errors import InvalidSpec, NotFound
from isengard.files import PARTIAL

RECORD = "character.json"
IMAGES = "images"
FORMER = "former"


def caption_path(folder: Path, image_id: str) -> Path:
    return folder / IMAGES / f"{image_id}.txt"


def image_of(character: Character, image_id: str) -> ReferenceImage:
    """Raises: NotFound."""
    image = character.image(image_id)
    if image is None:
        known = ", ".join(image.id for image in character.images) or "none"
        raise NotFound(f"{character.id!r} has no image {image_id!r}; it has: {known}")
    return image


def kept(character: Character) -> Set[str]:
    """The ids of the pictures that are in the folder of former ones."""
    return {entry.image.id for entry in character.former if entry.instead != entry.image.id}


def read_caption(folder: Path, image_id: str) -> str | None:
    """The caption, empty when there is no file; None when the file cannot be read as one."""
    try:
        return clean_caption(caption_path(folder, image_id).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, InvalidSpec):
        return None


def findings(folder: Path, character: Character) -> Iterator[Finding]:
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
    if unread := tuple(image_id for image_id in sorted(ids) if read_caption(folder, image_id) is None):
        text = f"{len(unread)} caption files cannot be read as UTF-8 text and count as empty: write them anew"
        yield Finding(kind="caption_damaged", text=text, images=unread)
    if extra := _extra_files(folder, character):
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


def _extra_files(folder: Path, character: Character) -> list[str]:
    known = {f"{image.id}{suffix}" for image in character.images for suffix in (".png", ".txt")}
    known |= {f"{image_id}.png" for image_id in kept(character)} | {RECORD, IMAGES, FORMER}
    folders = (place for place in (folder, folder / IMAGES, folder / FORMER) if place.is_dir())
    return sorted(
        entry.name
        for place in folders
        for entry in place.iterdir()
        if entry.name not in known and not entry.name.startswith(".") and PARTIAL not in entry.name
    )
