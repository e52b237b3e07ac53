"""Requests to a third-party server: JSON, within a time and a size, and never a redirect."""

import contextlib
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from settle.audit.session import declare
from settle.base.errors import RunError, UsageError
from settle.base.files import parse_json
from settle.machine.web_request import WEB_ERRORS, open_response, reason
from settle.wire.exchange import Fields, fields_of

LOOK_SECONDS = 5.0  # that a question about the server itself may take
MOST_BYTES = 16 << 20  # of one answer
SHOWN = 160  # characters of an answer that is nonsense


class Web:
    """A server at an address.

    key: sent with each request, or None. seen: the last answer that was no JSON, to show."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """Check the address. Raises UsageError."""
        address = address.rstrip("/").removesuffix("/v1").removesuffix("/api")
        try:
            is_address = bool(urlsplit(address).hostname) and urlsplit(address).port != 0
        except ValueError:
            is_address = False
        if not is_address or not address.startswith(("http://", "https://")):
            raise UsageError(f"{address} is no address of a server", "write http://127.0.0.1:11434")
        declare(urlsplit(address).hostname or "", "the server that is looked at")
        self.address, self._key, self.seen = address, key, ""

    def lines(self, path: str, body: Fields, first: float, seconds: float, must_end: bool) -> Iterator[str]:
        """Yield the lines of an answer as they come. Raises RunError, also when it is refused.

        first: seconds to the first of it; seconds: that all of it may take, after which it is an error where it must
        end, and else is left."""
        held = b""
        with self._open(path, body, first) as response:
            deadline = time.monotonic() + seconds
            if response.status_code != 200:
                raise self._refused(path, response)
            for piece in response.iter_raw():
                *lines, held = (held + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
                if time.monotonic() > deadline and not must_end:
                    return
                if time.monotonic() > deadline or len(held) > MOST_BYTES:
                    raise RunError(f"{self.address} was still answering after {seconds:.0f} s", "ask it for less")
        yield held.decode("utf-8", "replace")

    def ask(self, path: str, body: Fields | None = None) -> Fields:
        """Return the object that it answers, to a POST where there is a body; no fields where it knows no such path.

        Nor where it answers no object. Raises RunError when it is not there, is too slow, or does not let us in."""
        data = b""
        with self._open(path, body, LOOK_SECONDS) as response:
            deadline = time.monotonic() + LOOK_SECONDS
            for piece in response.iter_raw():
                data += piece
                if len(data) > MOST_BYTES or time.monotonic() > deadline:
                    raise RunError(f"{self.address}{path} answers without end", "check the address")
        if response.status_code in (401, 403):
            raise RunError(f"{self.address} rejects the request ({response.status_code})", "give its key with --key")
        if response.status_code != 200:
            self.seen = self.seen if response.status_code == 404 else f"{path} gave status {response.status_code}"
            return {}
        try:
            return fields_of(parse_json(data))
        except ValueError:
            self.seen = f"{path} gave {data[:SHOWN].decode('utf-8', 'replace')!r}"
            return {}

    @contextlib.contextmanager
    def _open(self, path: str, body: Fields | None, seconds: float) -> Iterator[httpx.Response]:
        """Yield the response to a request. Raises RunError, also while its body is read."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
        is_begun = False
        try:
            with open_response(method, self.address + path, seconds, headers, data) as response:
                is_begun = True
                yield response
        except WEB_ERRORS as e:
            raise self._failed(path, e, is_begun, seconds) from None

    def _failed(self, path: str, error: Exception, is_begun: bool, seconds: float) -> RunError:
        """Return the error of a request. is_begun: whether its answer had begun."""
        if is_begun and isinstance(error, httpx.TimeoutException):
            return RunError(f"{self.address} stopped in the middle of its answer to {path}", "look at its log")
        if is_begun:
            return RunError(f"{self.address} broke off its answer to {path}: {reason(error)}", "look at its log")
        if isinstance(error, httpx.TimeoutException):
            what = f"{self.address} takes the request and does not answer within {seconds:.0f} s"
            return RunError(what, "it may be loading its model, or hang: look at its log, and try again")
        if isinstance(error, httpx.ConnectError):
            fix = "start the server, or check the address"
            return RunError(f"nothing answers at {self.address}: {reason(error)}", fix)
        return RunError(f"{self.address} does not speak HTTP: {reason(error)}", "check the address")

    def _refused(self, path: str, response: httpx.Response) -> RunError:
        text = next(response.iter_raw(), b"")[:2000].decode("utf-8", "replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = parse_json(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        fix = "give its key with --key" if response.status_code in (401, 403) else "look at its log"
        return RunError(f"{self.address} refuses {path} ({response.status_code}): {text[:SHOWN]}", fix)
