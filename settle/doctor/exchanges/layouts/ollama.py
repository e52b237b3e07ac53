"""Ollama's /api/chat and /api/generate (https://docs.ollama.com/api)."""

from collections.abc import Mapping
from typing import ClassVar

from settle.doctor.exchanges.exchange import Message, Reply, Request
from settle.doctor.exchanges.layouts import (
    Body,
    Layout,
    calls_of,
    content_text,
    count_of,
    finish_of,
    messages_of,
    settings_of,
    tools_of,
)
from settle.doctor.exchanges.layouts.openai import SAMPLING

_OWN = ("options", "think", "keep_alive", "format", "raw", "suffix", "system", "template")
_SAMPLING = {*SAMPLING, "stop", "num_keep"}


class Ollama(Layout):
    """{"messages" or "prompt", "options": {…}} and {"message" or "response", "done"}."""

    rank: ClassVar[int] = 20
    known: ClassVar[str] = 'Ollama: {"messages" or "prompt", "options": {…}} and {"message": {…}, "done": …}'
    spelled: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "max_tokens": ("options", "num_predict"),
        "context": ("options", "num_ctx"),
        "thinking": ("think",),
        **{name: ("options", name) for name in _SAMPLING},
    }

    def request(self, body: Body) -> Request | None:
        if not any(key in body for key in _OWN):
            return None
        messages = messages_of(body.get("messages"))
        if messages is None and isinstance(prompt := body.get("prompt"), str) and "response" not in body:
            system = body.get("system")
            first = ({"role": "system", "content": str(system)},) if system else ()
            messages = (*first, {"role": "user", "content": prompt})
        if messages is None:
            return None
        options = body.get("options")
        options = options if isinstance(options, Mapping) else {}
        settings = settings_of(options, sorted(_SAMPLING))
        length = options.get("num_predict")
        settings |= {"max_tokens": length} if isinstance(length, int) and length > 0 else {}
        settings |= {"thinking": bool(body["think"])} if body.get("think") is not None else {}
        settings |= _format(body.get("format"))
        name, context = str(body.get("model") or ""), count_of(options.get("num_ctx"))
        return Request(messages, tools_of(body.get("tools")), settings, name, context, self.part_name(), body)

    def reply(self, body: Body) -> Reply | None:
        if "done" not in body or not ("message" in body or "response" in body):
            return None
        message = body.get("message")
        message = message if isinstance(message, Mapping) else {"content": body.get("response")}
        reason = body.get("done_reason") or ("stop" if body.get("done") else None)
        calls = calls_of(message.get("tool_calls"))
        return Reply(
            content_text(message.get("content")),
            str(message.get("thinking") or body.get("thinking") or ""),
            calls,
            "tool_calls" if calls and reason == "stop" else finish_of(reason),
            count_of(body.get("prompt_eval_count")),
            count_of(body.get("eval_count")),
        )

    def body(self, request: Request) -> dict[str, object]:
        body: dict[str, object] = {"model": request.model, "messages": [_own_message(m) for m in request.messages]}
        body |= {"tools": list(request.tools)} if request.tools else {}
        options: dict[str, object] = {"num_ctx": request.context} if request.context else {}
        for name, value in request.settings.items():
            if name == "thinking":
                body["think"] = value
            elif name == "response_format":
                body["format"] = _own_format(value)
            elif name == "max_tokens" or name in _SAMPLING:
                options["num_predict" if name == "max_tokens" else name] = value
        return body | ({"options": options} if options else {})


def _own_message(message: Message) -> dict[str, object]:
    """A message as Ollama takes it: the arguments of calls are objects, and thoughts have another name."""
    own = {key: value for key, value in message.items() if key in ("role", "content")}
    calls = calls_of(message.get("tool_calls"))
    own |= {"tool_calls": [{"function": {"name": c.name, "arguments": c.values or {}}} for c in calls]} if calls else {}
    return own | ({"thinking": message["reasoning_content"]} if message.get("reasoning_content") else {})


def _own_format(value: object) -> object:
    """OpenAI's response_format as Ollama's format."""
    schema = value.get("json_schema") if isinstance(value, Mapping) else None
    return schema.get("schema", "json") if isinstance(schema, Mapping) else "json"


def _format(value: object) -> dict[str, object]:
    """Ollama's format as OpenAI's response_format."""
    if value == "json":
        return {"response_format": {"type": "json_object"}}
    if isinstance(value, Mapping):
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": value}}}
    return {}
