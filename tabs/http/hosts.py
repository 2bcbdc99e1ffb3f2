"""Under which names the page answers on a machine that nobody else can reach.

A site can make its own name point to this machine (DNS rebinding). Its script is then of the same origin as the page.
"""

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

#: The end of the names of Gradio's share links.
SHARED = ".gradio.live"


class LocalNames:
    """Refuses requests for a name that is not this machine's own.

    A proxy may have another name when it has a certificate, which whoever rebinds a name cannot have: only for https
    do browsers send ``Sec-Fetch-Site``, and no script can set it.
    """

    def __init__(self, app: ASGIApp, *, shared: bool) -> None:
        """``shared``: there is a share link, too."""
        self._app = app
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._is_meant(Headers(scope=scope)):
            answer = PlainTextResponse(
                "This page answers at http://127.0.0.1 only. A proxy in front of it has to pass on that name as Host;"
                " to answer at any name, start it with --host 0.0.0.0.",
                status_code=421,
            )
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_meant(self, headers: Headers) -> bool:
        name = _name(headers.get("host", ""))
        return is_local(name) or "sec-fetch-site" in headers or (self._shared and name.endswith(SHARED))


def is_local(name: str) -> bool:
    """Whether a name or address always means the machine itself."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
