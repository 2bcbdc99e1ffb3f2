"""The server behind the shared queue: connecting, asking again, and what can be wrong with it."""

import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from isengard.domain.job import Job, Lane
from isengard.domain.tally import DURATIONS_S
from isengard.errors import Conflict, DiskFull, QueueUnavailable
from isengard.queue.base import ALIVE_S, MAX_STALLED, PREFER_WARM_S, YIELD_AFTER_S, worker_lost
from isengard.queue.shared import ServerFacts

log = logging.getLogger(__name__)

#: The layout of the keys. A server that holds a newer one is refused.
FORMAT = 1
OLDEST = (6, 2)
LUA = Path(__file__).parent / "lua"
#: The files of each script. A server makes all functions of a script anew at each call: few are faster than many.
SCRIPTS = (
    ("keys", "workers", "ledger", "placement", "owners"),
    ("keys", "workers", "ledger", "users"),
    ("keys", "workers", "registry"),
    ("keys", "reading"),
)
#: For one answer. A request goes out again after these pauses, unless PATIENCE_S has passed already.
TIMEOUT_S = 3.0
PAUSES_S = (0.05, 0.2, 0.5)
PATIENCE_S = 4.0

_AWAY = (exceptions.ConnectionError, exceptions.TimeoutError)
_REFUSES_LOGIN = (exceptions.AuthenticationError, exceptions.AuthorizationError)


