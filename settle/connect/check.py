"""Requests sent as a client sends them, and what is wrong with the answers."""

import contextlib
import json
import time
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass

from settle.audit.session import declare
from settle.base.files import parse_json
from settle.connect.clients import ClientRequest, Connection
from settle.machine.web_request import WEB_ERRORS, open_response, reason

TIMEOUT_SECONDS = 600.0  # of an answer: the model may have to be loaded first
LONGEST_MESSAGE = 300
# What a whole answer of Anthropic's and of OpenAI's Responses API ends with; an answer may be cut for its length.
LAST_EVENTS = {"messages": ("message_stop",), "responses": ("response.completed", "response.incomplete")}


@dataclass(frozen=True)
class CheckResult:
    """why: the request failed; "" when it did not."""

    what: str
    seconds: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class HttpAnswer:
    """headers: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def message(self) -> str:
        """The server's own words about an error."""
        with contextlib.suppress(ValueError, TypeError, KeyError):
            return str(parse_json(self.body)["error"]["message"])[:LONGEST_MESSAGE]
        return self.body[:LONGEST_MESSAGE].decode("utf-8", "replace").strip()


def check_request(connection: Connection, request: ClientRequest) -> CheckResult:
    began = time.monotonic()
    try:
        why = _fault(request, send(connection, request))
    except WEB_ERRORS as e:
        why = reason(e)
    return CheckResult(request.what, time.monotonic() - began, why)


def send(connection: Connection, request: ClientRequest, seconds: float = TIMEOUT_SECONDS) -> HttpAnswer:
    """Return the server's answer. Raises WEB_ERRORS."""
    headers = {"User-Agent": "settle-connect"} | dict(request.headers)
    if connection.key and request.expects != "preflight":
        headers["Authorization"] = f"Bearer {connection.key}"
    data = None
    if request.body is not None:
        data, headers["Content-Type"] = json.dumps(request.body).encode(), "application/json"
    url = connection.address + request.path
    declare(urllib.parse.urlsplit(url).hostname or "", "the server that clients are set up for")
    with open_response(request.verb, url, seconds, headers, data) as response:
        return HttpAnswer(response.status_code, dict(response.headers), response.read())


def _fault(request: ClientRequest, answer: HttpAnswer) -> str:
    """Return what is wrong with an answer, or ""."""
    if request.expects == "preflight":
        allowed = answer.headers.get("access-control-allow-origin") == request.headers["Origin"]
        return "" if answer.status == 204 and allowed else f"{answer.status}: {answer.message}"
    if answer.status != 200:
        return f"{answer.status}: {answer.message}"
    try:
        if request.expects in ("stream", "text"):
            return _stream_fault(answer, is_chat=request.expects == "stream")
        if request.expects in LAST_EVENTS:
            return _events_fault(answer, LAST_EVENTS[request.expects])
        value = parse_json(answer.body)
        expected = {
            "models": lambda: value["data"][0]["id"],
            "chat": lambda: value["choices"][0]["finish_reason"],
            "embeddings": lambda: value["data"][0]["embedding"],
        }[request.expects]()
        return "" if expected else f"the answer is incomplete: {answer.message}"
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the answer has an unexpected form: {answer.message}"


def _events_fault(answer: HttpAnswer, last: Collection[str]) -> str:
    """Return what is wrong with a stream of named events, or "". last: the kinds that a whole answer ends with."""
    events = [parse_json(line[6:]) for line in answer.body.splitlines() if line.startswith(b"data: {")]
    error = next((event for event in events if event.get("type") in ("error", "response.failed")), None)
    if error:
        return str(error)[:LONGEST_MESSAGE]
    return "" if events and events[-1].get("type") in last else f"the stream breaks off: {answer.message}"


def _stream_fault(answer: HttpAnswer, is_chat: bool) -> str:
    lines = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return f"the stream breaks off: {answer.message}"
    chunks = [parse_json(line) for line in lines[:-1]]
    error = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
    if error:
        return str(error.get("message", error))[:LONGEST_MESSAGE]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if is_chat and not any(choice.get("delta") for choice in choices):
        return "the stream has no answer in it"
    return "" if any(choice.get("finish_reason") for choice in choices) else "the stream has no finish reason"
