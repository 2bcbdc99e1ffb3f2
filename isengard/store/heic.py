"""HEIC to PNG in a process of its own, because some damaged files crash pi-heif's C code instead of raising."""

import subprocess
import sys
from pathlib import Path

import isengard
from isengard.errors import ImageRefused

TIMEOUT_S = 60.0
REFUSED = 3
_ROOT = Path(isengard.__file__).parent.parent
#: Major brands of the files that pi-heif opens; AVIF has brands of its own.
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heic(content: bytes) -> bool:
    return content[4:8] == b"ftyp" and content[8:12] in _BRANDS


def to_png(content: bytes, *, min_side: int) -> bytes:
    """The upright picture with its colour profile. Raises: ImageRefused."""
    command = [sys.executable, "-m", "isengard.store.heic_process", str(min_side)]
    try:
        ended = subprocess.run(  # noqa: S603  # our own module
            command, input=content, capture_output=True, timeout=TIMEOUT_S, cwd=_ROOT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ImageRefused(
            f"the HEIC image could not be read within {TIMEOUT_S:.0f} s; export it again"
        ) from None
    if ended.returncode == REFUSED:
        raise ImageRefused(ended.stderr.decode().strip())
    if ended.returncode:
        raise ImageRefused("the HEIC image is damaged: copy or export it again")
    return ended.stdout
