"""What all shapes share: the models, and how a request becomes a response that ends when its client leaves."""

import asyncio
import contextlib
import functools
import json
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from settle.base.errors import SettleError
from settle.server.audit import Audit, Record
from settle.server.errors import Refusal
from settle.server.metrics import Metrics
from settle.server.models.model_catalogue import Catalogue, Entry
from settle.server.models.model_pool import Keeper
from settle.server.requests.fields import Body, Shaped, parse, shaped

if TYPE_CHECKING:
    from settle.server.requests.document_chat import Shelf

Receive = Callable[[], Awaitable[Any]]


@dataclass
class Gateway:
    """The parts of a running server. pull_from: sources that requests may pull models from. changing: names of models
    that a request is just putting into the store or taking out of it."""

    catalogue: Catalogue
    keeper: Keeper
    audit: Audit
    metrics: Metrics = field(default_factory=Metrics)
    pull_from: frozenset[str] = frozenset()
    changing: set[str] = field(default_factory=set)

    @functools.cached_property
    def shelf(self) -> "Shelf":
        """The collections of documents that are open."""
        from settle.server.requests.document_chat import Shelf

        return Shelf()

    async def close(self) -> None:
        """Ends the models and closes the collections."""
        await self.keeper.close()
        if "shelf" in self.__dict__:
            await asyncio.to_thread(self.shelf.close)

    def find(self, call: "Call", name: str) -> Entry:
        """The entry of that name, noted in the audit. Raises Refusal."""
        entry = self.catalogue.find(name)
        call.record.model = entry.id
        return entry


class Call:
    """One request while it is answered."""

    def __init__(self, gateway: Gateway, request: Request, record: Record) -> None:
        self.gateway, self.request, self.record = gateway, request, record

    async def body(self, model: type[Shaped]) -> Shaped:
        """The body as an endpoint takes it. Raises Refusal."""
        value = parse(await self.request.body() or b"{}")
        if self.gateway.audit.prompts:
            self.record.said = value if isinstance(value, dict) else None
        return shaped(model, value)

    @property
    def path(self) -> dict[str, str]:
        return self.request.path_params


Handler = Callable[[Call], Awaitable[Response]]


class Endpoint:
    """One route of a shape: an ASGI app. error: a Refusal in the words of the shape. takes: the body it takes."""

    def __init__(
        self, handler: Handler, name: str, error: Callable[[Refusal], dict[str, Any]], takes: type[Body] | None = None
    ) -> None:
        self.handler, self.name, self.error, self.takes = handler, name, error, takes

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
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
            response.headers.setdefault("request-id", request_id)  # Anthropic's clients look for this one
            record.status = response.status_code
            await response(scope, receive, send)
        except asyncio.CancelledError:
            record.status = record.status or 499
            raise
        except Exception as e:  # noqa: BLE001  the answer has begun: it is cut off, which tells that it is not whole
            record.status, record.error = 500, repr(e)[:500]
        finally:
            gateway.metrics.count(record)
            gateway.audit.write(record)

    async def _response(self, call: Call, receive: Receive) -> Response | None:
        """The response, or None when the client left while it was made: then what was under way is stopped."""
        try:
            await call.request.body()
        except ClientDisconnect:
            return None
        except Exception as e:  # noqa: BLE001  the edge, as below
            return self._failed(call.record, e)
        done = await _unless_gone(self._guarded(call), receive)
        return done.result() if done else None

    async def _guarded(self, call: Call) -> Response:
        try:
            return await self.handler(call)
        except Exception as e:  # noqa: BLE001  the edge: one request fails, the server goes on
            return self._failed(call.record, e)

    def _failed(self, record: Record, error: Exception) -> Response:
        if isinstance(error, Refusal):
            return self.refused(record, error)
        if isinstance(error, SettleError):
            return self.refused(record, Refusal(400, str(error)))
        record.error = repr(error)[:500]
        return self.refused(record, broken(error))

    def refused(self, record: Record, refusal: Refusal) -> Response:
        record.error = record.error or refusal.message[:300]
        return Response(json.dumps(self.error(refusal)), refusal.status, refusal.headers, media_type="application/json")


class Streamed(Response):
    """A response that comes piece by piece, from a generator that is closed when the client leaves."""

    def __init__(self, pieces: AsyncGenerator[bytes], record: Record, media_type: str = "text/event-stream") -> None:
        super().__init__(media_type=media_type, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._pieces, self._record = pieces, record

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        async with contextlib.aclosing(self._pieces):
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            done = await _unless_gone(self._send(send), receive)
            if done:
                done.result()
            else:
                self._record.status = 499

    async def _send(self, send: Any) -> None:
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def replied(value: Any, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json.dumps(value, ensure_ascii=False), status, media_type="application/json")


def broken(error: Exception) -> Refusal:
    """What is told of a fault of our own."""
    return Refusal(500, f"settle failed: {type(error).__name__}", "internal_error")


async def begun(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """The same pieces, once the first has come: what fails before is still a response with a status of its own."""
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = b""
    except BaseException:
        await pieces.aclose()
        raise

    async def all_of_them() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_of_them()


async def told(chunks: AsyncGenerator[Any], record: Record, error: Callable[[Refusal], bytes]) -> AsyncGenerator[Any]:
    """Chunks of an answer; where they break off, what `error` makes of it comes last. The first may raise."""
    is_begun = False
    try:
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                is_begun = True
                record.token()
                yield chunk
    except Exception as e:  # noqa: BLE001  the edge: whatever broke, the answer must say that it is not whole
        if isinstance(e, aiohttp.ClientError | ConnectionError):
            e = Refusal(502, "the engine died under this request", "engine_died")
        if not is_begun:
            raise e from None
        refusal = e if isinstance(e, Refusal) else broken(e)
        record.error = refusal.message[:300] if refusal is e else repr(e)[:500]
        yield error(refusal)


async def _unless_gone(work: Coroutine[Any, Any, Any], receive: Receive) -> asyncio.Future[Any] | None:
    """`work` when it is done; None when the client left before it was, and then it is stopped."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        return doing if doing.done() else None
    finally:
        for task in (doing, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
