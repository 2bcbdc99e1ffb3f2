"""The body of a request: how long it may be, how many files it may hold, and how slowly it may come."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tabs.http.refusal import refuse

UPLOAD = "/gradio_api/upload"
#: Where forms are read. Gradio reads them elsewhere too, and leaves their files in the system's own folder.
FORMS = (UPLOAD, "/login", "/login/")
#: One file in a form: Gradio's limit for it (``max_file_size``), and room for the form around it.
FILE_BYTES = 60 * 2**20
UPLOAD_BYTES = FILE_BYTES + 2**20
#: Any other body. The page sends the values of a tab's fields.
BODY_BYTES = 2**20
#: Files and fields of one form.
PARTS = 100
#: Seconds that a body may make us wait before more of it comes. What comes gives time back, at this rate: a phone in a
#: tunnel is waited for, a client that only trickles is not.
PATIENCE_S, BYTES_PER_S = 30.0, 1024

TOO_SLOW, TOO_LONG = 408, 413
SLOW = "This body came too slowly."
GONE: Message = {"type": "http.disconnect"}


def announced(headers: Headers, otherwise: int) -> int:
    """The length of the body as its header says."""
    said = headers.get("content-length", "")
    return int(said) if said.isdecimal() else otherwise


class Bodies:
    """Refuses with 408, 413 or 415."""

    def __init__(
        self, app: ASGIApp, *, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app, self._patience_s, self._clock = app, patience_s, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        kind, options = parse_options_header(headers.get("content-type"))
        is_form, is_upload = kind == b"multipart/form-data", scope["path"] == UPLOAD
        if is_form and scope["path"] not in FORMS:
            await refuse(scope, receive, send, status=415, detail="This address takes no form.")
            return
        most = UPLOAD_BYTES if is_upload else BODY_BYTES
        body = Body(receive, send, most=most, patience_s=self._patience_s, clock=self._clock)
        if is_form:
            body.split_at(options.get(b"boundary", b""))
        if announced(headers, 0) > most:
            await refuse(scope, receive, send, status=TOO_LONG, detail=body.too_long)
            return
        with suppress(ClientDisconnect):  # it has gone, or was given up
            await self._app(scope, body.receive, body.send)
        if body.refusal is not None and not body.answered:
            status, detail = body.refusal
            await refuse(scope, body.rest, send, status=status, detail=detail)


class Body:
    """One body, between the server and the application."""

    def __init__(
        self, receive: Receive, send: Send, *, most: int, patience_s: float, clock: Callable[[], float]
    ) -> None:
        self._receive, self._send, self._clock = receive, send, clock
        self._most, self._left_s, self._patience_s = most, patience_s, patience_s
        self._length, self._parts = 0, 0
        self._mark, self._tail = b"", b"\r\n"
        self._whole, self._given_up = False, False
        self.refusal: tuple[int, str] | None = None
        self.answered = False
        self.too_long = f"This body is longer than the {most // 2**20} MB it may have."

    def split_at(self, boundary: bytes) -> None:
        """It is a form: count its parts."""
        self._mark = b"\r\n--" + boundary

    async def receive(self) -> Message:
        if self._given_up:
            return GONE
        if self._whole:
            return await self._receive()
        began = self._clock()
        try:
            async with asyncio.timeout(self._left_s):
                message = await self._receive()
        except TimeoutError:
            return self._give_up((TOO_SLOW, SLOW))
        self._whole = not message.get("more_body")
        content = message.get("body", b"")
        waited_s, gained_s = self._clock() - began, len(content) / BYTES_PER_S
        self._left_s = min(self._patience_s, self._left_s - waited_s + gained_s)
        if message["type"] == GONE["type"]:
            return self._give_up(None)
        wrong = self._wrong(content)
        return self._give_up(wrong) if wrong else message

    async def rest(self) -> Message:
        """What is left of it, when it is only too long."""
        if self._whole or self.refusal is None or self.refusal[0] != TOO_LONG:
            return GONE
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Pass the answer on, unless it is about what was made of a body that was given up."""
        if self._given_up and not self.answered:
            return
        self.answered = True
        await self._send(message)

    def _wrong(self, content: bytes) -> tuple[int, str] | None:
        self._length += len(content)
        if self._mark:
            text = self._tail + content
            self._parts += text.count(self._mark)
            self._tail = text[1 - len(self._mark) :]
        checks = (
            (self._length > self._most, TOO_LONG, self.too_long),
            # the last mark ends the form
            (self._parts > PARTS + 1, TOO_LONG, f"This form has more than {PARTS} parts."),
            (self._left_s <= 0 and not self._whole, TOO_SLOW, SLOW),
        )
        return next(((status, detail) for wrong, status, detail in checks if wrong), None)

    def _give_up(self, refusal: tuple[int, str] | None) -> Message:
        """End the body: for the application its client has gone.

        Not so a form. It ends as a malformed one, with a header that has no name: Gradio removes the unfinished files
        of such a form, and of no other. (The mark comes twice, as the end of the headers may swallow one.)
        """
        self._given_up, self.refusal = True, refusal
        if not self._mark:
            return GONE
        return {"type": "http.request", "body": 2 * self._mark + b"\r\n\0\r\n", "more_body": False}
