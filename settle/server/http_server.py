"""uvicorn as settle runs it: its limits, and an end by a signal that leaves nothing behind."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from settle.audit.door import MOST_CONNECTIONS

HEADER_SECONDS = 10.0
MOST_HEADER_BYTES = 64 << 10
MOST_PIPELINED = 8  # requests behind the one that is answered
MOST_FRAMING_SHARE = 16  # bytes of framing for one of a body: six where every byte is a chunk of its own


class HttpProtocol(HttpToolsProtocol):
    """A protocol that closes connections which take more than their share.

    Their header takes too long or grows too large (slow loris), their body is all framing (chunk extensions, and
    trailers, which nobody here reads), or they send requests without waiting for answers."""

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


GRACE_SECONDS = 1  # that current answers are given when the server stops
IDLE_CONNECTION_SECONDS = 75
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Server(uvicorn.Server):
    """uvicorn, stopped by SIGINT and SIGTERM without raising them again. on_ready: called once it answers."""

    def __init__(self, app: ASGIApp, on_ready: Callable[[], None], websockets: bool = False) -> None:
        config = uvicorn.Config(
            app,
            http=HttpProtocol,
            loop="auto",
            ws="websockets-sansio" if websockets else "none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=IDLE_CONNECTION_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            limit_concurrency=MOST_CONNECTIONS,
        )
        super().__init__(config)
        # an error is in the response and in the audit
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
                loop.add_signal_handler(number, self._stop)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # at the second signal: do not wait for answers
        self.should_exit = True


def run(app: ASGIApp, listening: socket.socket, on_ready: Callable[[], None], websockets: bool = False) -> None:
    """Serve until the process is told to stop."""
    Server(app, on_ready, websockets).run(sockets=[listening])
