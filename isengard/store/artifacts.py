"""What is made and kept: LoRAs and images."""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from PIL.Image import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from isengard import __version__
from isengard.domain.base import validated
from isengard.domain.generation import (
    FoundSettings,
    ImageRecord,
    ImageSpec,
    LocalLora,
    LoraRef,
    SavedImage,
    UsedLora,
)
from isengard.domain.likeness import Likeness
from isengard.domain.lora import Lora
from isengard.errors import ImageRefused, InvalidSpec, NotFound
from isengard.files import PARTIAL, Stamp, alone, check_now, replacing, stamp, sweep, write_text
from isengard.store.parameters import ORIGIN, read_parameters, write_parameters
from isengard.store.png_text import read_texts

log = logging.getLogger(__name__)

RECORD = "lora.json"
#: Keyword of our own JSON in a PNG.
OURS = "isengard"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
#: The beginning of a name in the trash, as a pattern for files.
_WHEN = "????????T??????Z"


class Loras:
    """Finished LoRAs, a folder each: ``<id>/lora.json`` and ``<id>/<name>.safetensors``."""

    def __init__(
        self, *, loras_dir: Path, runs_dir: Path, trash_dir: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._loras_dir = loras_dir
        self._runs_dir = runs_dir
        self._trash_dir = trash_dir
        self._clock = clock
        self._lock = FileLock(loras_dir / ".lock")

    def add(  # noqa: PLR0913 - plain facts, each by name
        self,
        *,
        lora_id: str,
        name: str,
        character: str,
        trigger: str,
        class_word: str,
        base_model: str,
        steps: int,
        source: Path,
        details: dict[str, Any],
    ) -> Lora:
        """Keep a copy of ``source``. A LoRA of the same id is replaced: a job may be delivered twice.

        Raises:
            DiskFull, Conflict.
        """
        lora = Lora(
            id=lora_id,
            name=name,
            character=character,
            trigger=trigger,
            class_word=class_word,
            base_model=base_model,
            steps=steps,
            filename=f"{slug(name)}.safetensors",
            created_at=self._clock(),
            details=details,
        )
        self._loras_dir.mkdir(parents=True, exist_ok=True)
        with alone(self._lock, "LoRAs"), replacing(self._loras_dir / lora_id) as folder:
            sweep(self._loras_dir)
            folder.mkdir()
            shutil.copyfile(source, folder / lora.filename)
            write_text(folder / RECORD, lora.model_dump_json(indent=2))
        return lora

    def get(self, lora_id: str) -> Lora:
        """Raises: NotFound, with the ids there are, or what is damaged of it."""
        folder = self._loras_dir / lora_id
        lora = _read_lora(folder) if _ID.fullmatch(lora_id) else None
        if lora is None:
            if _ID.fullmatch(lora_id) and folder.is_dir():
                raise NotFound(
                    f"LoRA {lora_id!r} is damaged: {folder / RECORD}, or the file it names, cannot be read. What is left is"
                    " in that folder; take the rest from a backup"
                )
            known = ", ".join(one.id for one in self.list()) or "none yet"
            raise NotFound(f"there is no LoRA {lora_id!r} (known: {known})")
        return lora

    def list(self, *, character: str | None = None) -> tuple[Lora, ...]:
        """All LoRAs, or those of one character; newest first."""
        folders = (path for path in self._loras_dir.glob("*") if PARTIAL not in path.name and path.is_dir())
        found = [lora for folder in folders if (lora := _read_lora(folder))]
        chosen = [lora for lora in found if character in (None, lora.character)]
        return tuple(sorted(chosen, key=lambda lora: (lora.created_at, lora.id), reverse=True))

    def path(self, lora: Lora) -> Path:
        """Its file."""
        return self._loras_dir / lora.id / lora.filename

    def remove(self, lora_id: str) -> None:
        """Move a LoRA into the trash. Raises: NotFound."""
        with alone(self._lock, "LoRAs"):
            lora = self.get(lora_id)
            _trash(self._loras_dir / lora.id, self._trash_dir, self._clock())

    def checkpoints(self, lora_id: str) -> tuple[int, ...]:
        """The steps of its run that are still kept and that `LoraRef.step` can name, lowest first."""
        files = (self._runs_dir / lora_id / "checkpoints").glob("step-*/lora.safetensors")
        return tuple(sorted(int(file.parent.name[5:]) for file in files if file.parent.name[5:].isdigit()))

    def resolve(self, ref: LoraRef) -> LocalLora:
        """The file to load.

        Raises:
            NotFound: the LoRA or the checkpoint, with those there are.
        """
        lora = self.get(ref.lora)
        path, name = self.path(lora), lora.name
        if ref.step is not None:
            folder = self._runs_dir / lora.id / "checkpoints" / f"step-{ref.step:08d}"
            path, name = folder / "lora.safetensors", f"{name}-step{ref.step}"
            if not path.is_file():
                known = ", ".join(map(str, self.checkpoints(lora.id))) or "none"
                raise NotFound(f"LoRA {lora.id!r} has no checkpoint of step {ref.step} (there are: {known})")
        return LocalLora(
            id=lora.id,
            name=name,
            path=path,
            trigger=lora.trigger,
            class_word=lora.class_word,
            strength=ref.strength,
        )


class Images:
    """Finished images: ``<job id>-<index>.png``, each with its record inside."""

    def __init__(self, *, images_dir: Path, trash_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._images_dir = images_dir
        self._trash_dir = trash_dir
        self._clock = clock
        self._known: dict[str, tuple[Stamp, SavedImage | None]] = {}  # by file name

    def add(  # noqa: PLR0913 - plain facts, each by name
        self,
        image: Image,
        *,
        job_id: str,
        index: int,
        spec: ImageSpec,
        prompt: str,
        loras: Sequence[LocalLora],
        seed: int,
        seconds: float,
        likeness: Sequence[Likeness] = (),
    ) -> SavedImage:
        """Keep an image. The same job and index give one file, however often. Raises: DiskFull."""
        record = ImageRecord(
            job_id=job_id,
            index=index,
            spec=spec,
            prompt=prompt,
            seed=seed,
            loras=tuple(
                UsedLora(id=lora.id, name=lora.name, strength=lora.strength, hash=_short_hash(lora.path))
                for lora in loras
            ),
            seconds=round(seconds, 3),
            created_at=self._clock(),
            likeness=tuple(likeness),
        )
        inside = PngInfo()
        inside.add_text(ORIGIN, write_parameters(record, version=__version__))
        inside.add_itxt(OURS, record.model_dump_json())
        image_id = f"{job_id}-{index}"
        path = self._images_dir / f"{image_id}.png"
        with replacing(path) as temporary:
            # zlib's default takes 0.25 s for 1024 x 1024 pixels, this 0.1 s and an eighth more space.
            image.save(temporary, "PNG", pnginfo=inside, compress_level=1)
        return SavedImage(id=image_id, path=path, record=record)

    def get(self, image_id: str) -> SavedImage:
        """Raises: NotFound."""
        saved = _read_image(self._images_dir / f"{image_id}.png") if _ID.fullmatch(image_id) else None
        if saved is None:
            raise NotFound(f"there is no image {image_id!r}")
        return saved

    def list(self, *, limit: int | None = 100) -> tuple[SavedImage, ...]:
        """The newest images first, by the time of their files; all of them without a limit.

        A file is read once and again only when it has changed, so that thousands are quick.
        """
        stamps = _stamps_of_pngs(self._images_dir)
        for name in self._known.keys() - stamps.keys():
            self._known.pop(name, None)
        found: list[SavedImage] = []
        for name, changed in sorted(stamps.items(), key=lambda file: (file[1][0], file[0]), reverse=True):
            if len(found) == limit:
                break
            if saved := self._read(name, changed):
                found.append(saved)
        return tuple(found)

    def _read(self, name: str, changed: Stamp) -> SavedImage | None:
        known = self._known.get(name)
        if known is None or known[0] != changed:
            known = self._known[name] = (changed, _read_image(self._images_dir / name))
        return known[1]

    def kept(self, job_id: str, *, count: int) -> tuple[SavedImage, ...]:
        """The first ``count`` images of a job, as far as they are there.

        Asks for each by its name: of a network folder a machine may remember a list from before another one's images.
        """
        paths = (self._images_dir / f"{job_id}-{index}.png" for index in range(count))
        return tuple(saved for path in paths if (saved := _read_image(path)))

    def of_job(self, job_id: str) -> tuple[SavedImage, ...]:
        """What a job has made so far, in its order."""
        stamps = _stamps_of_pngs(self._images_dir)
        found = (self._read(name, stamps[name]) for name in stamps if name.startswith(f"{job_id}-"))
        mine = [saved for saved in found if saved and saved.record.job_id == job_id]
        return tuple(sorted(mine, key=lambda saved: saved.record.index))

    def sweep(self, job_id: str) -> None:
        """Remove what a killed worker left unfinished of a job's images."""
        sweep(self._images_dir, f"{job_id}-*")

    def remove(self, image_id: str) -> None:
        """Move an image into the trash. Raises: NotFound."""
        _trash(self.get(image_id).path, self._trash_dir, self._clock())

    def trashed(self, job_id: str) -> tuple[SavedImage, ...]:
        """What of a job's images lies in the trash, in its order; the path is that of the gallery."""
        found = (_read_image(path) for path in self._trash_dir.glob(f"{_WHEN}-{job_id}-*.png"))
        mine = {one.record.index: one.record for one in found if one and one.record.job_id == job_id}
        return tuple(
            SavedImage(id=f"{job_id}-{index}", path=self._images_dir / f"{job_id}-{index}.png", record=record)
            for index, record in sorted(mine.items())
        )

    def restore(self, image_id: str) -> bool:
        """Bring an image back from the trash; whether it is in the gallery now."""
        if not _ID.fullmatch(image_id):
            return False
        target = self._images_dir / f"{image_id}.png"
        entries = sorted(self._trash_dir.glob(f"{_WHEN}-{image_id}.png"))
        if entries and not target.exists():
            entries[-1].rename(target)
        return target.exists()


def read_settings(path: Path) -> FoundSettings:
    """How a PNG of ours or of an A1111-style program was made.

    Raises:
        ImageRefused: not a PNG, a broken one, or one that holds no settings.
    """
    texts = read_texts(path, frozenset({OURS, ORIGIN}))
    if OURS in texts:
        try:
            record = ImageRecord.model_validate_json(texts[OURS])
        except ValidationError:
            log.info("foreign image record", extra={"file": path.name})
        else:
            return FoundSettings(origin=OURS, settings=record.again.model_dump(mode="json"))
    if ORIGIN in texts:
        return read_parameters(texts[ORIGIN])
    raise ImageRefused(
        f"{path.name} holds no settings: it was not made here or by an A1111-style program, or they were removed"
    )


def slug(name: str) -> str:
    """A name as part of a file name: small letters, digits and hyphens."""
    return "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "lora"


def _read_lora(folder: Path) -> Lora | None:
    """None when there is none that can be used."""
    try:
        lora = validated(Lora, json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, InvalidSpec):
        log.debug("no LoRA here", extra={"folder": folder.name})
        return None
    return lora if (folder / lora.filename).is_file() else None


def _read_image(path: Path) -> SavedImage | None:
    try:
        record = ImageRecord.model_validate_json(read_texts(path, frozenset({OURS}))[OURS])
    except (ImageRefused, KeyError, ValidationError):
        return None
    return SavedImage(id=path.stem, path=path, record=record)


def _stamps_of_pngs(folder: Path) -> dict[str, Stamp]:
    """When each was changed, by its name."""
    found: dict[str, Stamp] = {}
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".png"):
                with suppress(FileNotFoundError):  # deleted in the meantime
                    found[entry.name] = stamp(entry.stat())
    return found


def _short_hash(path: Path) -> str:
    try:
        with safe_open(path, framework="np") as file:
            return str((file.metadata() or {}).get("sshs_model_hash", ""))[:12]
    except (OSError, SafetensorError):
        return ""


def _trash(path: Path, trash_dir: Path, now: float) -> None:
    trash_dir.mkdir(parents=True, exist_ok=True)
    while (target := trash_dir / f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{path.name}").exists():
        now += 1
    check_now()
    path.rename(target)
