"""Small drawn pictures and the files they come in."""

import io
import random
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

HEIC = Path(__file__).parents[1] / "assets" / "heic"


def picture(seed: int = 0, size: tuple[int, int] = (96, 80), mode: str = "RGB") -> Image.Image:
    """Soft coloured patches that depend on ``seed`` only, so two of them look different."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    patches = Image.frombytes(mode, (6, 5), random.Random(seed).randbytes(30 * channels))
    return patches.resize(size, Image.Resampling.BICUBIC if mode != "P" else Image.Resampling.NEAREST)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(path: Path, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path
