"""The example characters that come with the app: a folder of pictures and captions each, beside its ``about.yaml``."""

import json
import logging
from pathlib import Path
from typing import Any

import yaml

from isengard.domain.character import Character
from isengard.errors import IsengardError, NotFound
from isengard.files import write_text
from isengard.services.characters import CharacterService

log = logging.getLogger(__name__)


def example(characters: CharacterService, folder: Path) -> Character:
    """Return the example character of a folder; create it where it is not there yet.

    Raises:
        Conflict: another character has its trigger word.
    """
    try:
        character = characters.get(folder.name)
    except NotFound:
        about: dict[str, Any] = yaml.safe_load((folder / "about.yaml").read_text(encoding="utf-8"))
        character = characters.create(**about)
    if not character.images:
        list(characters.add_files(character.id, sorted(folder.glob("[0-9]*"))))
    return characters.get(character.id)


def add_examples(characters: CharacterService, *, examples_dir: Path, marker: Path) -> tuple[str, ...]:
    """Create the examples that this data folder never had; the names of the new ones.

    ``marker`` is a file that remembers the names, so that an example somebody deleted does not come back.
    """
    seen = set(json.loads(marker.read_text(encoding="utf-8"))) if marker.exists() else set()
    known = seen | {entry.character_id for entry in characters.trashed()}
    folders = [about.parent for about in sorted(examples_dir.glob("*/about.yaml"))]
    added = []
    for folder in folders:
        if folder.name not in known:
            try:
                example(characters, folder)
                added.append(folder.name)
            except IsengardError as error:
                log.warning("example not added", extra={"example": folder.name, "error": str(error)})
    if now := {folder.name for folder in folders} - seen:
        write_text(marker, json.dumps(sorted(seen | now)))
    return tuple(added)
