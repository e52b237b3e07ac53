"""The server: routes of every shape behind one guard, started and stopped so that no child is left."""

import asyncio
import contextlib
import errno
import functools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from settle.base.errors import UsageError
from settle.server.apis import Shape
from settle.server.audit import Audit
from settle.server.errors import Refusal
from settle.server.gateway import Gateway, replied
from settle.server.guard.guard import Guard, Limits
from settle.server.guard.http_protocol import Wire
from settle.server.metrics import Metrics
from settle.server.models.model_catalogue import Catalogue
from settle.server.models.model_pool import Keeper, Keeping
from settle.server.openapi import document
from settle.server.requests import grammar_compiler

GRACE_SECONDS = 1  # that answers under way are given when the server is told to stop
MOST_CONNECTIONS = 2048
IDLE_CONNECTION_SECONDS = 75


@dataclass(frozen=True)
class Serving:
    """How the server listens, and whom it lets in. key: None needs none. origins: asked at every request, so that
    `settle connect` may add one while the server runs."""

    host: str = "127.0.0.1"
    port: int = 7388
    key: str | None = None
    origins: Callable[[], frozenset[str]] = frozenset
    hosts: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        return self.host in ("127.0.0.1", "::1", "localhost")


def shapes() -> list[Shape]:
    """Every wire format; OpenAI's last, which has the paths that no other one claims."""
    return sorted((shape() for shape in Shape.parts().values()), key=lambda shape: shape.is_fallback)


def build_app(
    catalogue: Catalogue, keeping: Keeping, serving: Serving, audit: Audit, pull_from: frozenset[str] = frozenset()
) -> Any:
    """The ASGI app, guard and all."""
    metrics = Metrics()
    spoken = shapes()

    def changed(change: str, name: str) -> None:
        metrics.changes[change] += 1

    keeper = Keeper(catalogue, keeping, changed)
    gateway = Gateway(catalogue, keeper, audit, metrics, pull_from)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await keeper.start()
        try:
            yield
        finally:
            await gateway.close()
            grammar_compiler.close()
            audit.close()

    def error(path: str, refusal: Refusal) -> dict[str, Any]:
        return next(shape for shape in spoken if shape.owns(path)).error(refusal)

    async def unknown(request: Request, exc: Exception) -> Response:
        status = getattr(exc, "status_code", 404)
        said = "there is no such endpoint" if status == 404 else f"{request.method} is not for this endpoint"
        return replied(error(request.url.path, Refusal(status, f"{said}: {request.url.path[:200]}")), status)

    routes = [
        Route(path, endpoint, methods=[method, "HEAD"] if method == "GET" else [method])
        for shape in spoken
        for method, path, endpoint in shape.endpoints()
    ]
    own = [Route("/health", _health), Route("/v1/health", _health)]
    own += [Route("/metrics", _metrics), Route("/openapi.json", _openapi)]
    app = Starlette(routes=[*own, *routes], lifespan=lifespan, exception_handlers={404: unknown, 405: unknown})
    app.router.redirect_slashes = False
    app.state.gateway, app.state.document = gateway, functools.cache(lambda: document(spoken))
    return Guard(app, serving.key, serving.origins, serving.hosts, not serving.is_local, serving.limits, error)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as e:
        listening.close()
        if getattr(e, "errno", None) == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} is taken, perhaps by another `settle serve`", "stop it, or give --port"
            ) from None
        raise UsageError(
            f"cannot listen on {host}:{port}: {getattr(e, 'strerror', e)}", "give another --host, --port"
        ) from None
    listening.listen(MOST_CONNECTIONS)
    return listening


class Server(uvicorn.Server):
    """uvicorn, stopped by SIGINT and SIGTERM without raising them again; ready: called once it answers."""

    def __init__(self, app: Any, ready: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=Wire,
            loop="auto",
            ws="none",
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
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what breaks is told to who asked, and audited
        self._ready = ready

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
            self._ready()

    def _stop(self) -> None:
        self.force_exit = self.should_exit  # told twice: do not wait for answers
        self.should_exit = True


def run(app: Any, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until told to stop."""
    Server(app, ready).run(sockets=[listening])


async def _health(request: Request) -> Response:
    return replied({"status": "ok"})


async def _openapi(request: Request) -> Response:
    return replied(request.app.state.document())


async def _metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    return PlainTextResponse(gateway.metrics.text(gateway.keeper), media_type="text/plain; version=0.0.4")
