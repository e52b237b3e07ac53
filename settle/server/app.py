"""The server: the routes of every API behind one guard, started and stopped so that no child is left."""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from settle.server import grammars
from settle.server.apis import Api
from settle.server.audit import Audit, Metrics
from settle.server.gateway import Gateway, json_response
from settle.server.guard import Access, Guard, Limits
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_loader import PoolSettings
from settle.server.models.model_pool import ModelPool
from settle.server.models.store_changes import StoreChanges
from settle.server.openapi import openapi_document
from settle.server.requests.chat import Backend
from settle.wire.errors import ApiError, ErrorBody


@dataclass(frozen=True)
class ServerApp:
    """asgi: the application. gateway: the parts behind it."""

    asgi: ASGIApp
    gateway: Gateway


def all_apis() -> list[Api]:
    """Every API; the one that answers for all other paths is the last."""
    return sorted((kind() for kind in Api.parts().values()), key=lambda api: api.is_fallback)


def build_app(
    catalogue: ModelCatalogue,
    settings: PoolSettings,
    access: Access,
    limits: Limits,
    audit: Audit,
    pull_from: frozenset[str] = frozenset(),
    on_answer: Callable[[str], None] = lambda line: None,
) -> ServerApp:
    """pull_from: sources that requests may pull models from. on_answer: see `Gateway`."""
    apis, metrics = all_apis(), Metrics()

    def on_change(change: str, name: str) -> None:
        metrics.changes[change] += 1

    pool = ModelPool(catalogue, settings, on_change)
    backend = Backend(catalogue, pool)
    gateway = Gateway(backend, StoreChanges(catalogue, pool, pull_from), audit, metrics, on_answer)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await pool.start()
        try:
            yield
        finally:
            await backend.close()
            grammars.close_checker()
            audit.close()

    def error_body(path: str, error: ApiError) -> ErrorBody:
        return next(api for api in apis if api.owns(path)).error(error)

    async def unknown(request: Request, exc: Exception) -> Response:
        status = getattr(exc, "status_code", 404)
        message = "there is no such endpoint" if status == 404 else f"{request.method} is not allowed here"
        path = request.url.path
        return json_response(error_body(path, ApiError(status, f"{message}: {path[:200]}")), status)

    routes = [
        Route(path, endpoint, methods=[method, "HEAD"] if method == "GET" else [method])
        for api in apis
        for method, path, endpoint in api.endpoints()
    ]
    own = [Route("/health", _health), Route("/v1/health", _health)]
    own += [Route("/metrics", _metrics), Route("/openapi.json", _openapi)]
    app = Starlette(routes=[*own, *routes], lifespan=lifespan, exception_handlers={404: unknown, 405: unknown})
    app.router.redirect_slashes = False
    app.state.gateway, app.state.document = gateway, functools.cache(lambda: openapi_document(apis))
    return ServerApp(Guard(app, access, limits, error_body), gateway)


async def _health(request: Request) -> Response:
    return json_response({"status": "ok"})


async def _openapi(request: Request) -> Response:
    return json_response(request.app.state.document())


async def _metrics(request: Request) -> Response:
    gateway: Gateway = request.app.state.gateway
    text = gateway.metrics.text(gateway.backend.pool.loaded())
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4")
