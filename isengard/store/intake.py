"""Uploads: files and zip archives from anywhere, read within limits. Nothing is ever unpacked onto the disk."""

import os
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path, PurePosixPath, PureWindowsPath

from isengard.domain.captions import clean_caption
from isengard.domain.character import RefusedImage
from isengard.errors import ImageRefused, InvalidSpec
from isengard.store.decoding import DECODE_ERRORS

MAX_FILE_BYTES = 50 * 2**20
MAX_CAPTION_BYTES = 64 * 2**10
#: Limits of one archive.
MAX_ENTRIES = 2000
MAX_UNPACKED_BYTES = 2 * 2**30
MAX_DIRECTORY_BYTES = 2 * 2**20
#: Beyond the first mebibyte, an entry may not be more than this many times its packed size.
MAX_RATIO = 200

_CHUNK = 2**20
#: In front of the packed content of an entry, besides its name.
_HEADER_BYTES = 30
_ENCRYPTED = 0x1 | 0x40
_JUNK = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
_BROKEN_ZIP = (*DECODE_ERRORS, zipfile.BadZipFile)


@dataclass(frozen=True)
class Upload:
    """One file that may be an image, read but not yet judged."""

    filename: str
    content: bytes
    caption: str


@dataclass(frozen=True)
class _Source:
    """A file that is not read yet; ``path`` is its name, to show and to match captions by."""

    filename: str
    path: PurePosixPath
    read: Callable[[int], bytes]  # the content, of at most so many bytes

    @property
    def is_caption(self) -> bool:
        return self.path.suffix.lower() == ".txt"


_Group = Sequence[_Source | RefusedImage]


def uploads(paths: Sequence[Path]) -> Iterator[Upload | RefusedImage]:
    """Read files and archives one after the other, each with the caption that has its stem.

    A ``.txt`` belongs to the pictures of its folder with its stem, else to the one picture of the whole archive
    (or of all the loose files) with its stem. Folders in an archive, hidden files and what operating systems
    leave there are passed over.
    """
    for group in _groups(paths):
        captions, refused = _read_captions(group)
        yield from refused
        for item in group:
            if isinstance(item, RefusedImage):
                yield item
            elif not item.is_caption:
                yield _read(item, captions.get(item.path, ""))


def count(paths: Sequence[Path]) -> int:
    """How many pictures `uploads` will try, for a progress bar."""
    return sum(
        isinstance(item, RefusedImage) or not item.is_caption for group in _groups(paths) for item in group
    )


def shown(name: str) -> str:
    """A file's name, safe for a terminal, a log and a page: strange characters become ``?``."""
    safe = "".join(letter if letter.isprintable() else "?" for letter in name)
    return safe if len(safe) <= 200 else f"{safe[:100]}…{safe[-99:]}"


def _read(source: _Source, caption: str) -> Upload | RefusedImage:
    try:
        return Upload(source.filename, source.read(MAX_FILE_BYTES), caption)
    except ImageRefused as error:
        return RefusedImage(filename=source.filename, reason=str(error))


def _groups(paths: Sequence[Path]) -> Iterator[_Group]:
    """Each archive is a group, and stays open until the next one is asked for; all loose files are one more."""
    loose: list[_Source | RefusedImage] = []
    for path in paths:
        name = shown(path.name)
        try:
            with _open_regular(path) as file:
                if path.suffix.lower() == ".zip" and file.read(2) == b"PK":
                    yield _survey(file, name)
                    continue
            loose.append(_Source(name, PurePosixPath(path), partial(_read_file, path)))
        except ImageRefused as error:
            loose.append(RefusedImage(filename=name, reason=str(error)))
    yield loose


class _BoundedFile(FileIO):
    """Refuses to read much at once, whatever an archive's directory says of its own size."""

    def read(self, size: int | None = -1, /) -> bytes:
        bounded = size is not None and 0 <= size <= MAX_DIRECTORY_BYTES
        content = super().read(size if bounded else MAX_DIRECTORY_BYTES + 1)
        if len(content) > MAX_DIRECTORY_BYTES:
            raise ImageRefused(f"the archive holds more than {MAX_ENTRIES} files; split it")
        return content


def _open_regular(path: Path) -> _BoundedFile:
    """Open a regular file and nothing else: no link, folder, pipe or device.

    Raises:
        ImageRefused: what it is instead.
    """
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise ImageRefused("it is a symbolic link; send the file it points to")
        if stat.S_ISDIR(mode):
            raise ImageRefused("it is a folder; send the files in it, or a zip of them")
        if not stat.S_ISREG(mode):
            raise ImageRefused("it is a device, pipe or socket, not a file")
        return _BoundedFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError:
        raise ImageRefused("there is no such file") from None
    except (OSError, ValueError) as error:
        raise ImageRefused(f"the file cannot be opened ({error})") from error


def _read_file(path: Path, limit: int) -> bytes:
    content = bytearray()
    with _open_regular(path) as file:
        while len(content) <= limit and (chunk := file.read(_CHUNK)):
            content += chunk
    if len(content) > limit:
        raise ImageRefused(_too_long(limit))
    return bytes(content)


def _too_long(limit: int) -> str:
    return (
        f"the file is larger than {limit // 2**20} MB"
        if limit >= 2**20
        else f"the file is larger than {limit // 2**10} KB"
    )


