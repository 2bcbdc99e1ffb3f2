"""Which files a call may name: what was uploaded here, and nothing else of this machine or of the network.

Gradio checks the files of some components only, hands any path to the handlers of others, and downloads what an address
names. So each call is looked at before it.
"""

import json
from collections.abc import Iterator
from typing import Any

from starlette.responses import JSONResponse
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tabs.http.surface import CALLS
from tabs.uploads import upload_at


class OnlyUploads:
    """Refuses a call that is no JSON, or holds an object whose ``path`` is not that of an upload.

    It reads the whole body: something around it has to say how long that may be.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._calls = [compile_path(path)[0] for path in CALLS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not any(pattern.match(scope["path"]) for pattern in self._calls):
            await self._app(scope, receive, send)
            return
        body = await _whole(receive)
        if body is None:  # who has sent the beginning is gone
            return
        if refusal := _refusal(body):
            await refusal(scope, receive, send)
            return
        await self._app(scope, _again(body, receive), send)


async def _whole(receive: Receive) -> bytes | None:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever else comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _refusal(body: bytes) -> JSONResponse | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return JSONResponse({"detail": "This is not JSON."}, status_code=400)
    if all(upload_at(path) for path in _paths(content)):
        return None
    said = {
        "__type__": "validate",
        "is_valid": False,
        "parameter_name": "file",
    }  # gradio_client shows it in words
    return JSONResponse(
        {"detail": [{**said, "message": "This file was not uploaded here."}]}, status_code=422
    )


def _paths(content: Any) -> Iterator[str]:
    """What stands for a file, however deep."""
    rest = [content]
    while rest:
        each = rest.pop()
        if isinstance(each, dict):
            if isinstance(path := each.get("path"), str):
                yield path
            rest.extend(each.values())
        elif isinstance(each, list):
            rest.extend(each)
