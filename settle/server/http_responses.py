"""Responses: JSON at once, or piece by piece until the answer ends or its client leaves."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import TypeVar

import aiohttp
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from settle.server.audit import Record
from settle.wire.errors import ApiError

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


def sse_event(event: Mapping[str, object]) -> bytes:
    """Return a server-sent event that is named by its `type`."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def internal_error(error: Exception) -> ApiError:
    """How a fault of our own is reported."""
    return ApiError(500, f"settle failed: {type(error).__name__}", "internal_error")


async def fetch_first(pieces: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Return the pieces once the first is made: what fails before is a response with a status of its own."""
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = b""
    except BaseException:
        await pieces.aclose()
        raise

    async def all_pieces() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_pieces()


async def streamed(
    pieces: AsyncGenerator[bytes],
    record: Record,
    error: Callable[[ApiError], bytes],
    media_type: str = "text/event-stream",
) -> Response:
    """Return the response of a stream. Raises what the first piece raises.

    Where it breaks off, the piece that `error` makes is the last."""
    return StreamedResponse(await fetch_first(with_error_event(pieces, record, error)), record, media_type)


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
