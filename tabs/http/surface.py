"""Which addresses are answered at all.

Gradio has some eighty routes, and another release has others. What is not listed here is not there: what the page and
`gradio_client` ask for, and the routes of our own.
"""

from collections.abc import Mapping, Sequence

from starlette.responses import JSONResponse
from starlette.routing import Route, compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

GET, POST = frozenset({"GET", "HEAD"}), frozenset({"POST"})
#: Calls: their bodies are JSON, which no other site can send without asking the browser first.
CALLS = (
    "/gradio_api/queue/join",
    "/gradio_api/run/predict",
    "/gradio_api/component_server",
    "/gradio_api/component_server/",
    "/gradio_api/cancel",
)
OPEN: Mapping[str, frozenset[str]] = {
    "/": GET,
    "/assets/{path:path}": GET,
    "/static/{path:path}": GET,
    "/theme.css": GET,
    "/gradio_api/theme.css": GET,
    "/favicon.ico": GET,
    "/manifest.json": GET,
    "/robots.txt": GET,
    "/config": GET,
    "/login": POST,
    "/logout": GET,
    "/gradio_api/info": GET,
    "/gradio_api/app_id": GET,
    "/gradio_api/startup-events": GET,
    "/gradio_api/queue/data": GET,
    "/gradio_api/upload_progress": GET,
    "/gradio_api/upload": POST,
    **dict.fromkeys(CALLS, POST),
}


class Surface:
    """Answers 404 for an address, 405 for a method and 415 for a kind of body that nobody needs."""

    def __init__(self, app: ASGIApp, *, own: Sequence[Route]) -> None:
        """``own``: routes of ours."""
        self._app = app
        self._open = [(compile_path(path)[0], methods) for path, methods in OPEN.items()]
        self._open += [(route.path_regex, frozenset(route.methods or ())) for route in own]
        self._calls = [compile_path(path)[0] for path in CALLS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # the page has none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path, method = scope["path"], scope["method"]
        allowed = [methods for pattern, methods in self._open if pattern.match(path)]
        if not allowed:
            return JSONResponse({"detail": "There is nothing at this address."}, status_code=404)
        methods = frozenset().union(*allowed)
        if method not in methods:
            return JSONResponse(
                {"detail": f"{method} is not possible here."},
                status_code=405,
                headers={"allow": ", ".join(sorted(methods))},
            )
        if any(pattern.match(path) for pattern in self._calls) and not _is_json(scope):
            return JSONResponse({"detail": "This takes JSON only."}, status_code=415)
        return None


def _is_json(scope: Scope) -> bool:
    given = dict(scope["headers"]).get(b"content-type", b"")
    return bool(given.partition(b";")[0].strip().lower() == b"application/json")
