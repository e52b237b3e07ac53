"""Who is let in, before anything of a request is believed: Host, Origin, key, size, number and time."""

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from settle.wire.errors import ApiError, ErrorBody

Headers = list[tuple[bytes, bytes]]

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})  # answer without a key: that the server runs, nothing else
TIME_LIMIT = "settle.time_limit"  # the asyncio.Timeout of a request, in its scope
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]@/]+))(?::\d{1,5})?")  # an address or a name, and a port
METHODS = b"GET, HEAD, POST, DELETE, OPTIONS"


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    body: bytes. requests: at the same time, and as many whose body is still on its way. seconds: from the first byte
    to the last of the response."""

    body: int = 32 << 20
    requests: int = 256
    seconds: float = 1800.0


@dataclass(frozen=True)
class Access:
    """Who is let in.

    key: None lets every program of this machine in. origins: of web pages and extensions, read at every request so
    that `settle connect` can add one while the server runs. hosts: names beside the loopback's own. is_local:
    whether the server listens on the loopback only; otherwise any address may be its name."""

    key: str | None = None
    origins: Callable[[], frozenset[str]] = frozenset
    hosts: frozenset[str] = frozenset()
    is_local: bool = True


class Guard:
    """ASGI middleware. error: formats an error as the API does that a path belongs to."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        limits: Limits,
        error: Callable[[str, ApiError], ErrorBody],
    ) -> None:
        self.app, self._access, self._limits, self._error = app, access, limits, error
        self._bodies: set[IncomingBody] = set()  # one for each request in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        allowed: Headers = []
        body = IncomingBody(receive, headers, self._limits.body)
        send = body.lingering(send)
        try:
            require_host(scope, self._access.hosts, self._access.is_local)
            allowed = self._check_origin(headers)
            if scope["method"] == "OPTIONS":
                await _respond(send, 204, b"", [*allowed, *_preflight(headers)])
                return
            self._check_key(headers, scope["path"])
            self._check_length(headers)
            if scope["path"] not in OPEN_PATHS:
                self._make_room()
        except ApiError as error:
            content = json.dumps(self._error(scope["path"], error)).encode()
            own = [(name.encode(), value.encode()) for name, value in error.headers.items()]
            await _respond(send, error.status, content, [*allowed, *own])
            return
        self._bodies.add(body)
        watched = _WatchedSend(send, allowed)
        try:
            async with asyncio.timeout(self._limits.seconds) as limit:
                scope[TIME_LIMIT] = limit
                await self.app(scope, body.receive, watched)
        except TimeoutError:  # the work is stopped; a response that has begun is cut off
            if not watched.has_begun:
                late = ApiError(504, f"no answer within {self._limits.seconds:.0f} s (--timeout)", "timeout")
                await _respond(watched, 504, json.dumps(self._error(scope["path"], late)).encode(), [])
        finally:
            self._bodies.discard(body)

    def _make_room(self) -> None:
        """Give up the body that was silent for the longest, of those that do not come to their end.

        Raises ApiError where too many requests are being answered."""
        unfinished = [body for body in self._bodies if not body.is_whole]
        if len(self._bodies) - len(unfinished) >= self._limits.requests:
            raise ApiError(503, "too many requests at the same time", "overloaded", retry_seconds=5)
        waiting = [body for body in unfinished if not body.is_given_up]
        if len(waiting) >= self._limits.requests:
            min(waiting, key=lambda body: body.heard).give_up()

    def _check_origin(self, headers: dict[bytes, str]) -> Headers:
        """Web pages must not reach a server on the loopback through the browser of the person who runs it."""
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site", "none") in ("cross-site", "same-site"):
                raise ApiError(403, "requests from web pages are not allowed", "forbidden_origin")
            return []
        if origin not in self._access.origins():
            message = f"the origin {origin[:100]!r} is not allowed; add it with --allow-origin"
            raise ApiError(403, message, "forbidden_origin")
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]

    def _check_key(self, headers: dict[bytes, str], path: str) -> None:
        if self._access.key is None or path in OPEN_PATHS:
            return
        key = headers.get(b"x-api-key") or headers.get(b"api-key") or ""
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            key = token.strip()
        if not key:
            message = "no API key given; send `Authorization: Bearer KEY`; `settle connect` shows the key"
            raise ApiError(401, message, "missing_api_key")
        if not hmac.compare_digest(key.encode("latin-1", "replace"), self._access.key.encode()):
            raise ApiError(401, "wrong API key; `settle connect` shows the key of this server", "invalid_api_key")

    def _check_length(self, headers: dict[bytes, str]) -> None:
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > self._limits.body:
            raise ApiError(413, f"the body may be {self._limits.body >> 20} MiB long", "body_too_large")


def require_host(scope: Scope, hosts: Collection[str] = (), is_local: bool = True) -> None:
    """Refuse a host that is not this server's. Raises ApiError.

    A web page whose own name points at this machine (DNS rebinding) still sends that name as the host. hosts: names
    beside the loopback's own; is_local: only the loopback's."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"host"]
    if len(sent) != 1:
        raise ApiError(400, "exactly one Host header is needed", "forbidden_host")
    host = _host(sent[0])
    if host in hosts or host == "localhost" or host.endswith(".localhost"):
        return
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        message = f"the host {host[:100]!r} is not allowed; add it with --allow-host"
        raise ApiError(403, message, "forbidden_host") from None
    if is_local and not address.is_loopback:
        raise ApiError(403, "this server accepts requests from this machine only", "forbidden_host")


def _host(header: str) -> str:
    """Return the name in a Host header, without its port; the whole header where what follows is no port."""
    found = _HOST.fullmatch(header.lower())
    return (found[1] or found[2]).rstrip(".") if found else header


def _preflight(headers: dict[bytes, str]) -> Headers:
    if b"access-control-request-method" not in headers:
        return [(b"allow", METHODS)]
    answer = [
        (b"access-control-allow-methods", METHODS),
        (b"access-control-allow-headers", headers.get(b"access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    if headers.get(b"access-control-request-private-network") == "true":
        answer.append((b"access-control-allow-private-network", b"true"))
    return answer


class _WatchedSend:
    """Sends with more headers. has_begun: whether a response is under way."""

    def __init__(self, send: Send, more: Headers) -> None:
        self._send, self._more, self.has_begun = send, more, False

    async def __call__(self, message: Message) -> None:
        self.has_begun = True
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *self._more]
        await self._send(message)


async def _respond(send: Send, status: int, body: bytes, headers: Headers) -> None:
    content_type = [(b"content-type", b"application/json")] if body else []
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*content_type, *length, *headers]})
    await send({"type": "http.response.body", "body": body})


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
        """Return the next piece. Raises ApiError when it is too late or too large."""
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
        """Let it be too late from now on."""
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
