"""What changes of many captions have replaced, kept in the character's folder until they are taken back."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from isengard.domain.base import Frozen
from isengard.files import write_text

#: Hidden, so that no trainer takes it for a caption.
NAME = ".captions.json"
#: Further ones are forgotten, the oldest first.
KEPT = 10


class Change(Frozen):
    """One change, perhaps made in several steps."""

    id: str
    captions: dict[str, tuple[str, str]]
    """By image id: the caption before it, and the one it wrote."""


_CHANGES = TypeAdapter(tuple[Change, ...])


def add(folder: Path, change: str, captions: Mapping[str, tuple[str, str]]) -> None:
    """Keep what is about to be replaced. Captions of the same change as the last are added to it."""
    kept = _read(folder)
    if kept and kept[-1].id == change:
        before = kept.pop().captions
        captions = {key: (before.get(key, texts)[0], texts[1]) for key, texts in captions.items()}
        captions = {**before, **captions}
    _write(folder, [*kept, Change(id=change, captions=dict(captions))][-KEPT:])


def last(folder: Path) -> Mapping[str, tuple[str, str]] | None:
    """By image id, what the last change replaced and wrote."""
    kept = _read(folder)
    return kept[-1].captions if kept else None


def drop_last(folder: Path) -> None:
    _write(folder, _read(folder)[:-1])


def _read(folder: Path) -> list[Change]:
    """Oldest first; none when the file cannot be read: the captions themselves are not in it."""
    try:
        return list(_CHANGES.validate_json((folder / NAME).read_bytes()))
    except (OSError, ValidationError):
        return []


def _write(folder: Path, changes: list[Change]) -> None:
    kept = [change.model_dump(mode="json") for change in changes]
    write_text(folder / NAME, json.dumps(kept, ensure_ascii=False))