class RedisServer:
    """Runs the commands of ``lua/*.lua``, each of them atomic, on one server."""

    def __init__(self, url: str, *, prefix: str) -> None:
        """Connect with the first command. ``prefix`` begins the name of each key. Raises: QueueUnavailable."""
        try:
            parts = urlsplit(url)
            self._tls = parts.scheme == "rediss"
            self._where = f"the Redis server at {parts.hostname}:{parts.port or 6379}"
            self._client = _client(url)
        except (ValueError, TypeError, exceptions.RedisError):
            # Their texts may quote the URL, password and all.
            raise QueueUnavailable(
                "ISENGARD_REDIS_URL is not understood; write redis://user:password@host:port/0, or rediss:// for TLS,"
                " and / # ? @ of a password as %2F %23 %3F %40"
            ) from None
        self._user = unquote(parts.username or "")
        self._prefix = prefix
        prelude = _prelude(prefix)
        self._scripts = {
            command: self._client.register_script(prelude + text)
            for text in _scripts()
            for command in re.findall(r"^function commands\.(\w+)", text, re.MULTILINE)
        }
        self._check = self._client.register_script(prelude + (LUA / "check.lua").read_text(encoding="utf-8"))

    def run(self, command: str, *values: str) -> Any:
        """Run a command of ``lua/*.lua``; its answer. Send it again when the connection broke: it has to bear that.

        Raises:
            QueueUnavailable, DiskFull: instead of any error of redis.
        """
        return self._patiently(lambda: self._scripts[command](args=(command, *values)))

    def check(self) -> None:
        """See whether the queue can live on this server.

        Raises:
            QueueUnavailable: it is away, refuses the login, is too old, would drop jobs, or refuses a command.
            Conflict: it holds jobs of a newer version.
        """
        info = self._patiently(self._info)
        self._judge(info)
        command, reason = self._patiently(self._refused)
        if command:
            raise self._in_words(reason) or self._refusal(f"the command {command}", reason)
        found = int(self.agree("format", str(FORMAT)))
        if found > FORMAT:
            raise Conflict(
                f"{self._where} holds jobs of a newer Isengard (format {found}, this one knows {FORMAT});"
                " update Isengard, or name another database at the end of ISENGARD_REDIS_URL"
            )
        if info and not info.get("aof_enabled"):
            log.warning(
                "jobs may be lost when the server restarts",
                extra={"server": self._where, "advice": "appendonly yes, appendfsync always"},
            )

    def hear_bell(self, worker: str, seconds: float) -> None:
        """Wait until the bell of a worker rings; at most so many seconds, or half of TIMEOUT_S. Raises: QueueUnavailable."""
        seconds = max(0.01, min(seconds, TIMEOUT_S / 2))  # 0 would be for ever
        with self._explaining():
            self._client.blpop(f"{self._prefix}bell:{worker}", timeout=seconds)

    def agree(self, name: str, value: str) -> str:
        """Keep a value under a name that has none yet; the value it has."""
        key = f"{self._prefix}{name}"
        self._patiently(lambda: self._client.set(key, value, nx=True))
        return str(self._patiently(lambda: self._client.get(key)))

    def time(self) -> float:
        """Seconds since the epoch, as the server counts."""
        seconds, microseconds = self._patiently(self._client.time)
        return float(seconds) + float(microseconds) / 1e6

    def facts(self) -> ServerFacts:
        """What the server says of itself; as much of it as this user may see."""
        info = self._patiently(self._info)
        valkey = info.get("valkey_version")
        return ServerFacts(
            where=self._where,
            program=f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '')}".strip(),
            appends=bool(info["aof_enabled"]) if info else None,
            syncs=self._patiently(self._sync_policy),
        )

    def _sync_policy(self) -> str:
        try:
            return str(self._client.config_get("appendfsync").get("appendfsync", ""))
        except exceptions.ResponseError:  # a command for administrators, which not all servers have
            return ""

    @contextmanager
    def listening(self, channel: str) -> Iterator[Callable[[float], bool]]:
        """Listen to a channel: a function that waits at most so many seconds, and says whether there was a message.

        Raises:
            QueueUnavailable: there and from the function, when the connection breaks: ask the queue, and listen anew.
        """
        with self._client.pubsub(ignore_subscribe_messages=True) as subscribed:

            def next_message(seconds: float) -> bool:
                with self._explaining():
                    return subscribed.get_message(timeout=seconds) is not None

            with self._explaining():
                subscribed.subscribe(self._prefix + channel)
            next_message(TIMEOUT_S)  # the confirmation
            yield next_message

    def _refused(self) -> tuple[str, str]:
        """The first needed command that is refused, and the server's reason; empty when all are allowed."""
        command, reason = self._check(args=(secrets.token_hex(6),))
        if command:
            return command, reason
        try:
            self._client.blpop(f"{self._prefix}bell:", timeout=0.01)  # no script may wait
        except exceptions.ResponseError as error:
            return "BLPOP", str(error)
        return "", ""

    def _info(self) -> Any:
        try:
            return self._client.info()
        except exceptions.NoPermissionError:
            return {}

    def _judge(self, info: dict[str, Any]) -> None:
        version = str(info.get("redis_version", "6.2"))
        if tuple(int(number) for number in version.split(".")[:2]) < OLDEST:
            raise QueueUnavailable(
                f"{self._where} is version {version}; Redis 6.2 or newer, or Valkey, is needed"
            )
        if info.get("cluster_enabled"):
            raise QueueUnavailable(
                f"{self._where} is part of a Redis Cluster; the queue needs a single server"
            )
        policy = str(info.get("maxmemory_policy", ""))
        if info.get("maxmemory") and policy.startswith("allkeys"):
            raise QueueUnavailable(
                f"{self._where} would drop jobs when its memory is full (maxmemory-policy {policy});"
                " set maxmemory-policy to noeviction"
            )
        if info.get("role") == "slave":
            original = f"{info.get('master_host')}:{info.get('master_port')}"
            raise QueueUnavailable(
                f"{self._where} is a read-only copy of {original}; name that one in ISENGARD_REDIS_URL"
            )

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer, for a short time."""
        give_up_at = time.monotonic() + PATIENCE_S
        with self._explaining():
            for pause_s in PAUSES_S:
                try:
                    return ask()
                except _REFUSES_LOGIN:
                    raise
                except _AWAY as error:
                    if time.monotonic() > give_up_at:
                        raise
                    log.debug("asking the server again", extra={"reason": type(error).__name__})
                time.sleep(pause_s)
            return ask()

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except exceptions.RedisError as error:
            raise self._explained(error) from error

    def _explained(self, error: exceptions.RedisError) -> QueueUnavailable | DiskFull:
        reason = str(error).rstrip(".")[:200]
        if isinstance(error, _AWAY):
            return QueueUnavailable(self._absence(error, reason))
        if isinstance(error, exceptions.InvalidResponse):
            return QueueUnavailable(
                f"what answers instead of {self._where} speaks another language;"
                " correct host and port in ISENGARD_REDIS_URL, or write rediss:// when it wants TLS"
            )
        if isinstance(error, exceptions.NoPermissionError) or "unknown command" in reason:
            return self._refusal("a command", reason)
        return self._in_words(reason) or QueueUnavailable(
            f"{self._where} cannot do it just now ({reason}); see to it and try again"
        )

    def _in_words(self, reason: str) -> QueueUnavailable | DiskFull | None:
        """What a server that obeys in general is short of."""
        if "No space left" in reason:
            return DiskFull(f"no space left on the disk of {self._where} ({reason}); free some space there")
        if "used memory > 'maxmemory'" in reason:
            return QueueUnavailable(f"{self._where} has no memory left for jobs; raise its maxmemory")
        if "DB index" in reason:
            return QueueUnavailable(
                f"{self._where} has no database of this number; correct it at the end of ISENGARD_REDIS_URL"
            )
        return None

    def _refusal(self, what: str, reason: str) -> QueueUnavailable:
        return QueueUnavailable(
            f"{self._where} refuses {what} ({reason}); Redis 6.2 or newer, or Valkey, is needed, and the user"
            f" {self._user or 'default'!r} must be allowed:"
            f" ~{self._prefix}* resetchannels &{self._prefix}* +@all -@admin"
        )

    def _absence(self, error: exceptions.RedisError, reason: str) -> str:
        if isinstance(error, _REFUSES_LOGIN):
            user = f" of {self._user!r}" if self._user else ""
            return (
                f"{self._where} refuses the login{user}; correct user name and password in ISENGARD_REDIS_URL"
            )
        if isinstance(error, exceptions.BusyLoadingError):
            return f"{self._where} is still loading its jobs from the disk; try again in a moment"
        if isinstance(error, exceptions.TimeoutError):
            plain = ", or write redis:// when it has no TLS" if self._tls else ""
            return f"{self._where} gives no answer within {TIMEOUT_S:g} s; see whether it and the network to it work{plain}"
        if "max number of clients" in reason:
            return f"{self._where} takes no more connections; raise its maxclients"
        return self._broken(reason.rpartition(". ")[2])  # without the address once more

    def _broken(self, reason: str) -> str:
        """Why there is no connection at all."""
        if "SSL" in reason or "certificate" in reason:
            return (
                f"{self._where} offers no trusted TLS ({reason}); write redis:// when it has no TLS,"
                " or name its certificate: rediss://...?ssl_ca_certs=FILE"
            )
        if "No such file" in reason:
            return f"a file that ISENGARD_REDIS_URL names for {self._where} is not there; correct its path"
        if "closed" in reason or "reset" in reason:
            tls = "" if self._tls else ", or write rediss:// when it wants TLS"
            return f"{self._where} breaks the connection off; see whether it works{tls}"
        return f"{self._where} cannot be reached ({reason}); start it, or correct ISENGARD_REDIS_URL"


def _client(url: str) -> Any:
    client = Redis.from_url(
        url,
        decode_responses=True,
        protocol=2,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        socket_keepalive=True,
        retry=Retry(NoBackoff(), 0),
    )
    client.connection_pool.make_connection()  # only here an unknown option of the URL is noticed
    return client


def _scripts() -> Iterator[str]:
    for names in SCRIPTS:
        texts = [(LUA / f"{name}.lua").read_text(encoding="utf-8") for name in names]
        yield "\n".join([*texts, "return commands[ARGV[1]](unpack(ARGV, 4))"])


def _prelude(prefix: str) -> str:
    """What the Lua files take from Python, on one line: their line numbers stay right."""
    hopeless = worker_lost("{times}").model_dump_json()
    names = ", ".join(f"'{name}'" for name in Job.model_fields)
    lanes = ", ".join(f"'{lane}'" for lane in Lane)
    durations = ", ".join(f"{bound:g}" for bound in DURATIONS_S)
    return (
        f"local PREFIX, GROUP, LANES, JOB_FIELDS = {json.dumps(prefix)}, 'workers', {{{lanes}}}, {{{names}}};"
        f" local MAX_STALLED, WORKER_LOST = {MAX_STALLED}, [[{hopeless}]];"
        f" local YIELD_AFTER_S, PREFER_WARM_S, ALIVE_S = {YIELD_AFTER_S}, {PREFER_WARM_S}, {ALIVE_S};"
        f" local DURATIONS_S = {{ {durations} }}\n"
    )
