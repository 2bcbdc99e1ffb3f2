"""JSON lines with correlation and job ids on every one of them, and no secret in any.

A contextvar does not cross threads. Fields that belong to the whole process (a worker runs one job at a time) are
bound with ``everywhere=True`` and reach the lines of every thread. Where several things happen in one process, start
the thread with ``contextvars.copy_context().run`` instead.
"""

import glob
import json
import logging
import math
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO, cast
from urllib.parse import quote

#: These put a handler of their own on their logger when they are imported, and cut it off from ours.
LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "torch")
#: Below a warning their lines hold what a photo says of itself, and whole addresses: that of a webhook is a password.
TALKATIVE = ("PIL", "httpx", "httpx2", "httpcore", "httpcore2")
#: Warnings are for developers, and the command line says itself what went wrong.
NOT_FOR_A_PERSON = ("py.warnings", "isengard.cli")
HIDDEN = "***"
#: A file of so many bytes is full, and so many full ones of each name are kept.
MAX_BYTES = 20_000_000
KEPT = 5

#: A shorter secret stands in too many other words to be replaced wherever it is found.
SHORTEST = 8
#: The secrets of this process in every form, the longest first.
_hidden: list[str] = []

_EMPTY: Mapping[str, Any] = MappingProxyType({})
_of_context: ContextVar[Mapping[str, Any]] = ContextVar("isengard_log_fields", default=_EMPTY)
_of_process: dict[str, Any] = {}
_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_SENSITIVE = r"(?:password|passwd|secret|token|api[_-]?key|auth|authorization|credentials?|cookie)"
_SECRET_KEY = re.compile(rf"(?:.*[_-])?{_SENSITIVE}", re.IGNORECASE)
_SECRETS = (
    (re.compile(r"\b(?:hf_|sk-|ghp_|github_pat_)[\w-]{6,}"), HIDDEN),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {HIDDEN}"),
    (re.compile(r"(?<=://)[^\s/\"'?#]+@"), f"{HIDDEN}@"),
    (
        re.compile(
            rf"(\b[\w-]*{_SENSITIVE}[\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|(?!{re.escape(HIDDEN)})[^\s\"',;&)}}\]]+)",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
    (re.compile(r"(?<![\w*])[^\s/:@\"'=(]+:[^\s/@\"']+@(?=\w)"), f"{HIDDEN}@"),
)


def configure(
    *,
    level: str,
    path: Path | None,
    hidden: Collection[str] = (),
    terminal_level: str = "WARNING",
    terminal_json: bool = False,
) -> None:
    """Send every log line and Python warning of this process to ``path`` and, from ``terminal_level``, to stderr.

    Calling it again replaces the former configuration. The file and its folder appear with the first line.
    ``hidden``: see `hide`.
    """
    hide(hidden)
    terminal = _Terminal(terminal_level)
    terminal.setFormatter(_JsonLine() if terminal_json else _ShortLine())
    if not terminal_json:
        terminal.addFilter(lambda record: record.name not in NOT_FOR_A_PERSON)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        file = _SharedFile(path)
        file.setFormatter(_JsonLine())
        handlers.append(file)
    root = logging.getLogger()
    for former in list(root.handlers):
        if isinstance(former, _Terminal | _SharedFile):
            root.removeHandler(former)
            former.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)
    for name in LIBRARIES:
        _route(logging.getLogger(name))
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


@contextmanager
def bound(*, everywhere: bool = False, **fields: Any) -> Iterator[None]:
    """Put ``fields`` on every line logged inside the block; with ``everywhere`` on those of all threads."""
    if everywhere:
        before = dict(_of_process)
        _of_process.update(fields)
        try:
            yield
        finally:
            _of_process.clear()
            _of_process.update(before)
        return
    token = _of_context.set({**_of_context.get(), **fields})
    try:
        yield
    finally:
        _of_context.reset(token)


def bound_field(name: str) -> Any:
    """What `bound` says here and now; None when nothing."""
    return {**_of_process, **_of_context.get()}.get(name)


def hide(secrets: Collection[str]) -> None:
    """From now on `conceal` and all logs leave these out, as they are, in addresses and in JSON."""
    forms = {form for secret in secrets if len(secret) >= SHORTEST for form in written(secret)}
    _hidden[:] = sorted({*_hidden, *forms}, key=len, reverse=True)


def written(secret: str) -> set[str]:
    """How a text may hold it: as it is, in JSON, in an address."""
    in_json = {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    return {secret, quote(secret), quote(secret, safe=""), *in_json}


def show_again() -> None:
    """Forget what `hide` was told."""
    _hidden.clear()


def conceal(text: str) -> str:
    """Replace each secret that this process knows by ``***``, and nothing else."""
    for secret in _hidden:
        text = text.replace(secret, HIDDEN)
    return text


def conceal_output() -> None:
    """Let nothing be printed that `conceal` replaces: libraries print tracebacks without asking anybody."""
    sys.stdout, sys.stderr = (cast("TextIO", _Concealing(stream)) for stream in (sys.stdout, sys.stderr))


def redact(text: str) -> str:
    """Replace each known secret, and what looks like a token, a password or a login, by ``***``."""
    text = conceal(text)
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean(value: Any, key: str = "") -> Any:
    """A value that JSON can hold and that hides no secret."""
    if _SECRET_KEY.fullmatch(key):
        return HIDDEN
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(inner): clean(item, str(inner)) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item) for item in value]
    return redact(str(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    extra = {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
    fields = {**_of_process, **_of_context.get(), **extra}
    return {key: clean(value, key) for key, value in fields.items()}


class _JsonLine(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage().strip()),
            "pid": record.process,
            "thread": record.threadName,
        }
        for key, value in _fields(record).items():
            line.setdefault(key, value)
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


class _ShortLine(logging.Formatter):
    """What a person at a terminal needs; the traceback is in the file only."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC).astimezone()
        fields = _fields(record)
        fields.pop("correlation_id", None)
        parts = [f"{moment:%H:%M:%S}", record.levelname.lower(), redact(record.getMessage().strip())]
        parts += [f"{key}={value}" for key, value in fields.items()]
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            parts.append(f"({type(error).__name__}: {redact(str(error))})")
        return " ".join(parts)


class _Concealing:
    """Text that is written here is concealed; in all else it is the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(conceal(text))

    def writelines(self, lines: Collection[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Terminal(logging.Handler):
    """Writes to whatever ``sys.stderr`` is now: a progress bar on screen takes the line and stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal is gone; that must not stop the work
            return


class _SharedFile(logging.Handler):
    """A file that several processes write to and set aside when it is full, and that never stops the work.

    Nobody locks anything. A line is one write to a file opened for appending, so lines never mix. A full file is renamed
    to a name that no other has, so none is overwritten, whoever else does it at the same moment: at worst the other one
    sets aside a file that was just begun.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file: FileIO | None = None
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        try:
            file = self._current()
            file.write(line)
            if file.tell() >= MAX_BYTES:
                self._set_aside()
        except OSError as error:
            if not self._told:
                self._told = True
                sys.stderr.write(f"cannot write the log {self._path}: {error}\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _current(self) -> FileIO:
        """The file of this name: another process may have set it aside, or somebody removed it."""
        if self._file is not None and not self._is_current(self._file):
            self._file.close()
            self._file = None
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self._path, "a")
        return self._file

    def _is_current(self, file: FileIO) -> bool:
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False

    def _set_aside(self) -> None:
        """Put the file behind those that are full, and remove the oldest of these."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        with suppress(FileNotFoundError):  # another process has done it just now
            self._path.rename(self._path.with_name(f"{self._path.name}.{moment}-{os.getpid()}"))
        for old in full_files(self._path)[:-KEPT]:
            old.unlink(missing_ok=True)


def full_files(path: Path) -> list[Path]:
    """What was set aside of the log ``path``, the oldest first."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.[0-9]*"))


class _RoutedLogger(logging.Logger):
    """A library's logger that takes no handler and always passes its lines on to ours."""

    @property
    def propagate(self) -> bool:
        return True

    @propagate.setter
    def propagate(self, value: bool) -> None:
        pass

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802  # logging's name
        pass


def _route(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.__class__ = _RoutedLogger
