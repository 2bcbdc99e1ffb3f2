"""What Gradio makes of a request that it does not understand."""

import logging

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

API = "/gradio_api/"


class Faults:
    """Turns its exceptions and its status 500 into 400.

    Gradio looks up keys, events and components of a request without a check, so that a wrong one ends as an exception.
    Our own handlers let none through (`tabs.common.handled`): what comes out here was asked for wrongly.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        began = False

        async def pass_on(message: Message) -> None:
            nonlocal began
            began = True
            if message.get("status") == 500:
                message = {**message, "status": 400}
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        except ClientDisconnect:
            raise
        except Exception as error:  # noqa: BLE001  # any, as said above
            log.warning(
                "request not understood", extra={"path": scope["path"][:200], "error": repr(error)[:500]}
            )
            if began:
                await send({"type": "http.response.body", "body": b""})
            else:
                answer = JSONResponse({"detail": "This request is not understood."}, status_code=400)
                await answer(scope, receive, send)
