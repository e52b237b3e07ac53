"""What shapes share whose turns are made of blocks or items rather than of one text: Anthropic's and Responses."""

import contextlib
import json
from collections.abc import AsyncGenerator, Collection
from typing import Any

from settle.server.gateway import Gateway
from settle.server.models.model_catalogue import Entry
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.upstream import ask


def joined(messages: list[dict[str, Any]], roles: Collection[str]) -> list[dict[str, Any]]:
    """Messages as `check_messages` leaves them, neighbours of the same role as one. roles: of which to do so."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if told and message["role"] in roles and told[-1]["role"] == message["role"]:
            told[-1] = _both(told[-1], message)
        else:
            told.append(message)
    return told


async def chunks(gateway: Gateway, request: ChatRequest, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
    """The chunks of an answer that is not streamed: one with everything in it where that is the same. It is not where
    llama.cpp goes on with a message, whose beginning it repeats unless it streams, nor for probabilities, which belong
    to the piece that they came with. Raises Refusal."""
    if request.messages[-1]["role"] == "assistant" or request.top_logprobs is not None:
        async with contextlib.aclosing(chat.stream(gateway, request, entry)) as pieces:
            async for chunk in pieces:
                yield chunk
        return
    answer = await chat.whole(gateway, request, entry)
    choice = answer["choices"][0]
    message = choice.pop("message")
    calls = [call | {"index": index} for index, call in enumerate(message.get("tool_calls") or ())]
    yield answer | {"choices": [choice | {"delta": message | {"tool_calls": calls}}]}


async def num_tokens(gateway: Gateway, entry: Entry, text: str) -> int:
    """Tokens of a text. Raises Refusal."""
    if not text:
        return 0
    async with gateway.keeper.use(entry) as loaded:
        return len((await ask(gateway.keeper.session, loaded, "/tokenize", {"content": text}))["tokens"])


def named(event: dict[str, Any]) -> bytes:
    """A server-sent event that is called what its `type` says."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def _both(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    both = one | {"content": "\n".join(message["content"] for message in (one, two) if message["content"])}
    reasoning = [message["reasoning_content"] for message in (one, two) if message.get("reasoning_content")]
    calls = [*one.get("tool_calls", ()), *two.get("tool_calls", ())]
    both |= {"reasoning_content": "\n".join(reasoning)} if reasoning else {}
    return both | ({"tool_calls": calls} if calls else {})
