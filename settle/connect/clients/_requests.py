"""Requests that several clients send, each with its own variations. Answers are short: a check must not take long."""

from collections.abc import Mapping

from settle.connect.clients import ClientRequest, Connection

SHORT = 24  # tokens of an answer
QUESTION = "Say hello in one short sentence."


def tool(name: str, about: str, parameter: str, parameter_about: str) -> dict[str, object]:
    """Return a function with one text as its argument; coding agents have dozens of them."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": "string", "description": parameter_about}},
                "required": [parameter],
            },
        },
    }


def list_models(path: str = "/v1/models", **headers: str) -> ClientRequest:
    return ClientRequest("its list of models", path, expects="models", headers=_named(headers))


def chat(
    connection: Connection,
    what: str = "a chat",
    system: str = "",
    headers: Mapping[str, str] | None = None,
    **more: object,
) -> ClientRequest:
    """Return a chat, streamed unless `stream` is false. more: fields of the body."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": QUESTION})
    body: dict[str, object] = {
        "model": connection.model,
        "messages": messages,
        "stream": True,
        "max_tokens": SHORT,
    } | more
    return ClientRequest(what, "/v1/chat/completions", body, "stream" if body["stream"] else "chat", headers or {})


def embed(connection: Connection, what: str = "embeddings") -> list[ClientRequest]:
    """Empty where the server has no model for embeddings."""
    if not connection.embedder:
        return []
    body = {"model": connection.embedder, "input": ["a passage of a document"]}
    return [ClientRequest(what, "/v1/embeddings", body, "embeddings")]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
