"""The messages of a chat: checked, so that nothing in them is lost, and made texts."""

import json
import secrets
from typing import Any

from settle.server.errors import invalid, only, unsupported

ROLES = {"system", "user", "assistant", "tool"}
MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "refusal"}
# of a part of a message: its text, and what APIs put beside it that is of no use to a model
PART_FIELDS = {
    "text": ("text", "cache_control"),
    "input_text": ("text", "cache_control"),
    "output_text": ("text", "annotations", "logprobs"),
    "refusal": ("refusal",),
}


def check_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """Messages with texts as their content, and nothing in them that would be lost. Raises Refusal."""
    if not messages:
        raise invalid("messages", "there are none")
    return [_checked(message, f"messages.{number}") for number, message in enumerate(messages)]


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise invalid(where, "must be an object")
    only(message, MESSAGE_FIELDS, where)
    role = "system" if message.get("role") == "developer" else message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"one of {', '.join(sorted(ROLES | {'developer'}))}")
    told: dict[str, Any] = {"role": role, "content": text_of(message.get("content"), f"{where}.content")}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise invalid(f"{where}.reasoning_content", "must be a text")
    told |= {"reasoning_content": reasoning} if reasoning else {}
    for key in ("name", "tool_call_id"):
        if message.get(key) is not None:
            if not isinstance(message[key], str):
                raise invalid(f"{where}.{key}", "must be a text")
            told[key] = message[key]
    if message.get("refusal") is not None:
        told["content"] += text_of([{"type": "refusal", "refusal": message["refusal"]}], f"{where}.refusal")
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise invalid(f"{where}.tool_calls", "must be a list")
        told["tool_calls"] = [_checked_call(c, f"{where}.tool_calls.{i}") for i, c in enumerate(message["tool_calls"])]
        if role != "assistant":
            raise invalid(f"{where}.tool_calls", "only an assistant calls")
    elif role != "assistant" and message.get("content") is None:
        raise invalid(f"{where}.content", "is missing")
    return told


def _checked_call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, "must be {id, type: function, function: {name, arguments}}")
    only(call, ("id", "type", "function", "index"), where)
    only(function, ("name", "arguments"), f"{where}.function")
    if call.get("type", "function") != "function" or not isinstance(call.get("id") or "", str):
        raise invalid(where, "its type must be function, and its id a text")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    named = {"name": function["name"], "arguments": arguments}
    return {"id": call.get("id") or f"call_{secrets.token_hex(12)}", "type": "function", "function": named}


def text_of(content: Any, where: str) -> str:
    """The text of a message's content, a text or OpenAI's list of parts. Raises Refusal for what is no text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a text or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in PART_FIELDS:
            said = f"{str(kind)[:40]} is not supported, this model reads text" if kind else "must have a type"
            raise unsupported(f"{where}.{number}", said)
        only(part, ("type", *PART_FIELDS[kind]), f"{where}.{number}")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise invalid(f"{where}.{number}.text", "must be a text")
        texts.append(text)
    return "\n".join(texts)
