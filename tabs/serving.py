"""What surrounds the page: who may call it, and whether it is well."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from isengard import __version__
from isengard.errors import IsengardError
from isengard.wiring import Application

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class SameOrigin:
    """Refuses what another site's script sends: Gradio itself answers any origin where the host is not localhost."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_from_here(Request(scope)):
            answer = PlainTextResponse(
                "This request came from another site and was refused.", status_code=403
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_from_here(request: Request) -> bool:
    origin = request.headers.get("origin")
    if origin is None:
        return True
    hosts = {request.headers.get("host"), request.headers.get("x-forwarded-host")}
    return origin.partition("://")[2] in hosts


def routes(app: Application) -> list[Route]:
    """``/health``: the process answers. ``/ready``: the job list does too."""

    def health(_: Request) -> Response:
        return JSONResponse({"status": "ok", "version": __version__})

    def ready(_: Request) -> Response:
        try:
            app.jobs.jobs(limit=1)
        except IsengardError as error:
            return JSONResponse(
                {"status": "not ready", "reason": str(error), "code": error.code}, status_code=503
            )
        return JSONResponse({"status": "ready", "version": __version__})

    return [Route("/health", health), Route("/ready", ready)]
