"""OpenAI's Responses API (https://platform.openai.com/docs/api-reference/responses), under /v1 and without it.

Nothing is stored: a conversation is sent whole, and a response cannot be asked for again.
"""

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from starlette.responses import Response

from settle.server.apis import Shape
from settle.server.apis.responses.body import CountBody, ResponseBody
from settle.server.errors import Refusal, in_words_of_openai, unsupported
from settle.server.gateway import Call, Endpoint, Streamed, begun, replied, told
from settle.server.models.model_catalogue import Entry
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.content_blocks import chunks, named, num_tokens


class Responses(Shape):
    """Responses, and the counting of their input's tokens."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/responses", self.endpoint(responses, ResponseBody)),
            ("/responses/input_tokens", self.endpoint(input_tokens, CountBody)),
        ]
        return [("POST", alias + path, endpoint) for alias in ("/v1", "") for path, endpoint in posts]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        return in_words_of_openai(refusal)

    def owns(self, path: str) -> bool:
        return path.removeprefix("/v1").startswith("/responses")


async def responses(call: Call) -> Response:
    body = await call.body(ResponseBody)
    call.record.user = body.user or body.safety_identifier or ""
    request = body.to_chat()
    entry = call.gateway.find(call, body.model)
    answer = Answer(entry.id, body, request.top_logprobs is not None)
    if body.stream:
        events = told(_stream(call, request, entry, answer), call.record, lambda refusal: named(answer.failed(refusal)))
        return Streamed(await begun(events), call.record)
    async with contextlib.aclosing(chunks(call.gateway, request, entry)) as pieces:
        async for chunk in pieces:
            for _ in answer.feed(chunk):
                pass
    await _count(call, entry, answer)
    for _ in answer.end():
        pass
    return replied(answer.response)


async def _stream(call: Call, request: ChatRequest, entry: Entry, answer: "Answer") -> AsyncGenerator[bytes]:
    is_begun = False
    async with contextlib.aclosing(chat.stream(call.gateway, request, entry)) as pieces:
        async for chunk in pieces:
            if not is_begun:
                is_begun = True
                yield b"".join(map(named, answer.begin()))
            events = b"".join(map(named, answer.feed(chunk)))
            if events:
                yield events
    await _count(call, entry, answer)
    yield b"".join(map(named, answer.end()))


async def _count(call: Call, entry: Entry, answer: "Answer") -> None:
    call.record.usage(answer.counted)
    answer.num_reasoning = await num_tokens(call.gateway, entry, answer.reasoning)


async def input_tokens(call: Call) -> Response:
    body = await call.body(CountBody)
    if body.truncation == "auto":
        raise unsupported("truncation", "what is counted is the whole input")
    request = body.to_chat()
    entry = call.gateway.find(call, body.model)
    number = await chat.count(call.gateway, request, entry)
    return replied({"object": "response.input_tokens", "input_tokens": number})


class Answer:
    """OpenAI's chunks as the events of Responses, and as the response that these amount to.

    counted: OpenAI's usage. num_reasoning: tokens of reasoning, to be set before the end.
    """

    def __init__(self, model: str, body: ResponseBody, has_logprobs: bool) -> None:
        self.counted: dict[str, Any] = {}
        self.num_reasoning = 0
        self.response = _empty(model, body)
        self._has_logprobs = has_logprobs
        self._number = 0  # of the next event
        self._items: list[dict[str, Any]] = self.response["output"]
        self._call: int | None = None  # llama.cpp's index of the call that comes
        self._is_cut = False

    @property
    def reasoning(self) -> str:
        """All that was thought."""
        parts = [part for item in self._items if item["type"] == "reasoning" for part in item["content"]]
        return "".join(part["text"] for part in parts)

    def begin(self) -> Iterator[dict[str, Any]]:
        yield self._event("response.created", response=self.response)
        yield self._event("response.in_progress", response=self.response)

    def feed(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        self.counted = chunk.get("usage") or self.counted
        if chunk.get("settle"):
            self.response["settle"] = chunk["settle"]
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("reasoning_content"):
                yield from self._grow("reasoning", "reasoning_text", delta["reasoning_content"], None)
            if delta.get("content"):
                yield from self._grow("message", "output_text", delta["content"], choice.get("logprobs"))
            for note in delta.get("annotations") or ():
                yield from self._annotated(note)
            for call in delta.get("tool_calls") or ():
                yield from self._called(call)
            self._is_cut = self._is_cut or choice.get("finish_reason") == "length"

    def end(self) -> Iterator[dict[str, Any]]:
        yield from self._close()
        self.response["status"] = "incomplete" if self._is_cut else "completed"
        if self._is_cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        self.response["usage"] = self._usage()
        yield self._event(f"response.{self.response['status']}", response=self.response)

    def failed(self, refusal: Refusal) -> dict[str, Any]:
        """The event of an answer that broke off."""
        code = "rate_limit_exceeded" if refusal.status == 429 else "server_error"
        self.response |= {"status": "failed", "error": {"code": code, "message": refusal.message}}
        return self._event("response.failed", response=self.response)

    def _grow(self, kind: str, part_kind: str, text: str, logprobs: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
        if not self._items or self._items[-1]["type"] != kind:
            yield from self._open(_item(kind))
            part: dict[str, Any] = {"type": part_kind, "text": ""}
            part |= {"annotations": [], "logprobs": []} if kind == "message" else {}
            yield self._event("response.content_part.added", **self._place(), part=part)
            self._items[-1]["content"].append(part)
        part = self._items[-1]["content"][0]
        part["text"] += text
        told = {"delta": text}
        if kind == "message":
            tokens = [_token(token) for token in (logprobs or {}).get("content") or ()] if self._has_logprobs else []
            part["logprobs"] += tokens
            told["logprobs"] = tokens
        yield self._event(f"response.{part_kind}.delta", **self._place(), **told)

    def _annotated(self, note: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A citation, in the last part of the message."""
        found = self._items[-1]["content"][0]["annotations"]
        found.append({"type": note["type"]} | note["url_citation"])
        place = {"annotation_index": len(found) - 1, "annotation": found[-1]}
        yield self._event("response.output_text.annotation.added", **self._place(), **place)

    def _called(self, call: dict[str, Any]) -> Iterator[dict[str, Any]]:
        function, index = call.get("function", {}), call.get("index", 0)
        if self._call != index or self._items[-1]["type"] != "function_call":
            self._call = index
            named = {"call_id": call.get("id") or f"call_{secrets.token_hex(12)}", "name": function.get("name", "")}
            yield from self._open(_item("function_call") | named)
        if function.get("arguments"):
            self._items[-1]["arguments"] += function["arguments"]
            place = self._place(has_parts=False)
            yield self._event("response.function_call_arguments.delta", **place, delta=function["arguments"])

    def _open(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._close("completed")
        self._items.append(item)
        yield self._event("response.output_item.added", output_index=len(self._items) - 1, item=item)

    def _close(self, status: str | None = None) -> Iterator[dict[str, Any]]:
        """Ends the item that is open. status: None for the last, which may have been cut off."""
        if not self._items:
            return
        item = self._items[-1]
        item["status"] = status or ("incomplete" if self._is_cut else "completed")
        if item["type"] == "function_call":
            done = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **self._place(has_parts=False), **done)
        else:
            part = item["content"][0]
            told = {"text": part["text"]} | ({"logprobs": part["logprobs"]} if item["type"] == "message" else {})
            yield self._event(f"response.{part['type']}.done", **self._place(), **told)
            yield self._event("response.content_part.done", **self._place(), part=part)
        yield self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _place(self, has_parts: bool = True) -> dict[str, Any]:
        place = {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}
        return place | ({"content_index": 0} if has_parts else {})

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1} | fields

    def _usage(self) -> dict[str, Any]:
        prompt, made = self.counted.get("prompt_tokens", 0), self.counted.get("completion_tokens", 0)
        cached = (self.counted.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": min(self.num_reasoning, made)},
            "total_tokens": prompt + made,
        }


def _item(kind: str) -> dict[str, Any]:
    prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
    item: dict[str, Any] = {"type": kind, "id": f"{prefix}_{secrets.token_hex(12)}", "status": "in_progress"}
    own: dict[str, dict[str, Any]] = {
        "message": {"role": "assistant", "content": []},
        "reasoning": {"summary": [], "content": []},
        "function_call": {"arguments": ""},
    }
    return item | own[kind]


def _token(token: dict[str, Any]) -> dict[str, Any]:
    """A token and its probability, without what llama.cpp adds."""
    told = {key: token[key] for key in ("token", "logprob", "bytes")}
    tops = [{key: top[key] for key in ("token", "logprob", "bytes")} for top in token.get("top_logprobs", ())]
    return told | {"top_logprobs": tops}


def _empty(model: str, body: ResponseBody) -> dict[str, Any]:
    """The response before anything came: what was asked for, as it is understood here."""
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
        "parallel_tool_calls": body.parallel_tool_calls is not False,
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
