"""The body of a request: its size and time are limited, and it is read to its end before a connection is closed, so
that a client that is still sending can read the error."""

import asyncio

from starlette.types import Message, Receive, Send

from settle.server.errors import ApiError

BODY_SECONDS = 60.0
DISCARD_BYTES, DISCARD_SECONDS = 256 << 20, 10.0  # of a body that nobody reads


class IncomingBody:
    """A body of at most `most` bytes. is_whole: whether all of it was received. heard: when a piece of it last came."""

    def __init__(self, receive: Receive, headers: dict[bytes, str], most: int) -> None:
        self._receive, self._most, self._num_bytes = receive, most, 0
        self.is_whole = headers.get(b"content-length", "0") == "0" and b"transfer-encoding" not in headers
        self._asks_first = b"expect" in headers  # a client that waits for leave before it sends the body
        self.heard = asyncio.get_running_loop().time()
        self._end = self.heard + BODY_SECONDS
        self._waiting: asyncio.Timeout | None = None  # while a piece is waited for
        self.is_given_up = False

    async def receive(self) -> Message:
        """The next piece. Raises ApiError when it is too late or too large."""
        if self.is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._end) as self._waiting:
                message = await self._next()
        except TimeoutError:
            within = "while others waited" if self.is_given_up else f"within {BODY_SECONDS:.0f} s"
            raise ApiError(408, f"the body was not complete {within}", "body_too_slow") from None
        finally:
            self._waiting = None
        if self._num_bytes > self._most:
            raise ApiError(413, f"the body may be {self._most >> 20} MiB long", "body_too_large")
        return message

    def give_up(self) -> None:
        """From now on it is too late."""
        self.is_given_up = True
        self._end = asyncio.get_running_loop().time()
        if self._waiting is not None:
            self._waiting.reschedule(self._end)

    def lingering(self, send: Send) -> Send:
        """`send` for a response that may begin before the body has ended: the connection is closed after both."""

        async def lingering(message: Message) -> None:
            if not self.is_whole and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            elif not self.is_whole and not message.get("more_body", False):
                await send({**message, "more_body": True})  # a server closes once it has the last piece
                await self._discard()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        return lingering

    async def _next(self) -> Message:
        message = await self._receive()
        self._num_bytes += len(message.get("body", b""))
        self.heard = asyncio.get_running_loop().time()
        self._asks_first = False
        self.is_whole = not message.get("more_body", False)
        return message

    async def _discard(self) -> None:
        try:
            async with asyncio.timeout(DISCARD_SECONDS):
                while not (self.is_whole or self._asks_first) and self._num_bytes <= DISCARD_BYTES:
                    await self._next()
        except TimeoutError:
            pass
