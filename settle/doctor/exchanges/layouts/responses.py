"""OpenAI's Responses (https://platform.openai.com/docs/api-reference/responses)."""

from collections.abc import Mapping
from typing import ClassVar

from settle.doctor.exchanges.exchange import Call, Message, Reply, Request
from settle.doctor.exchanges.layouts import (
    Body,
    Layout,
    arguments_text,
    content_text,
    count_of,
    settings_of,
    tools_of,
)


class Responses(Layout):
    """{"input", "instructions", …} and {"output": [items]}, whole or as events."""

    rank: ClassVar[int] = 15
    known: ClassVar[str] = 'OpenAI Responses: {"input", "instructions"} and {"output": […]}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "max_tokens": ("max_output_tokens",),
        "reasoning_effort": ("reasoning", "effort"),
    }

    def request(self, body: Body) -> Request | None:
        given = body.get("input")
        if not isinstance(given, str | list) or not given or "messages" in body or "model" not in body:
            return None
        messages: list[Message] = []
        if instructions := body.get("instructions"):
            messages.append({"role": "system", "content": str(instructions)})
        for item in [given] if isinstance(given, str) else given:
            if isinstance(item, str):
                messages.append({"role": "user", "content": item})
            elif isinstance(item, Mapping):
                messages += _turn(item)
        settings = settings_of(body, ("temperature", "top_p", "tool_choice"))
        length, reasoning = count_of(body.get("max_output_tokens")), body.get("reasoning")
        settings |= {"max_tokens": length} if length else {}
        if isinstance(reasoning, Mapping) and reasoning.get("effort"):
            settings["reasoning_effort"] = reasoning["effort"]
        tools = tools_of(body.get("tools"))
        return Request(tuple(messages), tools, settings, str(body["model"]), None, self.part_name(), body)

    def reply(self, body: Body) -> Reply | None:
        kind = body.get("type")
        if isinstance(kind, str) and kind.startswith("response."):
            whole = body.get("response")
            return self.reply(whole) if _is_last(kind) and isinstance(whole, Mapping) else Reply()
        items = body.get("output")
        if not isinstance(items, list):
            return None
        reply = Reply()
        for item in items:
            if isinstance(item, Mapping):
                reply = reply.then(_item(item))
        usage = body.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        is_cut = body.get("status") == "incomplete"
        finish = Reply(
            finish="length" if is_cut else "tool_calls" if reply.calls else "stop",
            prompt_tokens=count_of(counts.get("input_tokens")),
            written_tokens=count_of(counts.get("output_tokens")),
        )
        return reply.then(finish)


def _is_last(kind: str) -> bool:
    return kind in ("response.completed", "response.incomplete", "response.failed")


def _turn(item: Body) -> list[Message]:
    kind = item.get("type", "message")
    if kind == "function_call":
        function = {"name": str(item.get("name")), "arguments": arguments_text(item.get("arguments"))}
        call = {"id": str(item.get("call_id")), "type": "function", "function": function}
        return [{"role": "assistant", "content": "", "tool_calls": [call]}]
    if kind == "function_call_output":
        return [{"role": "tool", "tool_call_id": str(item.get("call_id")), "content": content_text(item.get("output"))}]
    if kind != "message":
        return []
    role = str(item.get("role") or "user")
    return [{"role": "system" if role == "developer" else role, "content": content_text(item.get("content"))}]


def _item(item: Body) -> Reply:
    kind = item.get("type")
    if kind == "reasoning":
        return Reply(reasoning=content_text(item.get("content")) or content_text(item.get("summary")))
    if kind == "function_call":
        return Reply(calls=(Call(str(item.get("name")), arguments_text(item.get("arguments"))),))
    return Reply(text=content_text(item.get("content")))
