"""Which sites may send requests here."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class SameOrigin:
    """Refuses what another site's script sends: Gradio itself answers any origin where the host is not localhost."""

    def __init__(self, app: ASGIApp) -> None:
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
    """Whether a browser sent it for the page itself, a person followed a link, or no browser sent it.

    Browsers say so themselves, in a header that no script can set, wherever the page came by https or from this
    machine. Elsewhere the origin must be the host. ``X-Forwarded-Host`` proves nothing: a script can set it, as
    Gradio grants every other site any header.
    """
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site in ("same-origin", "none") or _is_visit(request)
    origin, host = request.headers.get("origin"), request.headers.get("host")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _is_visit(request: Request) -> bool:
    """Whether the page is opened, by a link or in a frame."""
    return request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
