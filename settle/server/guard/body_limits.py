"""The body of a request as it comes in: counted, not waited for for ever, and read to its end before a connection is
closed, so that a client that is still sending gets to read why."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from settle.server.errors import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_SECONDS = 60.0
DISCARD_BYTES, DISCARD_SECONDS = 256 << 20, 10.0  # of a body that nobody wants


class Inbound:
    """A body of at most `most` bytes. is_whole: whether all of it has come."""

    def __init__(self, receive: Receive, headers: dict[bytes, str], most: int) -> None:
        self._receive, self._most, self._seen = receive, most, 0
        self.is_whole = headers.get(b"content-length", "0") == "0" and b"transfer-encoding" not in headers
        self._asks_first = b"expect" in headers  # a client that sends nothing before it is told to go on
        self._end = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        """The next piece. Raises Refusal when it comes too late or is too much."""
        if self.is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end):
                message = await self._next()
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {BODY_SECONDS:.0f} s", "body_too_slow") from None
        if self._seen > self._most:
            raise Refusal(413, f"the body may be {self._most >> 20} MiB long", "body_too_large")
        return message

    def lingering(self, send: Send) -> Send:
        """`send` for an answer that may come before the body has: the connection is closed after both."""

        async def lingering(message: Message) -> None:
            if not self.is_whole and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            elif not self.is_whole and not message.get("more_body", False):
                await send(message | {"more_body": True})  # a server closes once it has the last piece
                await self._discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return lingering

    async def _next(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        self._asks_first = False
        self.is_whole = not message.get("more_body", False)
        return message

    async def _discard(self) -> None:
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not (self.is_whole or self._asks_first) and self._seen <= DISCARD_BYTES:
                    await self._next()
        except TimeoutError:
            pass  # it was given time enough
