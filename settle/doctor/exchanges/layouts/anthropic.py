"""Anthropic's Messages (https://docs.claude.com/en/api/messages)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from settle.doctor.exchanges.exchange import Call, Message, Reply, Request
from settle.doctor.exchanges.layouts import (
    Body,
    Layout,
    arguments_text,
    content_text,
    count_of,
    finish_of,
    messages_of,
    settings_of,
    tools_of,
)

_READ = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")  # the first is without the others
_BLOCKS = {"tool_use", "tool_result", "thinking", "redacted_thinking"}


class Anthropic(Layout):
    """{"system", "messages", "max_tokens", …} and {"content": [blocks], "stop_reason"}, whole or as events."""

    rank: ClassVar[int] = 10
    known: ClassVar[str] = 'Anthropic: {"system", "messages": […], "max_tokens"} and {"content": […], "stop_reason"}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "thinking": ("thinking", "type"),
        "stop": ("stop_sequences",),
    }

    def request(self, body: Body) -> Request | None:
        turns = body.get("messages")
        if not isinstance(turns, list) or not turns or "options" in body or not _is_own(body, turns):
            return None
        messages: list[Message] = []
        if system := content_text(body.get("system")):
            messages.append({"role": "system", "content": system})
        for turn in turns:
            if not isinstance(turn, Mapping):
                return None
            messages += _turn(turn)
        settings = settings_of(body, ("max_tokens", "temperature", "top_p", "top_k"))
        settings |= {"stop": body["stop_sequences"]} if body.get("stop_sequences") else {}
        thinking = body.get("thinking")
        if isinstance(thinking, Mapping):
            settings["thinking"] = thinking.get("type") != "disabled"
        tools = tools_of(body.get("tools"))
        return Request(tuple(messages), tools, settings, str(body.get("model") or ""), None, self.part_name(), body)

    def changed(self, setting: str, value: object) -> dict[str, object]:
        if setting == "thinking":
            return {"thinking": {"type": "enabled" if value else "disabled"}}
        return super().changed(setting, value)

    def reply(self, body: Body) -> Reply | None:
        kind = body.get("type")
        if isinstance(kind, str) and (kind.startswith(("content_block_", "message_")) or kind == "ping"):
            return _event(kind, body)
        blocks = body.get("content")
        if not isinstance(blocks, list) or "stop_reason" not in body:
            return None
        reply = Reply(finish=finish_of(body["stop_reason"]))
        for block in blocks:
            if isinstance(block, Mapping):
                reply = reply.then(_block(block))
        return _counted(reply, body.get("usage"))


def _is_own(body: Body, turns: Sequence[object]) -> bool:
    if "system" in body or "stop_sequences" in body or "anthropic_version" in body:
        return True
    tools = body.get("tools")
    if isinstance(tools, list) and any(isinstance(tool, Mapping) and "input_schema" in tool for tool in tools):
        return True
    blocks = [block for turn in turns if isinstance(turn, Mapping) for block in _listed(turn.get("content"))]
    return isinstance(body.get("thinking"), Mapping) or any(block.get("type") in _BLOCKS for block in blocks)


def _listed(content: object) -> list[Body]:
    return [block for block in content if isinstance(block, Mapping)] if isinstance(content, list) else []


def _turn(turn: Body) -> list[Message]:
    """One of Anthropic's turns as OpenAI's messages: results of tools are messages of their own."""
    results, others, calls, thoughts = [], [], [], []
    for block in _listed(turn.get("content")):
        kind = block.get("type")
        if kind == "tool_result":
            text = content_text(block.get("content"))
            results.append({"role": "tool", "tool_call_id": str(block.get("tool_use_id")), "content": text})
        elif kind == "tool_use":
            function = {"name": str(block.get("name")), "arguments": json.dumps(block.get("input") or {})}
            calls.append({"id": str(block.get("id")), "type": "function", "function": function})
        elif kind == "thinking":
            thoughts.append(str(block.get("thinking") or ""))
        else:
            others.append(block)
    text = content_text(others) if isinstance(turn.get("content"), list) else content_text(turn.get("content"))
    message: dict[str, object] = {"role": str(turn.get("role") or "user"), "content": text}
    message |= {"tool_calls": calls} if calls else {}
    message |= {"reasoning_content": "\n".join(thoughts)} if any(thoughts) else {}
    return [*results, *(messages_of([message]) or ())] if text or calls or not results else list(results)


def _block(block: Body) -> Reply:
    kind = block.get("type")
    if kind == "thinking":
        return Reply(reasoning=str(block.get("thinking") or ""))
    if kind == "tool_use":
        return Reply(calls=(Call(str(block.get("name")), _input(block.get("input"))),))
    return Reply(text=str(block.get("text") or ""))


def _input(value: object) -> str:
    return arguments_text(value) if value else ""  # a stream's follows in pieces


def _event(kind: str, body: Body) -> Reply:
    """An event of a stream."""
    delta = body.get("delta")
    delta = delta if isinstance(delta, Mapping) else {}
    if kind == "content_block_delta":
        piece = delta.get("partial_json")
        calls = (Call("", str(piece)),) if piece else ()
        return Reply(str(delta.get("text") or ""), str(delta.get("thinking") or ""), calls)
    if kind == "content_block_start" and isinstance(block := body.get("content_block"), Mapping):
        return _block(block)
    message = body.get("message")
    usage = message.get("usage") if isinstance(message, Mapping) else body.get("usage")
    return _counted(Reply(finish=finish_of(delta.get("stop_reason"))), usage)


def _counted(reply: Reply, usage: object) -> Reply:
    counts = usage if isinstance(usage, Mapping) else {}
    read = [count_of(counts.get(name)) for name in _READ]
    return replace(
        reply,
        prompt_tokens=sum(count or 0 for count in read) if read[0] is not None else None,
        written_tokens=count_of(counts.get("output_tokens")),
    )
