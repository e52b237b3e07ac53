"""uvicorn's HTTP protocol with limits on headers, trailers and pipelined requests; uvicorn alone waits for ever for a
header that trickles in, keeps every trailer, and reads more requests than it answers."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 10.0
MOST_HEADER_BYTES = 64 << 10
MOST_PIPELINED = 8  # requests behind the one that is answered
MOST_FRAMING_SHARE = 16  # bytes of framing for one of a body: six where every byte is a chunk of its own


class HttpProtocol(HttpToolsProtocol):
    """Closes connections whose header takes too long or grows too large (slow loris), whose body is all framing (chunk
    extensions, and trailers, which nobody here reads), or that send requests without waiting for answers."""

    _timer: asyncio.TimerHandle | None = None
    _header_bytes = 0
    _framing_bytes = 0  # received behind a header and not yet accounted for by a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own signature
        super().connection_made(transport)
        self._expect_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._timer is not None:
            self._header_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        super().data_received(data)
        if max(self._framing_bytes, self._header_bytes if self._timer is not None else 0) > MOST_HEADER_BYTES:
            self._close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._timer is not None:  # otherwise it is a trailer
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        if self.transport.is_closing():
            return
        self._framing_bytes = max(0, self._framing_bytes - (1 + MOST_FRAMING_SHARE) * len(body))
        super().on_body(body)

    def on_message_begin(self) -> None:
        if len(self.pipeline) > MOST_PIPELINED:
            self._close()
        if self._timer is None and not self.transport.is_closing():
            self._expect_header()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._stop_timer()
        self._framing_bytes = 0
        if not self.transport.is_closing():  # what else was received with the request that went too far
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._framing_bytes = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def _expect_header(self) -> None:
        self._header_bytes = 0
        self._timer = self.loop.call_later(HEADER_SECONDS, self._close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self._stop_timer()
        if not self.transport.is_closing():
            self.transport.close()
