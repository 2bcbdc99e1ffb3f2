"""The gallery of the Image tab: what it shows, and all of it as one file."""

import math
import shutil
import time
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from isengard.domain.generation import SavedImage
from isengard.domain.likeness import ALIKE, UNLIKE, Likeness, worth
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec
from isengard.files import disk_full_as_error
from tabs.common import Page, duration
from tabs.pictures import address

#: Images that are shown at first, and more at each press of the button.
PAGE = 36
#: A choice of the filters; an empty text already means "without a character".
ALL = "*"
#: Bytes of a zip archive: writing more takes longer than a request may.
MAX_ZIP = 4 * 1024**3


class Alike(StrEnum):
    """What the gallery shows by how much images look like their characters."""

    NEWEST = "newest"  # all, newest first
    BEST = "best"  # all that were measured, the most alike first
    GOOD = "good"  # those that look like them, newest first
    NONE = "none"  # those that do not, newest first


Choices = list[tuple[str, str]]
#: Shares of the way to the character's photos, from and below.
_BOUNDS = {
    Alike.GOOD: (ALIKE, math.inf),
    Alike.NONE: (-math.inf, UNLIKE),
}
Found = Sequence[tuple[SavedImage, frozenset[str]]]


def everything(page: Page) -> Found:
    """All images with the characters that made them, newest first."""
    return page.app.images.all_with_characters()


def gallery(
    page: Page, found: Found, *, character: str, model: str, alike: str, shown: int
) -> dict[str, Any]:
    """The first ``shown`` images that fit the filters, and how many there are."""
    fitting = fit(found, character=character, model=model, alike=alike)
    return {
        "items": items(page, fitting[:shown]),
        "total": len(fitting),
        "rest": max(0, len(fitting) - shown),
        "filtered": (character, model, alike) != (ALL, ALL, Alike.NEWEST),
        "best": alike == Alike.BEST,
    }


def fit(found: Found, *, character: str, model: str, alike: str) -> list[SavedImage]:
    """The images that fit the filters, in the order in which they are shown."""
    fitting = [
        saved
        for saved, owners in found
        if model in (ALL, saved.record.spec.base_model)
        and (character == ALL or character in owners or (not character and not owners))
    ]
    if alike == Alike.BEST:
        worths = [
            (value, saved) for saved in fitting if (value := worth(_meant(saved, character))) is not None
        ]
        return [saved for _, saved in sorted(worths, key=lambda each: -each[0])]
    if alike in _BOUNDS:
        low, high = _BOUNDS[Alike(alike)]
        return [saved for saved in fitting if low <= _share(_meant(saved, character)) < high]
    return fitting


def _meant(saved: SavedImage, character: str) -> Sequence[Likeness]:
    """The likeness to the character that is chosen; without one, to all of the image."""
    return [one for one in saved.record.likeness if one.character == character] or saved.record.likeness


def _share(likeness: Sequence[Likeness]) -> float:
    """The part of the way to the character that the image is least like; not a number when nobody knows."""
    return min((one.share for one in likeness if one.share is not None), default=math.nan)


def items(page: Page, found: Sequence[SavedImage]) -> list[dict[str, Any]]:
    """Each image with everything there is to say about it."""
    titles = _titles(page) if found else {}
    return [_item(page, saved, titles) for saved in found]


