"""What one address may do at once and in a short time, whichever handler it is for."""

from contextlib import ExitStack

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from isengard.errors import TooMany
from isengard.services.admission import Admission, Asked, Place
from isengard.services.upload_folder import UploadFolder
from tabs.http.address import client_address
from tabs.http.bodies import UPLOAD, UPLOAD_BYTES, announced
from tabs.http.refusal import refuse


class Limited:
    """Refuses with 429 and the time to wait. Trainings and generations are counted by their handlers."""

    def __init__(self, app: ASGIApp, *, admission: Admission, uploads: UploadFolder) -> None:
        self._app, self._admission, self._uploads = app, admission, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as held:
            try:
                await self._admit(scope, held)
            except TooMany as error:
                await refuse(
                    scope, receive, send, status=429, detail=str(error), retry_after_s=error.retry_after_s
                )
                return
            await self._app(scope, receive, send)

    async def _admit(self, scope: Scope, held: ExitStack) -> None:
        """Raises: TooMany."""
        address = client_address(scope)
        is_upload = scope["path"] == UPLOAD
        held.enter_context(self._admission.place(Place.UPLOADS if is_upload else Place.REQUESTS, address))
        if is_upload:
            self._admission.count(Asked.UPLOADS, address)
            room = self._uploads.room(min(announced(Headers(scope=scope), UPLOAD_BYTES), UPLOAD_BYTES))
            await anyio.to_thread.run_sync(held.enter_context, room)  # it may look through the folder
