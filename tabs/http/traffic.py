"""Counts what is asked of the page, and gives each request an id that is in the log, in the answer and in the job it asks for."""

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from isengard.logs import bound

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: The first that fits says what a request is: few words, as each is a row of numbers for ever.
ROUTES = (
    ("probe", re.compile(r"/(health|ready|metrics)/?$")),
    ("job", re.compile(r"/jobs/")),
    ("login", re.compile(r"/(gradio_api/)?(login|logout)\b")),
    ("live", re.compile(r"/gradio_api/component_server\b")),
    (
        "stream",
        re.compile(
            r"/gradio_api/(queue/data|heartbeat|upload_progress|stream)\b|/gradio_api/call/[^/]+/[^/]+"
        ),
    ),
    ("upload", re.compile(r"/gradio_api/upload\b")),
    ("file", re.compile(r"(/gradio_api)?/file[=/]")),
    ("event", re.compile(r"/gradio_api/(queue/join|run|call|api)\b")),
    ("page", re.compile(r"/?$|/config\b")),
    (
        "asset",
        re.compile(r"/(assets|static|svelte|gradio_api/(theme|info)|theme\.css|favicon\.ico|manifest\.json)"),
    ),
)
#: What starts Gradio's queue: what is bound here would be on all lines of the queue ever after.
STARTS_QUEUE = "/startup-events"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Meters:
    """The numbers of one page process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "isengard_http_requests",
            "Requests that were answered, by kind and status.",
            ("route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "isengard_http_request_seconds",
            "From a request to the beginning of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.open = Gauge(
            "isengard_http_requests_open",
            "Requests, also streams, at this moment.",
            ("route",),
            registry=self.registry,
        )


class Observed:
    """Pure ASGI, to be the outermost: what is refused counts, too. Its ``meters`` and ``request_id`` are in the request's state."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app, self._meters = app, Meters()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:12]
        scope.setdefault("state", {}).update(request_id=request_id, meters=self._meters)
        answer = _Answer(self._meters, route_of(scope["path"]), request_id, send)
        try:
            if scope["path"].endswith(STARTS_QUEUE):
                await self._app(scope, receive, answer.send)
            else:
                with bound(correlation_id=request_id):
                    await self._app(scope, receive, answer.send)
        except Exception as error:
            answer.fail(error)
            raise
        finally:
            answer.end()


class _Answer:
    """One request on its way."""

    def __init__(self, meters: Meters, route: str, request_id: str, send: Send) -> None:
        self._meters, self._route, self._request_id, self._send = meters, route, request_id, send
        self._began = time.perf_counter()
        self._status: int | None = None
        meters.open.labels(route).inc()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._meters.seconds.labels(self._route).observe(time.perf_counter() - self._began)
            headers = [*message.get("headers", ()), (b"x-request-id", self._request_id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    def fail(self, error: Exception) -> None:
        """The server behind this makes a 500 of it."""
        self._status = self._status or 500
        log.error(
            "request failed", exc_info=error, extra={"route": self._route, "correlation_id": self._request_id}
        )

    def end(self) -> None:
        """Without an answer the browser went away first."""
        status = "none" if self._status is None else str(self._status)
        self._meters.open.labels(self._route).dec()
        self._meters.requests.labels(self._route, status).inc()


def route_of(path: str) -> str:
    """What kind of request it is, in one of few words."""
    return next((name for name, pattern in ROUTES if pattern.match(path)), "other")
