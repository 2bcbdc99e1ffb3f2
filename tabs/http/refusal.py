"""How a request is turned away that no handler gets to see."""

import asyncio
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

#: A body is read so far before the answer, as many clients only look for one when they have sent all of it.
READ_BYTES, READ_S = 64 * 2**20, 10.0


async def refuse(
    scope: Scope, receive: Receive, send: Send, *, status: int, detail: str, retry_after_s: int | None = None
) -> None:
    """Answer with Gradio's own shape of an error, which its page shows as a toast, and close the connection."""
    headers = {"connection": "close"}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
    with suppress(TimeoutError):
        async with asyncio.timeout(READ_S):
            await _read_away(receive)
    await JSONResponse({"detail": detail}, status_code=status, headers=headers)(scope, receive, send)


async def _read_away(receive: Receive) -> None:
    left = READ_BYTES
    while left > 0:
        message = await receive()
        if not message.get("more_body"):
            return
        left -= len(message["body"])
