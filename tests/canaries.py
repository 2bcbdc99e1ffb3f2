"""A secret found again, however it is written and packed."""

import gzip
import html
import io
import json
import zipfile
import zlib
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

PNG = b"\x89PNG\r\n\x1a\n"


def forms(secret: str) -> set[bytes]:
    """How it may be written: in addresses, JSON, HTML, hex, and inside something that is in base64."""
    texts = {
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
        html.escape(secret),
        secret.encode().hex(),
    }
    return {text.encode() for text in texts} | set(_in_base64(secret.encode()))


def _in_base64(secret: bytes) -> Iterator[bytes]:
    """The letters that depend on nothing but the secret, for each place it can begin at."""
    for before in range(3):
        first, end = -(-8 * before // 6), 8 * (before + len(secret)) // 6
        for encode in (b64encode, urlsafe_b64encode):
            yield encode(bytes(before) + secret + b"\0\0")[first:end]


def unpacked(content: bytes) -> Iterator[bytes]:
    """The content, and what is compressed in it: texts of a PNG, members of a zip, gzip."""
    yield content
    if content.startswith(PNG):
        yield from _of_png(content)
    elif content.startswith(b"PK\3\4"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from unpacked(archive.read(name))
    elif content.startswith(b"\x1f\x8b"):
        yield from unpacked(gzip.decompress(content))


def _of_png(content: bytes) -> Iterator[bytes]:
    at = len(PNG)
    while at < len(content):
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + length]
        if kind in (b"zTXt", b"iTXt", b"iCCP"):
            for start in range(len(data)):  # its place depends on the kind and on what precedes it
                if data[start : start + 1] == b"\x78":
                    stream = zlib.decompressobj()
                    try:
                        yield stream.decompress(data[start:])
                    except zlib.error:
                        continue
        at += 12 + length


def held(content: bytes, secrets: Mapping[str, str]) -> set[str]:
    """The names of the secrets that it holds."""
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    return {
        name
        for part in unpacked(content)
        for name, found in wanted.items()
        if any(form in part for form in found)
    }


def held_below(folder: Path, secrets: Mapping[str, str]) -> set[tuple[str, str]]:
    """Secrets and the files below a folder that hold them, or are called like them."""
    found = set()
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found |= {(secret, name) for secret in held(name.encode(), secrets) | held(content, secrets)}
    return found
