"""The server that a client is connected to: its address and key, and the model that the client is to use."""

import contextlib
import json
import time
import urllib.parse
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from httpx import HTTPStatusError, Response
from pydantic import BaseModel, ValidationError

from settle.audit.session import declare
from settle.base.errors import RunError, UsageError
from settle.base.files import parse_json
from settle.base.server_state import running_server, server_key
from settle.connect.clients import ClientRequest, Connection
from settle.machine.web_request import WEB_ERRORS, is_loopback, open_response, reason

LIST_SECONDS = 30.0
TIMEOUT_SECONDS = 600.0  # of an answer: the model may have to be loaded first
LONGEST_MESSAGE = 300
# What a whole answer of Anthropic's and of OpenAI's Responses API ends with; an answer may be cut for its length.
LAST_EVENTS = {"messages": ("message_stop",), "responses": ("response.completed", "response.incomplete")}


class Listed(BaseModel):
    """A model in a server's list; servers other than settle's say less about it."""

    id: str
    context_length: int | None = None
    capabilities: list[str] | dict[str, Any] | None = None


class ListedModels(BaseModel):
    data: list[Listed]


def open_connection(
    address: str | None, key: str | None, model: str | None, origin: str = "", replaces: bool = False
) -> Connection:
    """Return the connection to a server, with the model that the client is to use.

    address, key: None takes those of the server that runs here. model: None takes the first that chats. Raises RunError
    without a server, UsageError for a model that it does not have."""
    server = running_server()
    if address is None:
        if server is None:
            raise RunError("no server runs here", "start it with `settle serve`, or give --address")
        address = server.address
    address = address.rstrip("/").removesuffix("/v1")
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"--address {address} does not begin with http://", "--address http://127.0.0.1:7388")
    is_open = server is not None and address == server.address and not server.needs_key
    if key is None and not is_open and is_loopback(address):  # no other machine may learn this one's key
        key = server_key(create=False)
    models = list_models(address, key or "")
    chosen = _choose(models, model)
    embedder = next((other.id for other in models if "embedding" in (other.capabilities or ())), "")
    return Connection(
        address=address,
        key=key or "",
        model=chosen.id,
        context=chosen.context_length or 0,
        capabilities=tuple(chosen.capabilities or ()),
        embedder=embedder,
        origin=origin,
        replaces=replaces,
    )


def list_models(address: str, key: str) -> list[Listed]:
    """Return the models that a server lists. Raises RunError when there is no server, or it does not let us in."""
    request = ClientRequest("", "/v1/models", expects="models")
    try:
        answer = send(Connection(address, key, ""), request, LIST_SECONDS)
    except WEB_ERRORS as e:
        raise RunError(f"no answer from {address}: {reason(e)}", "start a server: `settle serve`") from None
    if answer.status_code in (401, 403):
        raise RunError(f"the server at {address} rejects the request: {_message(answer)}", "give its key with --key")
    try:
        answer.raise_for_status()
        return ListedModels.model_validate_json(answer.content).data
    except (ValidationError, HTTPStatusError):
        message = f"{address} does not answer like OpenAI's API: {answer.status_code} {_message(answer)}"
        raise RunError(message, "check --address") from None


def _choose(models: list[Listed], wanted: str | None) -> Listed:
    """Return the model of that name, else the first that chats. Raises UsageError."""
    names = ", ".join(model.id for model in models)
    if not models:
        raise UsageError("the server has no models yet", "`settle pull smollm2`")
    if wanted is None:
        chats = [model for model in models if "tools" in (model.capabilities or ())]
        if not chats and models[0].capabilities is not None:
            raise UsageError("none of the server's models can chat", f"they are: {names}")
        return (chats or models)[0]
    chosen = next((model for model in models if wanted.removesuffix(":latest") == model.id), None)
    if chosen is None:
        raise UsageError(f"the server has no model {wanted!r}", f"it has: {names}")
    return chosen


@dataclass(frozen=True)
class CheckResult:
    """why: the request failed; "" when it did not."""

    what: str
    seconds: float
    why: str = ""

    @property
    def passed(self) -> bool:
        return not self.why


def check_request(connection: Connection, request: ClientRequest) -> CheckResult:
    began = time.monotonic()
    try:
        why = _fault(request, send(connection, request))
    except WEB_ERRORS as e:
        why = reason(e)
    return CheckResult(request.what, time.monotonic() - began, why)


def send(connection: Connection, request: ClientRequest, seconds: float = TIMEOUT_SECONDS) -> Response:
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
        response.read()
        return response


def _message(answer: Response) -> str:
    """Return the server's own words about an error."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(parse_json(answer.content)["error"]["message"])[:LONGEST_MESSAGE]
    return answer.content[:LONGEST_MESSAGE].decode("utf-8", "replace").strip()


def _fault(request: ClientRequest, answer: Response) -> str:
    """Return what is wrong with an answer, or ""."""
    if request.expects == "preflight":
        is_right = answer.headers.get("access-control-allow-origin") == request.headers["Origin"]
        is_right = is_right and answer.status_code == 204
        return "" if is_right else f"{answer.status_code}: {_message(answer)}"
    if answer.status_code != 200:
        return f"{answer.status_code}: {_message(answer)}"
    try:
        if request.expects in ("stream", "text"):
            return _stream_fault(answer, is_chat=request.expects == "stream")
        if request.expects in LAST_EVENTS:
            return _events_fault(answer, LAST_EVENTS[request.expects])
        outer, inner = {
            "models": ("data", "id"),
            "chat": ("choices", "finish_reason"),
            "embeddings": ("data", "embedding"),
        }[request.expects]
        return "" if parse_json(answer.content)[outer][0][inner] else f"the answer is incomplete: {_message(answer)}"
    except (ValueError, KeyError, IndexError, TypeError):
        return f"the answer has an unexpected form: {_message(answer)}"


def _events_fault(answer: Response, last: Collection[str]) -> str:
    """Return what is wrong with a stream of named events, or "". last: the kinds that a whole answer ends with."""
    events = [parse_json(line[6:]) for line in answer.content.splitlines() if line.startswith(b"data: {")]
    error = next((event for event in events if event.get("type") in ("error", "response.failed")), None)
    if error:
        return str(error)[:LONGEST_MESSAGE]
    return "" if events and events[-1].get("type") in last else f"the stream breaks off: {_message(answer)}"


def _stream_fault(answer: Response, is_chat: bool) -> str:
    lines = [line[6:] for line in answer.content.splitlines() if line.startswith(b"data: ")]
    if not lines or lines[-1] != b"[DONE]":
        return f"the stream breaks off: {_message(answer)}"
    chunks = [parse_json(line) for line in lines[:-1]]
    error = next((chunk["error"] for chunk in chunks if "error" in chunk), None)
    if error:
        return str(error.get("message", error))[:LONGEST_MESSAGE]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ())]
    if is_chat and not any(choice.get("delta") for choice in choices):
        return "the stream has no answer in it"
    return "" if any(choice.get("finish_reason") for choice in choices) else "the stream has no finish reason"
