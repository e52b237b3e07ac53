"""What all APIs share: the parts of a running server, and how a request becomes a response."""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import get_type_hints

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from settle.base.errors import SettleError
from settle.server.audit import Audit, Metrics, Record
from settle.server.guard import TIME_LIMIT
from settle.server.http_responses import internal_error, unless_gone
from settle.server.models.backend import Backend
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.server.models.store_changes import StoreChanges
from settle.wire.errors import PROMPT, ApiError
from settle.wire.fields import Body, parse, validated


@dataclass
class Gateway:
    """The parts of a running server. on_answer: called with a line about each request, without what was said in it."""

    backend: Backend
    store: StoreChanges
    audit: Audit
    metrics: Metrics = field(default_factory=Metrics)
    on_answer: Callable[[str], None] = lambda line: None


class Call:
    """One request while it is answered."""

    def __init__(self, gateway: Gateway, request: Request, record: Record) -> None:
        self.gateway, self.request, self.record = gateway, request, record

    @property
    def backend(self) -> Backend:
        return self.gateway.backend

    @property
    def pool(self) -> ModelPool:
        return self.gateway.backend.pool

    @property
    def path(self) -> dict[str, str]:
        return self.request.path_params

    async def body(self, model: type[Body]) -> Body:
        """Return the body as an endpoint takes it. Raises ApiError."""
        raw = await self.request.body() or b"{}"
        value = parse(raw) if len(raw) < LARGE_BODY else await asyncio.to_thread(parse, raw)
        if self.gateway.audit.prompts:
            self.record.prompt = value if isinstance(value, dict) else None
        return validated(model, value)

    def find(self, name: str) -> ModelEntry:
        """Return the entry of that name, noted in the audit. Raises ApiError."""
        entry = self.backend.catalogue.find(name)
        self.record.model = entry.id
        return entry


LARGE_BODY = 1 << 20  # bytes that are parsed in a thread: others are answered meanwhile
Handler = Callable[..., Awaitable[Response]]
# the field of a body that holds what the model reads: the first of these that it has
PROMPT_FIELDS = ("messages", "input", "state", "documents", "input_prefix", "prompt")


class Endpoint:
    """One route of an API: an ASGI app.

    handler: answers a call, and takes its `body` where it has one. error: formats an error as the API does."""

    def __init__(self, handler: Handler, name: str, error: Callable[[ApiError], Mapping[str, object]]) -> None:
        self.handler, self.name, self.error = handler, name, error
        self.takes: type[Body] | None = get_type_hints(handler).get("body")
        fields = self.takes.model_fields if self.takes else ()
        self.prompt_field = next((name for name in PROMPT_FIELDS if name in fields), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        gateway: Gateway = scope["app"].state.gateway
        client = scope.get("client")
        record = Record(self.name, client=client[0] if client else "", agent=request.headers.get("user-agent", ""))
        try:
            response = await self._response(Call(gateway, request, record), receive)
            if response is None:
                record.status = 499  # the client has gone: nginx's number for it
                return
            request_id = f"req_{secrets.token_hex(12)}"
            response.headers.setdefault("x-request-id", request_id)
            response.headers.setdefault("request-id", request_id)  # Anthropic's clients read this one
            record.status = response.status_code
            await response(scope, receive, send)
        except asyncio.CancelledError:
            limit = scope.get(TIME_LIMIT)
            record.status = record.status or (504 if limit and limit.expired() else 499)
            raise
        except Exception as e:  # noqa: BLE001  the answer has begun: cutting it off shows that it is incomplete
            record.status, record.error = 500, repr(e)[:500]
        finally:
            gateway.metrics.count(record)
            gateway.audit.write(record)
            gateway.on_answer(record.line(request.method, request.url.path))

    async def _response(self, call: Call, receive: Receive) -> Response | None:
        """Return the response, or None when the client left before it was ready: then its work is stopped."""
        try:
            await call.request.body()
        except ClientDisconnect:
            return None
        except Exception as e:  # noqa: BLE001  the edge, as below
            return self._error_response(call.record, e)
        done = await unless_gone(self._guarded(call), receive)
        return done.result() if done else None

    async def _guarded(self, call: Call) -> Response:
        try:
            if self.takes is None:
                return await self.handler(call)
            return await self.handler(call, await call.body(self.takes))
        except Exception as e:  # noqa: BLE001  the edge: one request fails, not the server
            return self._error_response(call.record, e)

    def _error_response(self, record: Record, error: Exception) -> Response:
        if isinstance(error, ApiError):
            reported = error
        elif isinstance(error, SettleError):
            reported = ApiError(400, str(error))
        else:
            record.error, reported = repr(error)[:500], internal_error(error)
        if reported.param == PROMPT:
            reported.param = self.prompt_field
        record.error = record.error or reported.message[:300]
        body = json.dumps(self.error(reported))
        return Response(body, reported.status, reported.headers, media_type="application/json")
