"""Who may ask, before anything of a request is believed: Host, Origin, key, size, number and time."""

import asyncio
import hmac
import ipaddress
import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from settle.server.errors import Refusal
from settle.server.guard.body_limits import Inbound, Receive, Send

Scope = MutableMapping[str, Any]

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})  # say that the server runs, and nothing else


@dataclass(frozen=True)
class Limits:
    """body: bytes. requests: at the same time. seconds: from the first byte to the last of the answer."""

    body: int = 32 << 20
    requests: int = 256
    seconds: float = 1800.0


class Guard:
    """ASGI middleware. keys: None lets everyone on this machine in. hosts: names beside the loopback's own.
    any_address: whether the server listens beyond the loopback, so that any address may be its name; origins: of web
    pages and extensions that may ask. error: a Refusal in the words of the shape that a path belongs to."""

    def __init__(
        self,
        app: Any,
        key: str | None,
        origins: Callable[[], frozenset[str]],
        hosts: frozenset[str],
        any_address: bool,
        limits: Limits,
        error: Callable[[str, Refusal], dict[str, Any]],
    ) -> None:
        self.app, self._key, self._origins, self._hosts = app, key, origins, hosts
        self._any_address, self._limits, self._error = any_address, limits, error
        self._busy = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        allowed: list[tuple[bytes, bytes]] = []
        inbound = Inbound(receive, headers, self._limits.body)
        send = inbound.lingering(send)
        try:
            self._check_host(headers, scope)
            allowed = self._check_origin(headers)
            if scope["method"] == "OPTIONS":
                await _answer(send, 204, b"", [*allowed, *_preflight(headers)])
                return
            self._check_key(headers, scope["path"])
            self._check_length(headers)
            if self._busy >= self._limits.requests:
                raise Refusal(503, "too many requests at the same time", "overloaded", retry_seconds=5)
        except Refusal as refusal:
            body = json.dumps(self._error(scope["path"], refusal)).encode()
            told = [(name.encode(), value.encode()) for name, value in refusal.headers.items()]
            await _answer(send, refusal.status, body, [*allowed, *told])
            return
        self._busy += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self.app(scope, inbound.receive, _adding(send, allowed) if allowed else send)
        except TimeoutError:
            pass  # the answer is cut off; what was under way is stopped
        finally:
            self._busy -= 1

    def _check_host(self, headers: dict[bytes, str], scope: Scope) -> None:
        """A page that has its own name point at this machine (DNS rebinding) still sends that name as the host."""
        given = [value for name, value in scope["headers"] if name.lower() == b"host"]
        if len(given) != 1:
            raise Refusal(400, "exactly one Host header is needed", "forbidden_host")
        host = _host(headers[b"host"])
        if host in self._hosts or host == "localhost" or host.endswith(".localhost"):
            return
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise Refusal(
                403, f"the host {host[:100]!r} is not served; --allow-host adds one", "forbidden_host"
            ) from None
        if not (address.is_loopback or self._any_address):
            raise Refusal(403, "this server is for this machine only", "forbidden_host")

    def _check_origin(self, headers: dict[bytes, str]) -> list[tuple[bytes, bytes]]:
        """Pages of the web must not reach a server on the loopback through the browser of who runs it."""
        origin = headers.get(b"origin")
        if origin is None:
            if headers.get(b"sec-fetch-site", "none") in ("cross-site", "same-site"):
                raise Refusal(403, "web pages may not ask here", "forbidden_origin")
            return []
        if origin not in self._origins():
            raise Refusal(
                403, f"the origin {origin[:100]!r} may not ask here; --allow-origin adds one", "forbidden_origin"
            )
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
            (b"vary", b"Origin"),
        ]

    def _check_key(self, headers: dict[bytes, str], path: str) -> None:
        if self._key is None or path in OPEN_PATHS:
            return
        given = headers.get(b"x-api-key") or headers.get(b"api-key") or ""
        scheme, _, token = headers.get(b"authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            given = token.strip()
        if not given:
            raise Refusal(
                401, "a key is needed: `Authorization: Bearer KEY`; `settle connect` shows it", "missing_api_key"
            )
        if not hmac.compare_digest(given.encode("latin-1", "replace"), self._key.encode()):
            raise Refusal(401, "this is not the key of this server; `settle connect` shows it", "invalid_api_key")

    def _check_length(self, headers: dict[bytes, str]) -> None:
        length = headers.get(b"content-length", "0")
        if not (length.isascii() and length.isdigit()) or len(length) > 15 or int(length) > self._limits.body:
            raise Refusal(413, f"the body may be {self._limits.body >> 20} MiB long", "body_too_large")


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.count(":") == 1 else header.lower().rstrip(".")


def _preflight(headers: dict[bytes, str]) -> list[tuple[bytes, bytes]]:
    if b"access-control-request-method" not in headers:
        return [(b"allow", b"GET, HEAD, POST, DELETE, OPTIONS")]
    told = [
        (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
        (b"access-control-allow-headers", headers.get(b"access-control-request-headers", "*").encode("latin-1")),
        (b"access-control-max-age", b"600"),
    ]
    if headers.get(b"access-control-request-private-network") == "true":
        told.append((b"access-control-allow-private-network", b"true"))
    return told


def _adding(send: Send, more: list[tuple[bytes, bytes]]) -> Send:
    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *more]
        await send(message)

    return adding


async def _answer(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    typed = [(b"content-type", b"application/json")] if body else []
    length = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*typed, *length, *headers]})
    await send({"type": "http.response.body", "body": body})
