"""Requests to a server of others: JSON, within a time and a size, and never a redirect."""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from settle.audit.session import declare
from settle.base.errors import RunError, UsageError
from settle.base.files import parse_json
from settle.machine.web_request import open_request

LOOK_SECONDS = 5.0  # that a question about the server itself may take
MOST_BYTES = 16 << 20  # of one answer
SHOWN = 160  # characters of an answer that is nonsense


class Web:
    """A server at an address. key: sent with each request, or None. seen: the last answer that was no JSON, to show."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """Raises UsageError for an address that is none."""
        address = address.rstrip("/").removesuffix("/v1").removesuffix("/api")
        try:
            is_address = bool(urlsplit(address).hostname) and urlsplit(address).port != 0
        except ValueError:
            is_address = False
        if not is_address or not address.startswith(("http://", "https://")):
            raise UsageError(f"{address} is no address of a server", "write http://127.0.0.1:11434")
        declare(urlsplit(address).hostname or "", "the server that is looked at")
        self.address, self._key, self.seen = address, key, ""

    def get(self, path: str) -> object:
        """What it answers, or None where it does not know the path, or answers no JSON. Raises RunError when it is not
        there, does not answer in time, or does not let us in."""
        return self._json(path, None)

    def post(self, path: str, body: Mapping[str, object]) -> object:
        """The same for a question with a body."""
        return self._json(path, body)

    def lines(
        self, path: str, body: Mapping[str, object], first: float, seconds: float, must_end: bool
    ) -> Iterator[str]:
        """Lines of an answer as they come. first: seconds to the first of it; seconds: that all of it may take, after
        which it is an error where it must end, and else is left. Raises RunError, also when it is refused."""
        response = self._open(path, body, first)
        deadline, held = time.monotonic() + seconds, b""
        with response:
            if response.status != 200:
                raise self._refused(path, response)
            while piece := self._piece(response, path):
                *lines, held = (held + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
                if time.monotonic() > deadline and not must_end:
                    return
                if time.monotonic() > deadline or len(held) > MOST_BYTES:
                    raise RunError(f"{self.address} was still answering after {seconds:.0f} s", "ask it for less")
            yield held.decode("utf-8", "replace")

    def _json(self, path: str, body: Mapping[str, object] | None) -> object:
        with self._open(path, body, LOOK_SECONDS) as response:
            deadline, data = time.monotonic() + LOOK_SECONDS, b""
            while piece := self._piece(response, path):
                data += piece
                if len(data) > MOST_BYTES or time.monotonic() > deadline:
                    raise RunError(f"{self.address}{path} answers without end", "check the address")
            if response.status in (401, 403):
                raise RunError(f"{self.address} rejects the request ({response.status})", "give its key with --key")
            if response.status != 200:
                self.seen = self.seen if response.status == 404 else f"{path} gave status {response.status}"
                return None
        try:
            value: object = parse_json(data)
            return value
        except ValueError:
            self.seen = f"{path} gave {data[:SHOWN].decode('utf-8', 'replace')!r}"
            return None

    def _open(self, path: str, body: Mapping[str, object] | None, seconds: float) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            return open_request(request, seconds)
        except urllib.error.HTTPError as e:
            return e  # type: ignore[return-value]  # it is an answer too, and reads like one
        except TimeoutError:
            raise self._silent(seconds) from None
        except urllib.error.URLError as e:
            if isinstance(e.reason, TimeoutError):
                raise self._silent(seconds) from None
            why = getattr(e.reason, "strerror", None) or str(e.reason)
            raise RunError(
                f"nothing answers at {self.address}: {why}", "start the server, or check the address"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            raise RunError(
                f"{self.address} does not speak HTTP: {e or type(e).__name__}", "check the address"
            ) from None

    def _piece(self, response: http.client.HTTPResponse, path: str) -> bytes:
        """The next bytes, or none at the end."""
        try:
            return response.read1(1 << 16)
        except TimeoutError:
            raise RunError(f"{self.address} stopped in the middle of its answer to {path}", "look at its log") from None
        except (OSError, http.client.HTTPException, ValueError) as e:
            why = str(e) or type(e).__name__
            raise RunError(f"{self.address} broke off its answer to {path}: {why}", "look at its log") from None

    def _silent(self, seconds: float) -> RunError:
        return RunError(
            f"{self.address} takes the request and does not answer within {seconds:.0f} s",
            "it may be loading its model, or hang: look at its log, and try again",
        )

    def _refused(self, path: str, response: http.client.HTTPResponse) -> RunError:
        text = self._piece(response, path)[:2000].decode("utf-8", "replace")
        try:
            error = parse_json(text)["error"]
            text = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, TypeError):
            pass
        fix = "give its key with --key" if response.status in (401, 403) else "look at its log"
        return RunError(f"{self.address} refuses {path} ({response.status}): {text[:SHOWN]}", fix)
