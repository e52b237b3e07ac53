"""How a chat request is put to a child: natively, or as a text whose calls are read here.

The answer is read as OpenAI's chunks, or its chat.completion.
"""

import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from settle.infer.child_process import Json
from settle.server.grammars import AnswerCheck
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_entry import ModelEntry
from settle.server.requests.engine import CHAT_PATH, TEXT_PATH, GrammarWatch, ask, open_stream, read_events
from settle.wire.types import ChatRequest, Choice, Chunk, Delta, TextEvent, Timings, Usage


class CallReading(Protocol):
    """A reader that separates text from calls while an answer is streamed, as OpenAI's deltas.

    is_over: a call has come again, and nothing else is to come: small models repeat themselves without end."""

    num_calls: int
    is_over: bool

    async def feed(self, text: str) -> list[Delta]: ...

    async def end(self) -> list[Delta]: ...


@dataclass
class ChatPlan:
    """A request put to llama.cpp's own chat endpoint: the template supports everything that it needs.

    trimmed: messages and tokens that were dropped from the prompt. new_reader: of calls that a choice writes in another
    form than its template's, which llama.cpp leaves in the text; None where there are no tools."""

    request: ChatRequest
    entry: ModelEntry
    body: Json
    trimmed: Mapping[str, int] | None
    new_reader: Callable[[], CallReading] | None = None

    @property
    def is_passed_on(self) -> bool:
        """Whether llama.cpp's chunks are the answer as they come."""
        return not self.trimmed and self.request.top_logprobs is None and self.new_reader is None

    async def open(self, loaded: LoadedModel) -> aiohttp.ClientResponse:
        return await open_stream(
            loaded, CHAT_PATH, self.body | {"stream": True, "stream_options": {"include_usage": True}}
        )

    async def chunks(self, loaded: LoadedModel) -> AsyncGenerator[Chunk]:
        readers: dict[int, CallReading] = {}
        watch, check = GrammarWatch(loaded, self.body), AnswerCheck(loaded, self.request, self.body)
        async with await self.open(loaded) as response:
            async for chunk in read_events(response, watch):
                word = chunk.pop("__verbose", {}).get("stopping_word")
                for choice in chunk["choices"]:
                    check.add(choice["delta"].get("content"), choice["index"])
                    if choice["finish_reason"]:
                        await check.finish(choice["finish_reason"] == "stop", choice["index"])
                    self._tidy(choice, choice["delta"], word)
                chunk["model"] = self.entry.id
                if self.new_reader is None or not chunk["choices"]:
                    yield self._with_trimmed(chunk)
                    continue
                for choice in chunk["choices"]:
                    reader = readers.setdefault(choice["index"], self.new_reader())
                    for part in await _read_calls(choice, reader):
                        yield chunk | {"choices": [part]}

    async def whole(self, loaded: LoadedModel) -> Chunk:
        answer = await ask(loaded, CHAT_PATH, self.body)
        word, check = answer.pop("__verbose", {}).get("stopping_word"), AnswerCheck(loaded, self.request, self.body)
        for choice in answer["choices"]:
            check.add(choice["message"].get("content"), choice["index"])
            await check.finish(choice["finish_reason"] == "stop", choice["index"])
            self._tidy(choice, choice["message"], word)
            if self.new_reader and choice["message"].get("content"):
                await _read_message(choice, self.new_reader())
        answer["model"] = self.entry.id
        return self._with_trimmed(answer)

    def _with_trimmed(self, answer: Chunk) -> Chunk:
        if self.trimmed and answer.get("usage"):
            answer["settle"] = {"trimmed": self.trimmed}
        return answer

    def _tidy(self, choice: Choice, message: Delta, word: str | None) -> None:
        """Give reasoning under both of its names, no probabilities that were not wanted, and the stop string."""
        if message.get("reasoning_content"):
            message["reasoning"] = message["reasoning_content"]
        logprobs = choice.get("logprobs")
        # llama.cpp gives no probabilities at all where only the drawn token's are wanted: so we ask it for one
        if self.request.top_logprobs == 0 and logprobs:
            for token in logprobs["content"]:
                token["top_logprobs"] = []
        self._name_stop(choice, word)

    def _name_stop(self, choice: Choice, word: str | None) -> None:
        """Only stop strings of the request: a template has its own."""
        if self.request.wants_stop and word and word in self.request.stop and choice["finish_reason"]:
            choice["stopped_by"] = word


