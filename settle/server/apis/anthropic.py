"""Anthropic's API (https://docs.anthropic.com/en/api/messages), under /v1 and without it.

The header anthropic-beta is ignored: a beta feature needs a field, and an unknown field is an error. Anthropic's errors
have one form, so the field at fault is named in the message.
"""

import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterator
from typing import Literal

from starlette.responses import Response

from settle.base.files import parse_json
from settle.infer.child_process import Json
from settle.server.apis import Api
from settle.server.gateway import Call, Endpoint, json_response, sse_event, streamed
from settle.server.models.model_entry import ModelEntry
from settle.server.requests import chat
from settle.wire.errors import ApiError
from settle.wire.formats.anthropic import CountBody, MessagesBody
from settle.wire.types import ChatRequest, Choice, Chunk, JsonObject, Timings, ToolCall, Usage

ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class Anthropic(Api):
    """Messages, and counting their tokens."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/messages", self.endpoint(messages)),
            ("/messages/count_tokens", self.endpoint(count_tokens)),
        ]
        return [("POST", alias + path, endpoint) for alias in ("/v1", "") for path, endpoint in posts]

    def error(self, error: ApiError) -> JsonObject:
        kind = ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}}

    def owns(self, path: str) -> bool:
        return path.removeprefix("/v1").startswith("/messages")


async def messages(call: Call, body: MessagesBody) -> Response:
    call.record.user = (body.metadata and body.metadata.user_id) or body.user_profile_id or ""
    request = body.to_chat()
    entry = call.find(body.model)
    writer = MessageWriter(entry.id, request, bool(body.thinking and body.thinking.display == "omitted"))
    events = _stream(call, request, entry, writer)
    if body.stream:
        return await streamed(events, call.record, _error_event)
    async with contextlib.aclosing(events):
        async for _ in events:
            pass
    return json_response(writer.message())


async def _stream(
    call: Call, request: ChatRequest, entry: ModelEntry, writer: "MessageWriter"
) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(chat.stream(call.backend, request, entry)) as pieces:
        async for chunk in pieces:
            events = b"".join(map(sse_event, writer.feed(chunk)))
            if events:
                yield events
    call.record.usage(writer.usage)
    yield b"".join(map(sse_event, writer.end()))


async def count_tokens(call: Call, body: CountBody) -> Response:
    call.record.user = body.user_profile_id or ""
    request = body.to_chat()
    entry = call.find(body.model)
    return json_response({"input_tokens": await chat.count(call.backend, request, entry)})


class MessageWriter:
    """OpenAI's chunks as Anthropic's events, and as the whole message. hides: the text of reasoning."""

    def __init__(self, model: str, request: ChatRequest, hides: bool) -> None:
        self.usage: Usage | None = None
        self._request, self._hides = request, hides
        self._is_begun, self._reason = False, "end_turn"
        self._blocks: list[Json] = []  # of text, thinking or tool_use
        self._inputs: dict[int, str] = {}  # JSON so far, by the index of the block
        self._call: int | None = None  # llama.cpp's index of the current call
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._stop: dict[str, str | None] = {"stop_reason": None, "stop_sequence": None}

    def feed(self, chunk: Chunk) -> Iterator[JsonObject]:
        self.usage = chunk.get("usage") or self.usage
        choice: Choice = chunk["choices"][0] if chunk["choices"] else {"delta": {}}
        delta = choice["delta"]
        if not self._is_begun and ("timings" in chunk or {*delta} - {"role", "content"} or delta.get("content")):
            yield self._start(chunk.get("timings", {}))
        if delta.get("reasoning_content"):
            yield from self._grow("thinking", delta["reasoning_content"])
        if content := delta.get("content"):
            yield from self._grow("text", content)
        for note in delta.get("annotations") or ():
            yield from self._cite(note["url_citation"])
        for call in delta.get("tool_calls") or ():
            yield from self._add_call(call)
        if reason := choice.get("finish_reason"):
            self._reason = {"length": "max_tokens", "tool_calls": "tool_use"}.get(reason, "end_turn")
            if self._reason == "end_turn" and choice.get("stopped_by"):
                self._reason, self._stop["stop_sequence"] = "stop_sequence", choice["stopped_by"]

    def end(self) -> Iterator[JsonObject]:
        if not self._is_begun:
            yield self._start({})
        yield from self._close()
        usage: Usage = self.usage or {}
        if self._reason == "max_tokens" and usage.get("completion_tokens", 0) < (self._request.max_tokens or 0):
            self._reason = "model_context_window_exceeded"
        self._stop["stop_reason"] = self._reason
        yield {"type": "message_delta", "delta": self._stop, "usage": self._usage()}
        yield {"type": "message_stop"}

    def message(self) -> JsonObject:
        """Return the whole message, once it has ended."""
        for index, text in self._inputs.items():
            self._blocks[index]["input"] = _parsed(text)
        usage = {**self._usage(), "service_tier": "standard"}
        return {**self._head, "content": self._blocks, **self._stop, "usage": usage}

    def _start(self, timings: Timings) -> JsonObject:
        self._is_begun = True
        cached = timings.get("cache_n", 0)
        usage = {**_usage(timings.get("prompt_n", 0) + cached, cached, 0), "service_tier": "standard"}
        return {"type": "message_start", "message": {**self._head, "content": [], **self._stop, "usage": usage}}

    def _grow(self, kind: Literal["text", "thinking"], text: str) -> Iterator[JsonObject]:
        if not self._blocks or self._blocks[-1]["type"] != kind:
            yield from self._open({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))
        if kind == "thinking" and self._hides:
            return
        self._blocks[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _cite(self, cited: Json) -> Iterator[JsonObject]:
        """Add a citation to the last block, which cites a passage of a document."""
        citations = self._blocks[-1].setdefault("citations", [])
        citation = {
            "type": "search_result_location",
            "cited_text": cited["text"],
            "source": cited["url"],
            "title": cited["title"],
            "search_result_index": len(citations),
            "start_block_index": 0,
            "end_block_index": 1,
        }
        citations.append(citation)
        yield self._delta({"type": "citations_delta", "citation": citation})

    def _add_call(self, call: ToolCall) -> Iterator[JsonObject]:
        function, index = call.get("function", {}), call.get("index", 0)
        if self._call != index or self._blocks[-1]["type"] != "tool_use":
            name, id = function.get("name", ""), call.get("id") or f"toolu_{secrets.token_hex(12)}"
            yield from self._open({"type": "tool_use", "id": id, "name": name, "input": {}})
            self._call, self._inputs[len(self._blocks) - 1] = index, ""
        if function.get("arguments"):
            self._inputs[len(self._blocks) - 1] += function["arguments"]
            yield self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})

    def _open(self, block: Json) -> Iterator[JsonObject]:
        yield from self._close()
        self._blocks.append(block)
        yield {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)}

    def _close(self) -> Iterator[JsonObject]:
        if not self._blocks:
            return
        if self._blocks[-1]["type"] == "thinking":
            yield self._delta({"type": "signature_delta", "signature": ""})
        yield {"type": "content_block_stop", "index": len(self._blocks) - 1}

    def _delta(self, delta: JsonObject) -> JsonObject:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _usage(self) -> dict[str, int]:
        usage: Usage = self.usage or {}
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens", 0) if details else 0
        return _usage(usage.get("prompt_tokens", 0), cached, usage.get("completion_tokens", 0))


def _usage(prompt: int, cached: int, completion: int) -> dict[str, int]:
    """Anthropic's input_tokens leave out what was cached."""
    return {
        "input_tokens": prompt - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": completion,
    }


def _parsed(arguments: str) -> JsonObject:
    """Return the input of a call; one that was cut off under the key that Anthropic uses for it."""
    with contextlib.suppress(ValueError):
        value = parse_json(arguments or "{}")
        if isinstance(value, dict):
            return value
    return {"INVALID_JSON": arguments}


def _error_event(error: ApiError) -> bytes:
    return sse_event(Anthropic().error(error))
