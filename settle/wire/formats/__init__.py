"""Wire formats, one file an API: bodies that the server takes field by field, and recorded ones that the doctor reads.

What a client sends to the server is validated, and nothing in it is ignored. What was recorded between other clients
and servers is recognised by its fields, and read as far as it can be.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from settle.base.registry import Part
from settle.wire.exchange import (
    Call,
    Fields,
    Finish,
    Message,
    Reply,
    Request,
    Tool,
    content_text,
    fields_of,
    objects_in,
)
from settle.wire.types import JsonObject

RawBody = Fields


class WireFormat(Part):
    """The contract of a wire format: how recorded requests and replies of its API are read, and written again."""

    rank: ClassVar[int]  # the order in which formats are tried
    known: ClassVar[str]  # its bodies, in a few words
    # how its API spells our settings, as a path into the body, where it differs from ours
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @abstractmethod
    def request(self, body: RawBody) -> Request | None:
        """Return the request that a body is, or None where it is none of this format."""

    @abstractmethod
    def reply(self, body: RawBody) -> Reply | None:
        """Return the reply, or the piece of a streamed one, that a body is; None where it is none of this format."""

    def body(self, request: Request) -> JsonObject:
        """Return the body of a request, for an API that servers are asked through."""
        raise NotImplementedError

    def changed(self, setting: str, value: object) -> JsonObject:
        """Return the part of a body that sets one setting."""
        *above, last = self.spelled.get(setting, (setting,))
        changed: JsonObject = {last: value}
        for name in reversed(above):
            changed = {name: changed}
        return changed


def wire_formats() -> list[WireFormat]:
    """Return all formats in the order in which they are tried."""
    return sorted((part() for part in WireFormat.parts().values()), key=lambda each: each.rank)


def messages_of(value: object) -> tuple[Message, ...] | None:
    """Return OpenAI's messages, or None where `value` is no list of turns."""
    turns = objects_in(value)
    if not turns or turns != value or not all(isinstance(turn.get("role"), str) for turn in turns):
        return None
    messages: list[Message] = []
    for turn in turns:
        role = "system" if turn["role"] == "developer" else turn["role"]
        message: JsonObject = {"role": role, "content": content_text(turn.get("content"))}
        message |= {key: turn[key] for key in ("tool_calls", "tool_call_id", "name") if turn.get(key)}
        thought = next((turn[key] for key in ("reasoning_content", "reasoning", "thinking") if turn.get(key)), None)
        messages.append(message | ({"reasoning_content": str(thought)} if thought else {}))
    return tuple(messages)


def tools_of(value: object) -> tuple[Tool, ...]:
    """Return tools in OpenAI's form, from any of the forms in which they are sent."""
    found: list[Tool] = []
    for tool in objects_in(value):
        function = fields_of(tool.get("function", tool))
        if isinstance(function.get("name"), str):
            schema = function.get("parameters") or function.get("input_schema") or {"type": "object", "properties": {}}
            about = {"name": function["name"], "description": function.get("description") or "", "parameters": schema}
            found.append({"type": "function", "function": about})
    return tuple(found)


def calls_of(value: object) -> tuple[Call, ...]:
    """Return the calls in OpenAI's or Ollama's `tool_calls`, whole or in pieces."""
    functions = objects_in([call.get("function") for call in objects_in(value)])
    return tuple(Call(str(f.get("name") or ""), arguments_text(f.get("arguments"))) for f in functions)


def arguments_text(value: object) -> str:
    """Return the arguments of a call as JSON text; some APIs send an object."""
    return value if isinstance(value, str) else json.dumps({} if value is None else value)


def finish_of(value: object) -> Finish:
    """Return why an answer ended, in OpenAI's words."""
    if value in ("length", "max_tokens", "model_length", "limit", "max_output_tokens"):
        return "length"
    if value in ("tool_calls", "tool_use", "function_call"):
        return "tool_calls"
    return "stop" if value else ""


def settings_of(body: RawBody, names: Sequence[str]) -> JsonObject:
    """Return those of the named fields that are set."""
    return {name: body[name] for name in names if body.get(name) is not None}


def count_of(value: object) -> int | None:
    """Return a whole number, or None for any other value."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
