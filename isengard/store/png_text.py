"""Text inside PNG files, read without decoding a pixel and with every size bounded."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from isengard.errors import ImageRefused

SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: Bytes of one text, also after decompression.
MAX_TEXT = 1_000_000
MAX_CHUNKS = 200_000


def read_texts(path: Path, wanted: frozenset[str]) -> dict[str, str]:
    """The texts whose keywords are ``wanted``; a text that is too long or broken is left out.

    Raises:
        ImageRefused: not a PNG, or one that is cut off or broken.
    """
    try:
        with path.open("rb") as file:
            return dict(_texts(file, path, wanted))
    except OSError as error:
        raise ImageRefused(f"{path.name} cannot be read: {error}") from error


def _texts(file: BinaryIO, path: Path, wanted: frozenset[str]) -> Iterator[tuple[str, str]]:
    if file.read(len(SIGNATURE)) != SIGNATURE:
        raise ImageRefused(f"{path.name} is not a PNG file; settings are kept in PNG files only")
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            break
        length, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return
        if kind in _DECODERS and length <= MAX_TEXT:
            keyword, _, rest = file.read(length).partition(b"\0")
            name = keyword.decode("latin-1")
            text = _DECODERS[kind](rest) if name in wanted else None
            if text is not None:
                yield name, text
            file.seek(4, 1)
        else:
            file.seek(length + 4, 1)
    raise ImageRefused(f"{path.name} is a broken or cut-off PNG file; use the original file")


def _plain(data: bytes) -> str | None:
    return data.decode("latin-1")


def _compressed(data: bytes) -> str | None:
    inflated = _inflate(data[1:])
    return None if inflated is None else inflated.decode("latin-1")


def _international(data: bytes) -> str | None:
    """Compression flag and method, language, translated keyword, text."""
    flag, (_language, _, rest) = data[:1], data[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    content = _inflate(text) if flag == b"\1" else text
    return None if content is None else content.decode("utf-8", errors="replace")


def _inflate(data: bytes) -> bytes | None:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, MAX_TEXT)
    except zlib.error:
        return None
    return content if stream.eof else None


_DECODERS = {b"tEXt": _plain, b"zTXt": _compressed, b"iTXt": _international}
