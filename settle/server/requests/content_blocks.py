"""For the APIs whose turns are made of blocks or items instead of one text: Anthropic's and OpenAI's Responses."""

import contextlib
import json
from collections.abc import AsyncGenerator, Collection, Mapping

from settle.server.models.backend import Backend
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.engine import tokenize
from settle.server.wire_types import ChatMessage, Chunk


def merge_turns(messages: list[ChatMessage], roles: Collection[str]) -> list[ChatMessage]:
    """Neighbouring messages of the same role as one. roles: those to merge."""
    merged: list[ChatMessage] = []
    for message in messages:
        if merged and message["role"] in roles and merged[-1]["role"] == message["role"]:
            merged[-1] = _merge(merged[-1], message)
        else:
            merged.append(message)
    return merged


async def chunks(backend: Backend, request: ChatRequest, entry: ModelEntry) -> AsyncGenerator[Chunk]:
    """The chunks of an answer that is not streamed: a single one, unless that would differ. It does where llama.cpp
    continues a message, whose beginning it repeats unless it streams, and for probabilities, which belong to the piece
    that they came with. Raises ApiError."""
    if request.messages[-1]["role"] == "assistant" or request.top_logprobs is not None:
        async with contextlib.aclosing(chat.stream(backend, request, entry)) as pieces:
            async for chunk in pieces:
                yield chunk
        return
    answer = await chat.whole(backend, request, entry)
    choice = answer["choices"][0]
    message = choice.pop("message")
    for index, call in enumerate(message.get("tool_calls") or ()):
        call["index"] = index
    answer["choices"] = [choice | {"delta": message}]
    yield answer


async def num_tokens(pool: ModelPool, entry: ModelEntry, text: str) -> int:
    """Raises ApiError."""
    if not text:
        return 0
    async with pool.use(entry) as loaded:
        return len(await tokenize(loaded, text))


def sse_event(event: Mapping[str, object]) -> bytes:
    """A server-sent event that is named by its `type`."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _merge(one: ChatMessage, two: ChatMessage) -> ChatMessage:
    merged = one | {"content": "\n".join(message["content"] for message in (one, two) if message["content"])}
    reasoning = [message["reasoning_content"] for message in (one, two) if message.get("reasoning_content")]
    calls = [*one.get("tool_calls", ()), *two.get("tool_calls", ())]
    if reasoning:
        merged["reasoning_content"] = "\n".join(reasoning)
    if calls:
        merged["tool_calls"] = calls
    return merged
