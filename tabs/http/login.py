"""The one gate before everything: Gradio's page, its API and files, and our own routes."""

import logging
import math
from asyncio import Lock
from base64 import b64decode
from collections.abc import Sequence

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from isengard.services.logins import LASTS_S, Logins
from tabs.http.address import client_address
from tabs.http.attempts import Attempts
from tabs.http.login_page import login_page

log = logging.getLogger(__name__)

#: What a load balancer asks. Whoever is not logged in is told no more than yes or no.
OPEN = ("/health", "/ready")
#: Gradio asks this of itself when it starts; it answers true or false and does nothing the second time.
STARTING = "/gradio_api/startup-events"
#: A name and a password are far shorter.
MAX_BODY = 8192


class LoginGate:
    """Lets in who has a session; on our own ``routes`` also a program that sends name and password (Basic).

    Gradio's own login is not used: it leaves several of its routes open, and its sessions end with the process.
    """

    def __init__(self, app: ASGIApp, *, logins: Logins, routes: Sequence[Route]) -> None:
        self._app, self._logins, self._routes = app, logins, routes
        self._attempts, self._turn = Attempts(), Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # Gradio has none
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["path"]
        session = request.cookies.get(self._logins.cookie, "")
        answer: Response | None = None
        if path in ("/login", "/logout"):
            answer = await (self._log_in(request) if path == "/login" else self._log_out(request, session))
        elif self._logins.user_of(session) is None and path != STARTING:
            if path in OPEN and "authorization" not in request.headers:
                send = _without_details(scope, receive, send)
            else:
                answer = await self._basic(request)
        await (answer or self._app)(scope, receive, send)

    async def _log_in(self, request: Request) -> Response:
        """A browser's form is answered with a page, a program (``gradio_client``) with JSON."""
        target = f"/?{query}" if (query := _query(request)) else "/"
        if request.method != "POST":
            return RedirectResponse(target, 303)
        name, password = await _credentials(request)
        wait = await self._try(request, name, password)
        if wait is not None:
            return _refusal(request, wait=wait, tried=True)
        log.info("logged in", extra={"user": name, "address": client_address(request.scope)})
        answer: Response = JSONResponse({"success": True})
        if _is_browser(request.headers):
            answer = RedirectResponse(target, 303)
        answer.set_cookie(
            self._logins.cookie,
            self._logins.open_session(name),
            max_age=LASTS_S,
            secure=request.scope["scheme"] == "https",
            httponly=True,
            samesite="lax",
        )
        return answer

    async def _log_out(self, request: Request, session: str) -> Response:
        answer = RedirectResponse("/", 303)
        if request.method == "POST":  # no link or picture of another site logs somebody out
            self._logins.close_session(session)
            answer.delete_cookie(self._logins.cookie, httponly=True, samesite="lax")
        return answer

    async def _basic(self, request: Request) -> Response | None:
        """None when this is one of our own routes and the request carries a right name and password."""
        own = any(route.matches(request.scope)[0] is not Match.NONE for route in self._routes)
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if not own or kind.lower() != "basic":
            return _refusal(request, wait=0, tried=False, challenge=own)
        try:
            name, _, password = b64decode(given).decode().partition(":")
        except ValueError:
            name = password = ""
        wait = await self._try(request, name, password)
        return None if wait is None else _refusal(request, wait=wait, tried=True, challenge=True)

    async def _try(self, request: Request, name: str, password: str) -> float | None:
        """None when it is right, else the seconds until this address may try again.

        One after the other: a password takes 0.2 s of a processor, and those sent at the same time count, too.
        """
        address = client_address(request.scope)
        if wait := self._attempts.wait(address):
            return wait
        async with self._turn:
            if wait := self._attempts.wait(address):
                return wait
            if await anyio.to_thread.run_sync(self._logins.is_right, name, password):
                self._attempts.was_right(address)
                return None
            self._attempts.was_wrong(address)
        # Not the name: a password may have been typed there.
        log.warning("login refused", extra={"address": address})
        return 0


def _refusal(request: Request, *, wait: float, tried: bool, challenge: bool = False) -> Response:
    """401, or 429 when the address has to wait: the login page for a browser, JSON for a program."""
    status, headers = 401, {"cache-control": "no-store"}
    if wait:
        status, headers["retry-after"] = 429, str(math.ceil(wait))
    if _is_browser(request.headers):
        language = request.headers.get("accept-language", "")
        page = login_page(language=language, query=_query(request), wait_s=math.ceil(wait), tried=tried)
        return HTMLResponse(page, status, headers)
    if challenge and not wait:
        headers["www-authenticate"] = 'Basic realm="Isengard", charset="UTF-8"'
    said = f"too many wrong logins; try again in {math.ceil(wait)} s" if wait else "Not authenticated"
    return JSONResponse({"detail": said}, status, headers)


def _is_browser(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


def _query(request: Request) -> str:
    """What the page was asked for, such as ``tab=image``, and what it is asked for again after the login."""
    text: str = request.scope["query_string"].decode("latin-1")
    return text if request.scope["path"] in ("/", "/login") else ""


async def _credentials(request: Request) -> tuple[str, str]:
    """Name and password of a form; empty when it holds none."""
    body = b""

    async def replay() -> Message:
        return {"type": "http.request", "body": body}

    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                return "", ""
        form = await Request(request.scope, replay).form(max_files=0, max_fields=10)
    except (ClientDisconnect, MultiPartException, HTTPException):
        return "", ""
    return str(form.get("username", "")).strip(), str(form.get("password", ""))


def _without_details(scope: Scope, receive: Receive, send: Send) -> Send:
    """Answer with the status alone, whatever the route answers."""

    async def send_status(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            answer = JSONResponse({"status": "ok" if status < 400 else "not ready"}, status)
            await answer(scope, receive, send)

    return send_status
