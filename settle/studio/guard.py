"""Who is let in: only this machine, only the studio's own pages, and only a browser that came by the one-time link.

NiceGUI accepts a request for any Host and a WebSocket from any Origin, so this stands before it, for both.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from settle.server.guard import require_host
from settle.wire.errors import ApiError

COOKIE = "settle_studio"
ENTRY = "/enter"  # the path of the one-time link
COOKIE_SECONDS = 30 * 86400
ISSUED = re.compile(r"[0-9]{1,12}")  # seconds since the epoch
# The framework compiles its templates in the browser, hence unsafe-eval; nothing is loaded from elsewhere.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
REFUSED = """<!doctype html><html lang="en"><meta charset="utf-8"><title>settle studio</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<body style="font:16px system-ui;max-width:36rem;margin:4rem auto;padding:0 1rem">
<h1>%s</h1><p>%s</p></body></html>"""
ENTERED = """<!doctype html><html lang="en"><title>settle studio</title><meta http-equiv="refresh" content="0;url=/">
<a href="/">settle studio</a></html>"""


class StudioGuard:
    """ASGI middleware. on_entry: called when the one-time link was used; a new one is then in `link`.

    A browser that came by a link has a cookie that is made from the key of `settle serve` and the time, and does not
    reveal the key; it is valid for COOKIE_SECONDS.
    """

    def __init__(self, app: ASGIApp, key: str, on_entry: Callable[[], None] = lambda: None) -> None:
        self.app, self._on_entry, self._key = app, on_entry, key.encode()
        self._token = secrets.token_urlsafe(24)

    @property
    def link(self) -> str:
        """Path and query of the one-time link."""
        return f"{ENTRY}?token={self._token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            require_host(scope)
            if scope["type"] == "http" and scope["method"] == "GET" and scope["path"] == ENTRY:
                await self._enter(scope, send)
                return
            _require_own_origin(headers)
            self._require_cookie(headers)
        except ApiError as error:
            await _refuse(scope, receive, send, error)
            return
        # a proxy's prefix would be written into the page
        scope["headers"] = [item for item in scope["headers"] if not item[0].lower().startswith(b"x-forwarded-")]
        await self.app(scope, receive, _with_headers(send))

    def cookie(self, issued: int) -> str:
        """Return the value of a cookie issued at that time, in seconds since the epoch."""
        return f"{issued}.{hmac.new(self._key, b'settle studio %d' % issued, hashlib.sha256).hexdigest()}"

    async def _enter(self, scope: Scope, send: Send) -> None:
        """Send a page that leads on: after a redirect from another site a strict cookie would not be sent."""
        token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not hmac.compare_digest(token.encode(), self._token.encode()):
            raise ApiError(401, "This link has been used.", "spent_link")
        self._token = secrets.token_urlsafe(24)
        value = self.cookie(int(time.time()))
        cookie = f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Strict; Max-Age={COOKIE_SECONDS}"
        await _respond(send, 200, ENTERED, [(b"set-cookie", cookie.encode()), (b"cache-control", b"no-store")])
        self._on_entry()

    def _require_cookie(self, headers: dict[bytes, str]) -> None:
        cookies: SimpleCookie = SimpleCookie()
        try:
            cookies.load(headers.get(b"cookie", ""))
        except CookieError:
            cookies.clear()
        given = cookies[COOKIE].value if COOKIE in cookies else ""
        issued = given.partition(".")[0]
        value = self.cookie(int(issued)) if ISSUED.fullmatch(issued) else ""
        if not value or not hmac.compare_digest(given.encode("latin-1", "replace"), value.encode()):
            raise ApiError(401, "This browser has no key.", "missing_key")
        if time.time() - int(issued) > COOKIE_SECONDS:
            raise ApiError(401, "The key of this browser is too old.", "missing_key")


def _require_own_origin(headers: dict[bytes, str]) -> None:
    """Only the studio's own pages may send requests: not those of another port, and no web page."""
    origin = headers.get(b"origin")
    if origin is not None and origin != f"http://{headers.get(b'host', '')}":
        raise ApiError(403, "Other web pages may not use the studio.", "forbidden_origin")
    if origin is None and headers.get(b"sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "Other web pages may not use the studio.", "forbidden_origin")


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    fix = "Open the link that <code>settle studio</code> shows in its terminal; each link lets one browser in."
    text = error.message if error.status == 401 or error.code == "forbidden_origin" else "This host is not allowed."
    await _respond(send, error.status, REFUSED % (text, fix), [])


async def _respond(send: Send, status: int, text: str, more: list[tuple[bytes, bytes]]) -> None:
    body = text.encode()
    own = [(b"content-type", b"text/html; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *HEADERS, *more]})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return with_headers
