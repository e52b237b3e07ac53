"""How a chat request is put to a child, and how its answer is read: as OpenAI's chunks, or its chat.completion."""

import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from settle.server.models.model_catalogue import Entry
from settle.server.models.model_pool import Loaded
from settle.server.requests import tools as calling
from settle.server.requests.upstream import ask, events, open_stream


@dataclass(frozen=True)
class ChatRequest:
    """messages: see `check_messages`. tools, choice: see `tools.choose`. schema: of the answer, {} for any JSON object.
    sampling: in llama.cpp's words. arguments: of the template. adapters: more LoRAs by name, and their scales.
    trim: whether the oldest turns may be dropped when the prompt is too long, which the answer tells.
    tells_stop: whether the choice that a stop string ended says which, as `stopped_by`. thinking_budget: tokens of
    reasoning. is_usual_effort: the effort is what the API takes when none is given, so a model without any is no loss.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    choice: calling.Choice = "none"
    is_parallel: bool | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    n: int = 1
    top_logprobs: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    trim: bool = False
    timings: bool = False
    tells_stop: bool = False
    thinking_budget: int | None = None
    is_usual_effort: bool = False


class Plan:
    """How a request is put to a child whose template knows all that is asked for: llama.cpp's own chat endpoint."""

    path = "/v1/chat/completions"

    def __init__(
        self, request: ChatRequest, entry: Entry, body: dict[str, Any], trimmed: dict[str, int] | None
    ) -> None:
        self.request, self.entry, self.body, self.trimmed = request, entry, body, trimmed

    async def open(self, session: aiohttp.ClientSession, loaded: Loaded) -> aiohttp.ClientResponse:
        """The raw stream."""
        body = self.body | {"stream": True, "stream_options": {"include_usage": True}}
        return await open_stream(session, loaded, self.path, body)

    async def chunks(self, session: aiohttp.ClientSession, loaded: Loaded) -> AsyncGenerator[dict[str, Any]]:
        async with await self.open(session, loaded) as response:
            async for chunk in events(response):
                word = chunk.pop("__verbose", {}).get("stopping_word")
                for choice in chunk["choices"]:
                    _both_reasonings(choice["delta"])
                    self._tidy_logprobs(choice)
                    self._tell_stop(choice, word)
                yield self._told(chunk | {"model": self.entry.id})

    async def whole(self, session: aiohttp.ClientSession, loaded: Loaded) -> dict[str, Any]:
        answer = await ask(session, loaded, self.path, self.body) | {"model": self.entry.id}
        word = answer.pop("__verbose", {}).get("stopping_word")
        for choice in answer["choices"]:
            _both_reasonings(choice["message"])
            self._tidy_logprobs(choice)
            self._tell_stop(choice, word)
        return self._told(answer)

    def _told(self, answer: dict[str, Any]) -> dict[str, Any]:
        if self.trimmed and answer.get("usage"):
            answer["settle"] = {"trimmed": self.trimmed}
        return answer

    def _tidy_logprobs(self, choice: dict[str, Any]) -> None:
        """llama.cpp gives no probabilities at all where none but the drawn token's are asked for: so we ask for one."""
        if self.request.top_logprobs == 0 and choice.get("logprobs"):
            for token in choice["logprobs"]["content"]:
                token["top_logprobs"] = []

    def _tell_stop(self, choice: dict[str, Any], word: str | None) -> None:
        """A template has stop strings of its own, which are nobody's business."""
        if self.request.tells_stop and word in self.request.stop and choice["finish_reason"]:
            choice["stopped_by"] = word


class HelpedPlan(Plan):
    """A request with tools, to a child whose template knows none: rendered, constrained and parsed by us."""

    path = "/completion"

    async def open(self, session: aiohttp.ClientSession, loaded: Loaded) -> aiohttp.ClientResponse:
        return await open_stream(session, loaded, self.path, self.body | {"stream": True})

    async def chunks(self, session: aiohttp.ClientSession, loaded: Loaded) -> AsyncGenerator[dict[str, Any]]:
        head = self._head("chat.completion.chunk")
        first: dict[str, Any] | None = {"role": "assistant", "content": None}
        reader = calling.CallReader()
        async with await self.open(session, loaded) as response:
            async for event in events(response):
                if first is not None:  # not before: what is refused must not have begun
                    yield head | {"choices": [_choice(first)]} | _timings(self.request, event)
                    first = None
                for delta in reader.feed(event["content"]):
                    yield head | {"choices": [_choice(delta)]}
                if event["stop"]:
                    for delta in reader.end():
                        yield head | {"choices": [_choice(delta)]}
                    last = _choice({}, _reason(event, reader))
                    self._tell_stop(last, event.get("stopping_word"))
                    yield head | {"choices": [last]}
                    yield self._told(head | {"choices": []} | counts(event))

    async def whole(self, session: aiohttp.ClientSession, loaded: Loaded) -> dict[str, Any]:
        event = await ask(session, loaded, self.path, self.body)
        reader = calling.CallReader()
        message: dict[str, Any] = {"role": "assistant", "content": None}
        for delta in [*reader.feed(event["content"]), *reader.end()]:
            if "content" in delta:
                message["content"] = (message["content"] or "") + delta["content"]
            else:
                calls = [{k: v for k, v in call.items() if k != "index"} for call in delta["tool_calls"]]
                message["tool_calls"] = message.get("tool_calls", []) + calls
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _reason(event, reader)}
        self._tell_stop(choice, event.get("stopping_word"))
        return self._told(self._head("chat.completion") | {"choices": [choice]} | counts(event))

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{secrets.token_hex(16)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.entry.id,
            "system_fingerprint": "settle",
        }


def _both_reasonings(told: dict[str, Any]) -> None:
    """Clients read the one name or the other."""
    if told.get("reasoning_content"):
        told["reasoning"] = told["reasoning_content"]


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _timings(request: ChatRequest, event: dict[str, Any]) -> dict[str, Any]:
    return {"timings": event["timings"]} if request.timings and "timings" in event else {}


def _reason(event: dict[str, Any], reader: calling.CallReader) -> str:
    if event["stop_type"] == "limit":
        return "length"
    return "tool_calls" if reader.num_calls else "stop"


def counts(event: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's usage, and timings, of the last event of a text."""
    prompt, made = event["tokens_evaluated"], event["tokens_predicted"]
    cached = event.get("timings", {}).get("cache_n", 0)
    usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
    return {"usage": usage | {"prompt_tokens_details": {"cached_tokens": cached}}, "timings": event.get("timings", {})}
