"""Requests that several clients send, each with differences of its own. Short answers: trying must not take long."""

from typing import Any

from settle.connect.clients import Ask, Connection

SHORT = 24  # tokens of an answer
QUESTION = "Say hello in one short sentence."


def tool(name: str, about: str, parameter: str, parameter_about: str) -> dict[str, Any]:
    """A function with one text as its argument, as coding agents bring dozens of."""
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


def list_models(path: str = "/v1/models", **headers: str) -> Ask:
    return Ask("its list of models", path, expects="models", headers=_named(headers))


def chat(connection: Connection, what: str = "a chat", system: str = "", headers: Any = None, **more: Any) -> Ask:
    """A chat, streamed unless `stream` is false. more: fields of the body."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": QUESTION})
    body = {"model": connection.model, "messages": messages, "stream": True, "max_tokens": SHORT} | more
    return Ask(what, "/v1/chat/completions", body, "stream" if body["stream"] else "chat", headers or {})


def embed(connection: Connection, what: str = "embeddings") -> list[Ask]:
    """None where the server has no model for it."""
    if not connection.embedder:
        return []
    body = {"model": connection.embedder, "input": ["a passage of a document"]}
    return [Ask(what, "/v1/embeddings", body, "embeddings")]


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
