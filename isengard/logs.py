"""JSON lines with correlation and job ids on every one of them, and no secret in any.

A contextvar does not cross threads. Fields that belong to the whole process (a worker runs one job at a time) are
bound with ``everywhere=True`` and reach the lines of every thread. Where several things happen in one process, start
the thread with ``contextvars.copy_context().run`` instead.
"""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any

#: These put a handler of their own on their logger when they are imported, and cut it off from ours.
LIBRARIES = ("diffusers", "transformers", "huggingface_hub", "torch")
#: Warnings are for developers, and the command line says itself what went wrong.
NOT_FOR_A_PERSON = ("py.warnings", "isengard.cli")
HIDDEN = "***"
MAX_BYTES = 20_000_000

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
    *, level: str, path: Path | None, terminal_level: str = "WARNING", terminal_json: bool = False
) -> None:
    """Send every log line and Python warning of this process to ``path`` and, from ``terminal_level``, to stderr.

    Calling it again replaces the former configuration. The file and its folder appear with the first line.
    """
    terminal = _Terminal(terminal_level)
    terminal.setFormatter(_JsonLine() if terminal_json else _ShortLine())
    if not terminal_json:
        terminal.addFilter(lambda record: record.name not in NOT_FOR_A_PERSON)
    handlers: list[logging.Handler] = [terminal]
    if path is not None:
        file = _SharedFile(path, maxBytes=MAX_BYTES, backupCount=5, delay=True)
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


def redact(text: str) -> str:
    """Replace what looks like a token, a password or a login by ``***``."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _clean(value: Any, key: str = "") -> Any:
    """A value that JSON can hold and that hides no secret."""
    if _SECRET_KEY.fullmatch(key):
        return HIDDEN
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(inner): _clean(item, str(inner)) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    return redact(str(value))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    extra = {key: value for key, value in vars(record).items() if key not in _OF_EVERY_RECORD}
    fields = {**_of_process, **_of_context.get(), **extra}
    return {key: _clean(value, key) for key, value in fields.items()}


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


class _Terminal(logging.Handler):
    """Writes to whatever ``sys.stderr`` is now: a progress bar on screen takes the line and stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):  # the terminal is gone; that must not stop the work
            return


class _SharedFile(RotatingFileHandler):
    """A rotating file that several processes may write to, and that never stops the work."""

    told = False

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", **options)

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def shouldRollover(self, record: logging.LogRecord) -> bool:  # noqa: N802  # logging's name
        """Follow the name first: another process may have rotated the file, or somebody removed it."""
        path = Path(self.baseFilename)
        if self.stream and not (
            path.exists() and os.path.samestat(path.stat(), os.fstat(self.stream.fileno()))
        ):
            self.stream.close()
            self.stream = self._open()
        return bool(super().shouldRollover(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002, N802  # logging's name
        if not self.told:
            self.told = True
            sys.stderr.write(f"cannot write the log {self.baseFilename}: {sys.exc_info()[1]}\n")


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
