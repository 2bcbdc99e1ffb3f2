"""What is kept of how people in pictures look: embeddings and measures, a file for each image."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

#: Folders of a cache that have ``<scorer>/<image id>.json``.
FOLDERS = ("sightings", "measures")


def read(file: Path, parse: Callable[[bytes], Kept]) -> Kept | None:
    """What a file keeps; None without one, or when it cannot be read and has to be made anew."""
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        log.warning("what is kept of looks cannot be read", extra={"file": str(file)})
        return None


def forget(cache_dir: Path, image_ids: Iterable[str]) -> None:
    """Remove what is kept of these images; an image that somebody else has, too, is looked at again."""
    for image_id in image_ids:
        for folder in FOLDERS:
            for file in (cache_dir / folder).glob(f"*/{image_id}.json"):
                file.unlink(missing_ok=True)
