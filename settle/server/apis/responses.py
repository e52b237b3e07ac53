"""OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses), under /v1 and without it.

Nothing is stored: a client sends the whole conversation, and a response cannot be retrieved later.
"""

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator

from starlette.responses import Response

from settle.infer.child_process import Json
from settle.server.apis import Api
from settle.server.gateway import Call, Endpoint, json_response, sse_event, streamed
from settle.server.models.model_entry import ModelEntry
from settle.server.requests import chat
from settle.server.requests.engine import tokenize
from settle.wire.errors import ApiError, unsupported
from settle.wire.formats.responses import CountBody, ResponseBody
from settle.wire.messages import may_repeat
from settle.wire.types import ChatRequest, Chunk, JsonObject, Logprobs, ToolCall, Usage

TOKEN_FIELDS = ("token", "logprob", "bytes")


class Responses(Api):
    """Responses, and counting the tokens of their input."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/responses", self.endpoint(responses)),
            ("/responses/input_tokens", self.endpoint(input_tokens)),
        ]
        return [("POST", alias + path, endpoint) for alias in ("/v1", "") for path, endpoint in posts]

    def owns(self, path: str) -> bool:
        return path.removeprefix("/v1").startswith("/responses")


async def responses(call: Call, body: ResponseBody) -> Response:
    call.record.user = body.user or body.safety_identifier or ""
    request = body.to_chat()
    entry = call.find(body.model)
    writer = ResponseWriter(entry.id, body, request.top_logprobs is not None)
    events = _stream(call, request, entry, writer)
    if body.stream:
        return await streamed(events, call.record, lambda error: sse_event(writer.fail(error)))
    async with contextlib.aclosing(events):
        async for _ in events:
            pass
    return json_response(writer.response)


async def _stream(
    call: Call, request: ChatRequest, entry: ModelEntry, writer: "ResponseWriter"
) -> AsyncGenerator[bytes]:
    is_begun = False
    async with contextlib.aclosing(chat.stream(call.backend, request, entry)) as pieces:
        async for chunk in pieces:
            if not is_begun:
                is_begun = True
                yield b"".join(map(sse_event, writer.begin()))
            events = b"".join(map(sse_event, writer.feed(chunk)))
            if events:
                yield events
    call.record.usage(writer.usage)
    if writer.reasoning:
        async with call.pool.use(entry) as loaded:
            writer.num_reasoning = len(await tokenize(loaded, writer.reasoning))
    yield b"".join(map(sse_event, writer.end()))


async def input_tokens(call: Call, body: CountBody) -> Response:
    if body.truncation == "auto":
        raise unsupported("truncation", "the whole input is counted")
    request = body.to_chat()
    number = await chat.count(call.backend, request, call.find(body.model))
    return json_response({"object": "response.input_tokens", "input_tokens": number})


class ResponseWriter:
    """OpenAI's chunks as the events of Responses, and as the whole response.

    num_reasoning: tokens of reasoning, to be set before the end.
    """

    def __init__(self, model: str, body: ResponseBody, has_logprobs: bool) -> None:
        self.usage: Usage = {}
        self.num_reasoning = 0
        self._items: list[Json] = []  # messages, reasoning and calls
        self.response = _empty(model, body) | {"output": self._items}
        self._has_logprobs = has_logprobs
        self._number = 0  # of the next event
        self._call: int | None = None  # llama.cpp's index of the current call
        self._is_cut = False

    @property
    def reasoning(self) -> str:
        parts = [part for item in self._items if item["type"] == "reasoning" for part in item["content"]]
        return "".join(part["text"] for part in parts)

    def begin(self) -> Iterator[JsonObject]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def feed(self, chunk: Chunk) -> Iterator[JsonObject]:
        self.usage = chunk.get("usage") or self.usage
        if chunk.get("settle"):
            self.response["settle"] = chunk["settle"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._grow("reasoning", "reasoning_text", delta["reasoning_content"], None)
            if content := delta.get("content"):
                yield from self._grow("message", "output_text", content, choice.get("logprobs"))
            for note in delta.get("annotations") or ():
                yield from self._annotate(note)
            for call in delta.get("tool_calls") or ():
                yield from self._add_call(call)
            self._is_cut = self._is_cut or choice.get("finish_reason") == "length"

    def end(self) -> Iterator[JsonObject]:
        yield from self._close()
        self.response["status"] = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        self.response["usage"] = self._usage()
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def fail(self, error: ApiError) -> JsonObject:
        """Return the event of an answer that broke off."""
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        return self._event("response.failed", response=self.response)

    def _grow(self, kind: str, part_kind: str, text: str, logprobs: Logprobs | None) -> Iterator[JsonObject]:
        if not self._items or self._items[-1]["type"] != kind:
            yield from self._open(_item(kind))
            part: Json = {"type": part_kind, "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            yield self._event("response.content_part.added", **self._place(), part=part)
            self._items[-1]["content"].append(part)
        part = self._items[-1]["content"][0]
        part["text"] += text
        fields: JsonObject = {"delta": text}
        if kind == "message":
            tokens = (logprobs["content"] or []) if logprobs and self._has_logprobs else []
            part["logprobs"] += [_tidied(token) for token in tokens]
            fields["logprobs"] = [_tidied(token) for token in tokens]
        yield self._event(f"response.{part_kind}.delta", **self._place(), **fields)

    def _annotate(self, note: Json) -> Iterator[JsonObject]:
        annotations = self._items[-1]["content"][0]["annotations"]
        annotations.append({"type": note["type"], **note["url_citation"]})
        fields = {"annotation_index": len(annotations) - 1, "annotation": annotations[-1]}
        yield self._event("response.output_text.annotation.added", **self._place(), **fields)

    def _add_call(self, call: ToolCall) -> Iterator[JsonObject]:
        function, index = call.get("function", {}), call.get("index", 0)
        if self._call != index or self._items[-1]["type"] != "function_call":
            self._call = index
            call_id = call.get("id") or f"call_{secrets.token_hex(12)}"
            yield from self._open(_item("function_call") | {"call_id": call_id, "name": function.get("name", "")})
        if function.get("arguments"):
            self._items[-1]["arguments"] += function["arguments"]
            place = self._place(has_parts=False)
            yield self._event("response.function_call_arguments.delta", **place, delta=function["arguments"])

    def _open(self, item: Json) -> Iterator[JsonObject]:
        yield from self._close("completed")
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _close(self, status: str | None = None) -> Iterator[JsonObject]:
        """End the item that is open. status: None for the last, which may have been cut off."""
        if not self._items:
            return
        item = self._items[-1]
        item["status"] = status or ("incomplete" if self._is_cut else "completed")
        if item["type"] == "function_call":
            place = self._place(has_parts=False)
            call = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **place, **call)
        else:
            part = item["content"][0]
            logprobs = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            yield self._event(f"response.{part['type']}.done", **self._place(), text=part["text"], **logprobs)
            yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _place(self, has_parts: bool = True) -> JsonObject:
        place: JsonObject = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return place | ({"content_index": 0} if has_parts else {})

    def _event(self, kind: str, **fields: object) -> JsonObject:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _usage(self) -> JsonObject:
        prompt, completion = self.usage.get("prompt_tokens", 0), self.usage.get("completion_tokens", 0)
        details = self.usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens", 0) if details else 0
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": completion,
            "output_tokens_details": {"reasoning_tokens": min(self.num_reasoning, completion)},
            "total_tokens": prompt + completion,
        }


def _item(kind: str) -> Json:
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
    item: Json = {"type": kind, "id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"}
    if kind == "message":
        return item | {"role": "assistant", "content": []}
    return item | {"summary": [], "content": []} if kind == "reasoning" else item | {"arguments": ""}


def _tidied(token: Json) -> Json:
    """Return a token and its probability, without what llama.cpp adds."""
    tops = [{name: top[name] for name in TOKEN_FIELDS} for top in token.get("top_logprobs", ())]
    return {name: token[name] for name in TOKEN_FIELDS} | {"top_logprobs": tops}


def _empty(model: str, body: ResponseBody) -> JsonObject:
    """Return the response before anything was written: the request, as the server understands it."""
    text = body.text.model_dump(by_alias=True, exclude_none=True) if body.text else {}
    tools = [tool.model_dump(by_alias=True, exclude_none=True) for tool in body.functions()]
    reasoning = body.reasoning
    return {
        "id": f"resp_{secrets.token_hex(16)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": may_repeat(body.parallel_tool_calls, body.tool_choice),
        "previous_response_id": None,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": body.temperature,
        "text": {"format": {"type": "text"}, "verbosity": "medium"} | text,
        "tool_choice": body.tool_choice or "auto",
        "tools": [{"parameters": None, "strict": True} | tool for tool in tools],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }
