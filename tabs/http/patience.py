"""What a connection may take of the server before an application gets to see it: time, and memory."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Seconds for the head of a request, and for the rest of a body whose request was answered already.
PATIENCE_S = 30.0
#: Bytes of a head. Browsers send under 16 KiB.
HEAD_BYTES = 2**16


class Impatient(HttpToolsProtocol):
    """The server's own protocol, which closes a connection that trickles while no request of it is being answered.

    While one is, `tabs.http.bodies.Bodies` looks at its pace.
    """

    patience_s = PATIENCE_S
    _end: asyncio.TimerHandle | None = None
    _head: int | None = 0
    """Bytes of a head that is not whole yet; None while there is none."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._head is not None:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response(f"The head of a request has at most {HEAD_BYTES} bytes.")
        self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._head = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._end is None:
            self._end = self.loop.call_later(self.patience_s, self.transport.close)

    def _stop(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None