def _item(page: Page, saved: SavedImage, titles: Mapping[str, str]) -> dict[str, Any]:
    record, spec = saved.record, saved.record.spec
    made = datetime.fromtimestamp(record.created_at).astimezone()
    return {
        "id": saved.id,
        "thumbnail": page.pictures.thumbnail(saved.path),
        "whole": page.pictures.whole(saved.path),
        "prompt": record.prompt,
        "badge": badge(record.likeness),
        "details": [
            {"name": "Model", "value": titles.get(spec.base_model, spec.base_model)},
            *(
                {"name": "LoRA" if not place else "", "value": f"{used.name} at {used.strength:g}"}
                for place, used in enumerate(record.loras)
            ),
            *({"name": f"Likeness to {one.name}", "value": in_words(one)} for one in record.likeness),
            {"name": "Seed", "value": str(record.seed)},
            {"name": "Size", "value": f"{spec.width} x {spec.height}"},
            {"name": "Steps", "value": str(spec.num_inference_steps)},
            {"name": "Guidance", "value": f"{spec.guidance_scale:g}"},
            *([{"name": "Speed", "value": "fast"}] if spec.cache is not StepCache.NONE else []),
            {
                "name": "Took",
                "value": duration(record.seconds) if record.seconds >= 10 else f"{record.seconds:.1f} s",
            },
            {"name": "Made", "value": f"{made:%d %b %Y, %H:%M}"},
        ],
    }


def badge(likeness: Sequence[Likeness]) -> dict[str, Any] | None:
    """What is written on an image: its likeness to the character that it is least like; None when nobody measured it."""
    if not likeness:
        return None
    one = min(likeness, key=lambda each: each.value)
    if one.cosine is None:
        return {"name": one.name, "text": "", "level": "unlike"}
    if one.share is None:
        return {"name": one.name, "text": f"{one.cosine:.2f}", "level": "unknown"}
    level = "alike" if one.share >= ALIKE else "unlike" if one.share < UNLIKE else "between"
    return {"name": one.name, "text": f"{one.percent} %", "level": level}


def in_words(one: Likeness) -> str:
    """The same with all that is known."""
    if one.cosine is None:
        return "nobody is seen"
    way = "" if one.share is None else f"{one.percent} % of the way, "
    return f"{way}cosine {one.cosine:.2f}"


def filters(page: Page, found: Found) -> dict[str, Choices]:
    """The characters and models that have images."""
    names = {character.id: character.name for character in page.app.characters.list()}
    names |= {lora.character: lora.name for lora in page.app.images.loras() if lora.character not in names}
    owners = {owner for _, all_owners in found for owner in all_owners}
    characters = sorted(
        ((names.get(owner, owner), owner) for owner in owners), key=lambda each: each[0].lower()
    )
    plain = [("Without a character", "")] if any(not all_owners for _, all_owners in found) else []
    titles = _titles(page)
    models = sorted({saved.record.spec.base_model for saved, _ in found})
    return {
        "characters": [("All characters", ALL), *characters, *plain],
        "models": [("All models", ALL), *((titles.get(model, model), model) for model in models)],
    }


def archive(page: Page, *, character: str, model: str, alike: str) -> str:
    """Write the images that fit the filters into a zip file; its address. Raises: InvalidSpec, DiskFull."""
    files = [saved.path for saved in fit(everything(page), character=character, model=model, alike=alike)]
    if not files:
        raise InvalidSpec("there is no image to download")
    if (size := sum(_size(path) for path in files)) > MAX_ZIP:
        raise InvalidSpec(
            f"these {len(files)} images take {size / 1024**3:.1f} GB, and a zip may hold {MAX_ZIP // 1024**3} GB;"
            " choose a character or a model first"
        )
    exports = page.app.settings.exports_dir
    for old in exports.glob("*/isengard-images-*.zip"):
        shutil.rmtree(old.parent, ignore_errors=True)
    target = exports / uuid.uuid4().hex / f"isengard-images-{time.strftime('%Y%m%d-%H%M%S')}.zip"
    _write(target, files)
    return address(target)


def _write(target: Path, files: Sequence[Path]) -> None:
    """Pictures are compressed already, so they are only stored."""
    with disk_full_as_error(target):
        target.parent.mkdir(parents=True)
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as packed:
            for path in files:
                with suppress(FileNotFoundError):  # deleted in the meantime
                    packed.write(path, path.name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _titles(page: Page) -> dict[str, str]:
    return {card.name: card.title for card, _ in page.app.images.models()}
