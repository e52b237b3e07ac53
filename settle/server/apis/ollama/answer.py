"""Ollama's lines of one answer, made from OpenAI's chunks."""

import json
import time
from collections.abc import AsyncGenerator, Iterator

from starlette.responses import Response

from settle.base.files import parse_json
from settle.infer.child_process import Json
from settle.server.apis.ollama.models import now
from settle.server.gateway import Call
from settle.server.http_responses import streamed
from settle.server.models.model_entry import ModelEntry
from settle.wire.errors import ApiError
from settle.wire.types import Chunk, JsonObject, Logprobs, ToolCall

LINES = "application/x-ndjson"
FIELD_NAMES = {"response_format": "format", "reasoning_effort": "think"}  # OpenAI's → Ollama's, in messages


class LineWriter:
    """Writer of lines of /api/chat, with `message`, or of /api/generate, with `response` and `thinking`.

    The last one has counts and durations in nanoseconds too. name: of the model, as the client called it. loading:
    nanoseconds that loading the model took.
    """

    def __init__(self, entry: ModelEntry, name: str, is_chat: bool, context: int, loading: int) -> None:
        self.entry, self.context, self.loading = entry, context, loading
        self._model, self._is_chat = name or entry.id, is_chat
        self._began = time.monotonic_ns() - loading
        self._calls: dict[int, dict[str, str]] = {}  # as far as they were streamed, by index
        self._reason = "stop"

    def lines(self, chunk: Chunk) -> Iterator[Json]:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for call in delta.get("tool_calls") or ():
                self._add_call(call)
            text, thought = delta.get("content") or "", delta.get("reasoning_content")
            if text or thought or choice.get("logprobs"):
                yield self._line(text, thought, choice.get("logprobs"))
            if choice.get("finish_reason"):
                self._reason = "length" if choice["finish_reason"] == "length" else "stop"
                if self._calls:
                    yield from self._call_lines()
        if chunk.get("usage"):
            yield self.done(self._reason) | _counts(chunk)

    def done(self, reason: str) -> Json:
        line = self._line("") | {"done": True, "done_reason": reason}
        return line | {"total_duration": time.monotonic_ns() - self._began, "load_duration": self.loading}

    def merged(self, lines: list[Json]) -> Json:
        whole = {**lines[-1]}
        if self._is_chat:
            messages = [line["message"] for line in lines]
            whole["message"] = {"role": "assistant", "content": "".join(message["content"] for message in messages)}
            if thought := "".join(message.get("thinking", "") for message in messages):
                whole["message"]["thinking"] = thought
            if calls := [call for message in messages for call in message.get("tool_calls", ())]:
                whole["message"]["tool_calls"] = calls
        else:
            whole["response"] = "".join(line["response"] for line in lines)
            if thought := "".join(line.get("thinking", "") for line in lines):
                whole["thinking"] = thought
        if logprobs := [token for line in lines for token in line.get("logprobs", ())]:
            whole["logprobs"] = logprobs
        return whole

    def _line(self, text: str, thought: str | None = None, logprobs: Logprobs | None = None) -> Json:
        line: Json = {"model": self._model, "created_at": now()}
        if self._is_chat:
            line["message"] = {"role": "assistant", "content": text}
            if thought:
                line["message"]["thinking"] = thought
        else:
            line["response"] = text
            if thought:
                line["thinking"] = thought
        line["done"] = False
        if logprobs:
            line["logprobs"] = [_tidied(token) for token in logprobs["content"]]
        return line

    def _add_call(self, call: ToolCall) -> None:
        """Ollama sends a call whole, with its arguments as an object."""
        known = self._calls.setdefault(call.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = call.get("function", {})
        known["id"] = call.get("id") or known["id"]
        known["name"] += function.get("name") or ""
        known["arguments"] += function.get("arguments") or ""

    def _call_lines(self) -> Iterator[Json]:
        calls = []
        for index, call in sorted(self._calls.items()):
            try:
                arguments = parse_json(call["arguments"] or "{}")
            except ValueError:  # cut off by num_predict: sent as text, so that nothing is lost
                yield self._line(f"{call['name']} {call['arguments']}")
                continue
            function = {"index": index, "name": call["name"], "arguments": arguments}
            calls.append({"id": call["id"], "function": function})
        if calls:
            line = self._line("")
            line["message"]["tool_calls"] = calls
            yield line


def _counts(chunk: Chunk) -> Json:
    """Return the counts in the last chunk of an answer; durations in nanoseconds."""
    usage, timings = chunk["usage"], chunk.get("timings", {})
    counts: Json = {
        "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
        "eval_count": usage["completion_tokens"],
        "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
    }
    return counts | {"settle": chunk["settle"]} if "settle" in chunk else counts


def _tidied(token: Json) -> Json:
    """Return a token's probability without fields that Ollama does not have."""
    fields = {name: value for name, value in token.items() if name in ("token", "logprob", "bytes")}
    tops = token.get("top_logprobs")
    return fields | ({"top_logprobs": [_tidied(top) for top in tops]} if tops else {})


async def streamed_lines(call: Call, lines: AsyncGenerator[JsonObject]) -> Response:
    """Return a response of lines. Raises what the first line raises."""
    pieces = (_written(line) async for line in lines)
    return await streamed(pieces, call.record, lambda error: _written(error_line(error)), LINES)


def error_line(error: ApiError) -> JsonObject:
    message, param = error.message, error.param or ""
    if param in FIELD_NAMES and message.startswith(f"{param}: "):
        message = FIELD_NAMES[param] + message.removeprefix(param)
    return {"error": message}


def _written(line: JsonObject) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"