class TextPlan(ChatPlan):
    """A request with tools that is rendered, constrained and read here.

    new_reader: of an answer. limited_body: of a second try where a call that must come was cut off, for its first ran
    on without end."""

    def __init__(
        self,
        request: ChatRequest,
        entry: ModelEntry,
        body: Json,
        trimmed: Mapping[str, int] | None,
        new_reader: Callable[[], CallReading],
        limited_body: Callable[[], Awaitable[Json]] | None = None,
    ) -> None:
        super().__init__(request, entry, body, trimmed, new_reader)
        self._reader, self._limited_body = new_reader, limited_body

    async def chunks(self, loaded: LoadedModel) -> AsyncGenerator[Chunk]:
        head = chunk_head(self.entry)
        first: Delta | None = {"role": "assistant", "content": None}
        reader = self._reader()
        event: TextEvent = {}
        async with contextlib.aclosing(self._read(loaded, self.body, reader)) as pieces:
            async for event, deltas in pieces:
                if first is not None:  # not before: a request that fails must not have begun
                    chunk: Chunk = head | {"choices": [delta_choice(first)]}
                    has_timings = self.request.timings and "timings" in event
                    yield chunk | {"timings": event["timings"]} if has_timings else chunk
                    first = None
                for delta in deltas:
                    yield head | {"choices": [delta_choice(delta)]}
        rest: list[Delta] = []
        if self._limited_body and event.get("stop_type") == "limit" and not reader.num_calls:
            limited, reader = await self._limited_body(), self._reader()
            async with contextlib.aclosing(self._read(loaded, limited, reader)) as pieces:
                async for again, deltas in pieces:
                    event = again
                    rest += deltas
        for delta in [*rest, *await reader.end()]:
            yield head | {"choices": [delta_choice(delta)]}
        is_cut = event.get("stop_type") == "limit" and not reader.is_over
        last = delta_choice({}, "length" if is_cut else "tool_calls" if reader.num_calls else "stop")
        self._name_stop(last, event.get("stopping_word"))
        yield head | {"choices": [last]}
        yield self._with_trimmed(head | {"choices": [], "usage": usage_of(event), "timings": timings_of(event)})

    async def whole(self, loaded: LoadedModel) -> Chunk:
        return await collect(self.chunks(loaded))

    async def _read(
        self, loaded: LoadedModel, body: Json, reader: CallReading
    ) -> AsyncGenerator[tuple[TextEvent, list[Delta]]]:
        """Yield the engine's events with what each adds, until the answer ends, or repeats a call. Raises ApiError."""
        event: TextEvent = {}
        watch, check = GrammarWatch(loaded, body), AnswerCheck(loaded, self.request, body)
        async with await open_stream(loaded, TEXT_PATH, body | {"stream": True}) as response:
            async for event in read_events(response, watch):
                check.add(event["content"])
                if event["stop"]:
                    await check.finish(event["stop_type"] == "eos")
                yield event, await reader.feed(event["content"])
                if reader.is_over:
                    return  # which stops the engine
        if not event.get("stop"):
            raise ConnectionError("the engine ended a stream within an answer")


async def collect(chunks: AsyncGenerator[Chunk]) -> Chunk:
    """Return the whole answer that the chunks of one choice add up to. Raises what they raise."""
    whole, choice = Chunk(), Choice()
    message: Delta = {"role": "assistant", "content": None}
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            whole |= chunk
            for choice in chunk["choices"]:
                _add(message, [choice.pop("delta")])
    answer: Chunk = {"object": "chat.completion", "choices": [{"index": 0, "message": message} | choice]}
    return whole | answer


def chunk_head(entry: ModelEntry) -> Chunk:
    return {
        "id": f"chatcmpl-{secrets.token_hex(16)}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": entry.id,
        "system_fingerprint": "settle",
    }


def delta_choice(delta: Delta, reason: str | None = None) -> Choice:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def usage_of(event: TextEvent) -> Usage:
    """OpenAI's usage, from the last event of a text."""
    prompt, completion = event["tokens_evaluated"], event["tokens_predicted"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": timings_of(event).get("cache_n", 0)},
    }


def timings_of(event: TextEvent) -> Timings:
    return event.get("timings", {})


async def _read_calls(choice: Choice, reader: CallReading) -> list[Choice]:
    """Return a chunk's choice as one or more, with the calls in its text; none while the text is still held back."""
    delta, reason = choice["delta"], choice.get("finish_reason")
    for call in delta.get("tool_calls") or ():
        reader.num_calls = max(reader.num_calls, call.get("index", 0) + 1)
    content = delta.pop("content", None)
    deltas = await reader.feed(content) if content else []
    if reason:
        deltas += await reader.end()
        reason = "tool_calls" if reason == "stop" and reader.num_calls else reason
    if not deltas and not delta and not reason and not choice.get("logprobs"):
        return []
    if "role" in delta:
        delta["content"] = None
    first, *others = deltas or [{}]
    parts = [choice | {"delta": delta | first, "finish_reason": None}]
    parts += [delta_choice(other) | {"index": choice["index"]} for other in others]
    parts[-1]["finish_reason"] = reason
    return parts


async def _read_message(choice: Choice, reader: CallReading) -> None:
    """Move the calls in the text of a whole answer to where calls are."""
    message = choice["message"]
    content = message["content"] or ""
    message["content"] = None
    reader.num_calls = len(message.get("tool_calls") or ())
    _add(message, [*await reader.feed(content), *await reader.end()])
    if message.get("tool_calls") and choice["finish_reason"] == "stop":
        choice["finish_reason"] = "tool_calls"


def _add(message: Delta, deltas: Sequence[Delta]) -> None:
    for delta in deltas:
        if content := delta.get("content"):
            message["content"] = (message["content"] or "") + content
        if "annotations" in delta:
            message["annotations"] = delta["annotations"]
        for call in delta.get("tool_calls", ()):
            del call["index"]
            message.setdefault("tool_calls", []).append(call)
