"""uvicorn as settle runs it: its limits, and an end by a signal that leaves nothing behind."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from settle.audit.door import MOST_CONNECTIONS
from settle.server.guard.http_protocol import HttpProtocol

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
    """Serves until the process is told to stop."""
    Server(app, on_ready, websockets).run(sockets=[listening])
