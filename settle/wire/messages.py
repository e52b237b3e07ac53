"""The messages of a chat: checked, so that nothing in them is lost, and their contents made texts."""

import json
import secrets
from collections.abc import Collection, Sequence

from settle.infer.tool_calls.types import function_call
from settle.wire.errors import invalid, reject_unknown, unsupported
from settle.wire.types import ChatMessage, ToolCall

ROLES = {"system", "user", "assistant", "tool"}
MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "refusal"}
# the text of a part of a message, and fields beside it that are of no use to a model
PART_FIELDS = {
    "text": ("text", "cache_control"),
    "input_text": ("text", "cache_control"),
    "output_text": ("text", "annotations", "logprobs"),
    "refusal": ("refusal",),
}


def check_messages(messages: Sequence[object]) -> list[ChatMessage]:
    """OpenAI's messages, with texts as their contents. Raises ApiError for anything in them that would be lost."""
    if not messages:
        raise invalid("messages", "must not be empty")
    return [_checked(message, f"messages.{number}") for number, message in enumerate(messages)]


def _checked(message: object, where: str) -> ChatMessage:
    if not isinstance(message, dict):
        raise invalid(where, "must be an object")
    reject_unknown(message, MESSAGE_FIELDS, where)
    role = "system" if message.get("role") == "developer" else message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role", f"one of {', '.join(sorted(ROLES | {'developer'}))}")
    checked: ChatMessage = {"role": role, "content": text_of(message.get("content"), f"{where}.content")}
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, str):
        raise invalid(f"{where}.reasoning_content", "must be a text")
    if reasoning:
        checked["reasoning_content"] = reasoning
    if (name := _optional_text(message.get("name"), f"{where}.name")) is not None:
        checked["name"] = name
    if (call_id := _optional_text(message.get("tool_call_id"), f"{where}.tool_call_id")) is not None:
        checked["tool_call_id"] = call_id
    if message.get("refusal") is not None:
        checked["content"] += text_of([{"type": "refusal", "refusal": message["refusal"]}], f"{where}.refusal")
    if message.get("tool_calls"):
        if not isinstance(message["tool_calls"], list):
            raise invalid(f"{where}.tool_calls", "must be a list")
        calls = enumerate(message["tool_calls"])
        checked["tool_calls"] = [_checked_call(call, f"{where}.tool_calls.{number}") for number, call in calls]
        if role != "assistant":
            raise invalid(f"{where}.tool_calls", "only messages of the role assistant have calls")
    elif role != "assistant" and message.get("content") is None:
        raise invalid(f"{where}.content", "is missing")
    return checked


def _optional_text(value: object, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise invalid(where, "must be a text")
    return value


def _checked_call(call: object, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise invalid(where, "must be {id, type: function, function: {name, arguments}}")
    reject_unknown(call, ("id", "type", "function", "index"), where)
    reject_unknown(function, ("name", "arguments"), f"{where}.function")
    if call.get("type", "function") != "function" or not isinstance(call.get("id") or "", str):
        raise invalid(where, "its type must be function, and its id a text")
    arguments = function.get("arguments", "{}")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return function_call(call.get("id") or f"call_{secrets.token_hex(12)}", function["name"], arguments)


def text_of(content: object, where: str) -> str:
    """Return the text of a message's content: a text, or OpenAI's list of parts.

    Raises ApiError for parts that are not text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(where, "must be a text or a list of parts")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(part, dict) or not isinstance(kind, str) or kind not in PART_FIELDS:
            why = f"{str(kind)[:40]} is not supported; this model reads text" if kind else "must have a type"
            raise unsupported(f"{where}.{number}", why)
        reject_unknown(part, ("type", *PART_FIELDS[kind]), f"{where}.{number}")
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise invalid(f"{where}.{number}.text", "must be a text")
        texts.append(text)
    return "\n".join(texts)


def merge_turns(messages: list[ChatMessage], roles: Collection[str]) -> list[ChatMessage]:
    """Neighbouring messages of the same role as one. roles: those to merge."""
    merged: list[ChatMessage] = []
    for message in messages:
        if merged and message["role"] in roles and merged[-1]["role"] == message["role"]:
            merged[-1] = _merge(merged[-1], message)
        else:
            merged.append(message)
    return merged


def _merge(one: ChatMessage, two: ChatMessage) -> ChatMessage:
    merged = one | {"content": "\n".join(message["content"] for message in (one, two) if message["content"])}
    reasoning = [message["reasoning_content"] for message in (one, two) if message.get("reasoning_content")]
    calls = [*one.get("tool_calls", ()), *two.get("tool_calls", ())]
    if reasoning:
        merged["reasoning_content"] = "\n".join(reasoning)
    if calls:
        merged["tool_calls"] = calls
    return merged
