"""The server that a client is connected to: its address and key, and the model that the client is to use."""

from typing import Any

from settle.base.errors import RunError, UsageError
from settle.base.files import parse_json
from settle.base.server_state import running_server, server_key
from settle.connect.check import send
from settle.connect.clients import ClientRequest, Connection
from settle.machine.web_request import WEB_ERRORS, is_loopback, reason

LIST_SECONDS = 30.0


Listed = dict[str, Any]  # a model in a server's list; servers other than settle's say less about it


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
    embedder = next((other["id"] for other in models if "embedding" in _capabilities(other)), "")
    return Connection(
        address=address,
        key=key or "",
        model=chosen["id"],
        context=int(chosen.get("context_length") or 0),
        capabilities=tuple(_capabilities(chosen)),
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
    if answer.status in (401, 403):
        raise RunError(f"the server at {address} rejects the request: {answer.message}", "give its key with --key")
    try:
        models: list[Listed] = parse_json(answer.body)["data"]
        if answer.status != 200 or not all(isinstance(model["id"], str) for model in models):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        message = f"{address} does not answer like OpenAI's API: {answer.status} {answer.message}"
        raise RunError(message, "check --address") from None
    return models


def _capabilities(model: Listed) -> list[str]:
    return model.get("capabilities") or []


def _choose(models: list[Listed], wanted: str | None) -> Listed:
    """Return the model of that name, else the first that chats. Raises UsageError."""
    names = ", ".join(model["id"] for model in models)
    if not models:
        raise UsageError("the server has no models yet", "`settle pull smollm2`")
    if wanted is None:
        chats = [model for model in models if "tools" in _capabilities(model)]
        if not chats and "capabilities" in models[0]:
            raise UsageError("none of the server's models can chat", f"they are: {names}")
        return (chats or models)[0]
    chosen = next((model for model in models if wanted.removesuffix(":latest") == model["id"]), None)
    if chosen is None:
        raise UsageError(f"the server has no model {wanted!r}", f"it has: {names}")
    return chosen