def _survey(file: FileIO, name: str) -> _Group:
    """The files of an archive, unread, and a reason for each that will not be."""
    try:
        archive = zipfile.ZipFile(file)
    except ImageRefused as error:
        return [RefusedImage(filename=name, reason=str(error))]
    except _BROKEN_ZIP as error:
        return [RefusedImage(filename=name, reason=f"the zip archive is damaged ({error}); make it again")]
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        reason = f"the archive holds {len(entries)} files, more than {MAX_ENTRIES}; split it"
        return [RefusedImage(filename=name, reason=reason)]
    reader, seen, overlapping = _EntryReader(archive), set[str](), _overlapping(archive)
    found: list[_Source | RefusedImage] = []
    for entry in entries:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry.is_dir() or _is_junk(path):
            continue
        if reason := _entry_refusal(entry, path, seen, overlapping):
            found.append(RefusedImage(filename=shown(entry.filename), reason=reason))
        else:
            found.append(_Source(shown(entry.filename), path, partial(reader.read, entry)))
        seen.add(entry.filename)
    return found or [RefusedImage(filename=name, reason="the zip archive holds no files")]


def _is_junk(path: PurePosixPath) -> bool:
    return any(
        part.lower() in _JUNK or (part.startswith(".") and part not in (".", "..")) for part in path.parts
    )


def _overlapping(archive: zipfile.ZipFile) -> set[int]:
    """Where those entries begin whose packed content reaches into the next: a way to pack much into little.

    (Python looks at it since 3.11.8 only.)
    """
    entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
    ends = [*(entry.header_offset for entry in entries[1:]), archive.start_dir]
    return {
        entry.header_offset
        for entry, end in zip(entries, ends, strict=False)
        if entry.header_offset + _HEADER_BYTES + entry.compress_size > end
    }


def _entry_refusal(
    entry: zipfile.ZipInfo, path: PurePosixPath, seen: Collection[str], overlapping: Collection[int]
) -> str:
    """Why an entry is not even read; empty when it is."""
    leads_out = path.is_absolute() or PureWindowsPath(entry.filename).drive or ".." in path.parts
    special = stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG)
    packed_strangely = entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    checks = (
        (leads_out, "its path leads out of the archive"),
        (entry.filename in seen, "the archive holds this name twice; the first one was taken"),
        (special, "it is a link or a device, not a file"),
        (entry.flag_bits & _ENCRYPTED, "it is encrypted; make the archive without a password"),
        (entry.header_offset in overlapping, "it shares its bytes with another file, like a zip bomb"),
        (packed_strangely, "it is packed in an uncommon way; make an ordinary zip"),
    )
    return next((reason for wrong, reason in checks if wrong), "")


class _EntryReader:
    """Unpacks entries of one archive and remembers how much that was."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._unpacked = 0

    def read(self, entry: zipfile.ZipInfo, limit: int) -> bytes:
        """The content, counted while it is read: what the archive says of sizes is not believed.

        Raises:
            ImageRefused: damaged, too long, packed suspiciously well, or the archive's limit is spent.
        """
        content = bytearray()
        try:
            with self._archive.open(entry) as stream:
                while chunk := stream.read(_CHUNK):
                    content += chunk
                    self._unpacked += len(chunk)
                    if self._unpacked > MAX_UNPACKED_BYTES:
                        raise ImageRefused(
                            f"the archive unpacks to over {MAX_UNPACKED_BYTES // 2**30} GB; split it"
                        )
                    if len(content) > max(_CHUNK, MAX_RATIO * entry.compress_size):
                        raise ImageRefused(f"it unpacks to over {MAX_RATIO} times its size, like a zip bomb")
                    if len(content) > limit:
                        raise ImageRefused(_too_long(limit))
        except _BROKEN_ZIP as error:
            raise ImageRefused(f"it is damaged in the archive ({error}); make the archive again") from error
        return bytes(content)


def _read_captions(group: _Group) -> tuple[dict[PurePosixPath, str], list[RefusedImage]]:
    """The captions by their picture's path, and the ``.txt`` files that are none."""
    pictures: dict[str, list[PurePosixPath]] = defaultdict(list)
    texts: list[_Source] = []
    for source in group:
        if isinstance(source, _Source) and source.is_caption:
            texts.append(source)
        elif isinstance(source, _Source):
            pictures[_stem(source)].append(source.path)
    captions: dict[PurePosixPath, str] = {}
    refused: list[RefusedImage] = []

    def beside(text: _Source) -> list[PurePosixPath]:
        return [path for path in pictures.get(_stem(text), ()) if path.parent == text.path.parent]

    for text in sorted(texts, key=lambda text: not beside(text)):
        owners = beside(text) or [path for path in pictures.get(_stem(text), ()) if path not in captions]
        try:
            captions |= dict.fromkeys(owners, _read_caption(text, owners))
        except (ImageRefused, InvalidSpec) as error:
            refused.append(RefusedImage(filename=text.filename, reason=str(error)))
    return captions, refused


def _stem(source: _Source) -> str:
    return source.path.stem.casefold()


def _read_caption(text: _Source, owners: Sequence[PurePosixPath]) -> str:
    if not owners:
        raise ImageRefused("no picture in this upload has this name, so it is nobody's caption")
    if len({owner.parent for owner in owners}) > 1:
        raise ImageRefused("pictures in several folders have this name; put the caption beside its picture")
    content = text.read(MAX_CAPTION_BYTES)
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return clean_caption(content.decode(encoding))
        except UnicodeDecodeError:
            continue
    raise ImageRefused("the caption's encoding is unknown; save it as UTF-8")
