"""What all APIs share: the parts of a running server, and how a request becomes a response."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TypeVar, get_type_hints

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from settle.base.errors import SettleError
from settle.server.audit import Audit, Metrics, Record
from settle.server.guard import TIME_LIMIT
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.server.models.store_changes import StoreChanges
from settle.server.requests.chat import Backend
from settle.wire.errors import PROMPT, ApiError, ErrorBody
from settle.wire.fields import Body, parse, validated
from settle.wire.types import JsonObject

T = TypeVar("T")


class StreamedResponse(Response):
    """A response made of the pieces of a generator, which is closed when the client leaves."""

    def __init__(self, pieces: AsyncGenerator[bytes], record: Record, media_type: str) -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._record = pieces, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._pieces):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            done = await unless_gone(self._send(send), receive)
            if done:
                done.result()
            else:
                self._record.status = 499

    async def _send(self, send: Send) -> None:
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")


def data_event(value: object) -> bytes:
    """Return a server-sent event without a name."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def sse_event(event: JsonObject) -> bytes:
    """Return a server-sent event that is named by its `type`."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def internal_error(error: Exception) -> ApiError:
    """How a fault of our own is reported."""
    return ApiError(500, f"settle failed: {type(error).__name__}", "internal_error")


async def streamed(
    pieces: AsyncGenerator[bytes],
    record: Record,
    error: Callable[[ApiError], bytes],
    media_type: str = "text/event-stream",
) -> Response:
    """Return the response of a stream once its first piece is made: what fails before has a status of its own.

    Raises what the first piece raises. Where the stream breaks off, the piece that `error` makes is the last."""
    guarded = with_error_event(pieces, record, error)
    try:
        first = await anext(guarded, b"")
    except BaseException:
        await guarded.aclose()
        raise

    async def all_pieces() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(guarded):
            yield first
            async for piece in guarded:
                yield piece

    return StreamedResponse(all_pieces(), record, media_type)


async def with_error_event(
    pieces: AsyncGenerator[bytes], record: Record, error: Callable[[ApiError], bytes]
) -> AsyncGenerator[bytes]:
    """Pieces of an answer; where they break off, the one that `error` makes is the last. The first may raise."""
    is_begun = False
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                is_begun = True
                record.token()
                yield piece
    except Exception as e:  # noqa: BLE001  the edge: whatever broke, the answer must say that it is incomplete
        if isinstance(e, aiohttp.ClientError | ConnectionError):
            e = ApiError(502, "the engine died during this request", "engine_died")
        if not is_begun:
            raise e from None
        reported = e if isinstance(e, ApiError) else internal_error(e)
        record.error = reported.message[:300] if reported is e else repr(e)[:500]
        yield error(reported)


async def unless_gone(work: Coroutine[object, object, T], receive: Receive) -> "asyncio.Future[T] | None":
    """`work` when it is done; None when the client left before, and then it is stopped."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return task if task.done() else None
    finally:
        for other in (task, gone):
            if not other.done():
                other.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await other


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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

    def __init__(self, handler: Handler, name: str, error: Callable[[ApiError], ErrorBody]) -> None:
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
            return await self.handler(call, *([await call.body(self.takes)] if self.takes else ()))
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
