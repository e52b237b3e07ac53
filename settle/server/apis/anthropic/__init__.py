"""Anthropic's API (https://docs.anthropic.com/en/api/messages), under /v1 and without it.

The header anthropic-beta is not looked at: what a beta adds comes with a field, and a field that is unknown is refused.
Where Anthropic has one form for errors we keep to it, so the field at fault is named in the message.
"""

import contextlib
import json
import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

from starlette.responses import Response

from settle.server.apis import Shape
from settle.server.apis.anthropic.body import CountBody, MessagesBody
from settle.server.errors import Refusal
from settle.server.gateway import Call, Endpoint, Streamed, begun, replied, told
from settle.server.models.model_catalogue import Entry
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.content_blocks import chunks, named

ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class Anthropic(Shape):
    """Messages, and the counting of their tokens."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/messages", self.endpoint(messages, MessagesBody)),
            ("/messages/count_tokens", self.endpoint(count_tokens, CountBody)),
        ]
        return [("POST", alias + path, endpoint) for alias in ("/v1", "") for path, endpoint in posts]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        kind = ERRORS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}

    def owns(self, path: str) -> bool:
        return path.removeprefix("/v1").startswith("/messages")


async def messages(call: Call) -> Response:
    body = await call.body(MessagesBody)
    call.record.user = (body.metadata and body.metadata.user_id) or body.user_profile_id or ""
    request = body.to_chat()
    entry = call.gateway.find(call, body.model)
    answer = Answer(entry.id, request, bool(body.thinking and body.thinking.display == "omitted"))
    if body.stream:
        events = told(_stream(call, request, entry, answer), call.record, _broken_off)
        return Streamed(await begun(events), call.record)
    async with contextlib.aclosing(chunks(call.gateway, request, entry)) as pieces:
        async for chunk in pieces:
            for _ in answer.feed(chunk):
                pass
    for _ in answer.end():
        pass
    call.record.usage(answer.counted)
    return replied(answer.message())


async def _stream(call: Call, request: ChatRequest, entry: Entry, answer: "Answer") -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(chat.stream(call.gateway, request, entry)) as pieces:
        async for chunk in pieces:
            events = b"".join(map(named, answer.feed(chunk)))
            if events:
                yield events
    call.record.usage(answer.counted)
    yield b"".join(map(named, answer.end()))


async def count_tokens(call: Call) -> Response:
    body = await call.body(CountBody)
    call.record.user = body.user_profile_id or ""
    request = body.to_chat()
    entry = call.gateway.find(call, body.model)
    return replied({"input_tokens": await chat.count(call.gateway, request, entry)})


class Answer:
    """OpenAI's chunks as Anthropic's events, and as the message that these amount to. hides: reasoning's text."""

    def __init__(self, model: str, request: ChatRequest, hides: bool) -> None:
        self.counted: dict[str, Any] | None = None
        self._request, self._hides = request, hides
        self._is_begun, self._reason = False, "end_turn"
        self._blocks: list[dict[str, Any]] = []
        self._inputs: dict[int, str] = {}  # by the index of the block: JSON as far as it has come
        self._call: int | None = None  # llama.cpp's index of the call that comes
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._stopped: dict[str, Any] = {"stop_reason": None, "stop_sequence": None}

    def feed(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.counted = chunk.get("usage") or self.counted
        choice = chunk["choices"][0] if chunk["choices"] else {"delta": {}}
        delta = choice["delta"]
        if not self._is_begun and ("timings" in chunk or {*delta} - {"role", "content"} or delta.get("content")):
            yield self._start(chunk.get("timings", {}))
        if delta.get("reasoning_content"):
            yield from self._grow("thinking", delta["reasoning_content"])
        if delta.get("content"):
            yield from self._grow("text", delta["content"])
        for note in delta.get("annotations") or ():
            yield from self._cited(note["url_citation"])
        for call in delta.get("tool_calls") or ():
            yield from self._called(call)
        if choice.get("finish_reason"):
            self._finish(choice)

    def end(self) -> Iterator[dict[str, Any]]:
        if not self._is_begun:
            yield self._start({})
        yield from self._close()
        usage = self.counted or {}
        if self._reason == "max_tokens" and usage.get("completion_tokens", 0) < (self._request.max_tokens or 0):
            self._reason = "model_context_window_exceeded"
        self._stopped["stop_reason"] = self._reason
        yield {"type": "message_delta", "delta": self._stopped, "usage": self._usage()}
        yield {"type": "message_stop"}

    def message(self) -> dict[str, Any]:
        """The whole answer, once it has ended."""
        content = [
            block | ({"input": _parsed(self._inputs[index])} if index in self._inputs else {})
            for index, block in enumerate(self._blocks)
        ]
        usage = self._usage() | {"service_tier": "standard"}
        return self._head | {"content": content} | self._stopped | {"usage": usage}

    def _start(self, timings: dict[str, Any]) -> dict[str, Any]:
        self._is_begun = True
        cached = timings.get("cache_n", 0)
        usage = _usage(timings.get("prompt_n", 0) + cached, cached, 0) | {"service_tier": "standard"}
        return {"type": "message_start", "message": self._head | {"content": []} | self._stopped | {"usage": usage}}

    def _grow(self, kind: Literal["text", "thinking"], text: str) -> Iterator[dict[str, Any]]:
        if not self._blocks or self._blocks[-1]["type"] != kind:
            yield from self._open({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))
        if kind == "thinking" and self._hides:
            return
        self._blocks[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _cited(self, cited: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """What a passage of a document was cited for stands in the last block."""
        found = self._blocks[-1].setdefault("citations", [])
        citation = {
            "type": "search_result_location",
            "cited_text": cited["text"],
            "source": cited["url"],
            "title": cited["title"],
            "search_result_index": len(found),
            "start_block_index": 0,
            "end_block_index": 1,
        }
        found.append(citation)
        yield self._delta({"type": "citations_delta", "citation": citation})

    def _called(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        function, index = call.get("function", {}), call.get("index", 0)
        if self._call != index or self._blocks[-1]["type"] != "tool_use":
            name, id = function.get("name", ""), call.get("id") or f"toolu_{secrets.token_hex(12)}"
            yield from self._open({"type": "tool_use", "id": id, "name": name, "input": {}})
            self._call, self._inputs[len(self._blocks) - 1] = index, ""
        if function.get("arguments"):
            self._inputs[len(self._blocks) - 1] += function["arguments"]
            yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _open(self, block: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self._blocks.append(block)
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _close(self) -> Iterator[dict[str, Any]]:
        if not self._blocks:
            return
        if self._blocks[-1]["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _finish(self, choice: dict[str, Any]) -> None:
        self._reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(choice["finish_reason"], "end_turn")
        if self._reason == "end_turn" and choice.get("stopped_by"):
            self._reason = "stop_sequence"
            self._stopped["stop_sequence"] = choice["stopped_by"]

    def _usage(self) -> dict[str, int]:
        usage = self.counted or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return _usage(usage.get("prompt_tokens", 0), cached, usage.get("completion_tokens", 0))


def _usage(prompt: int, cached: int, made: int) -> dict[str, int]:
    """Anthropic's count of what was read leaves out what was cached."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": made,
    }


def _parsed(arguments: str) -> dict[str, Any]:
    """The input of a call; one that was cut off under the key by which Anthropic has it handed back."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": arguments}


def _broken_off(refusal: Refusal) -> bytes:
    return named(Anthropic().error(refusal))
