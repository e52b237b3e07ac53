"""A text to go on with, or a gap in one to fill, without turns and without a template."""

import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from settle.server.errors import require_no_documents
from settle.server.models.model_catalogue import Entry
from settle.server.models.model_pool import Loaded
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest, counts
from settle.server.requests.fill_in_middle import gap_prompt
from settle.server.requests.grammar import json_grammar, own_grammar
from settle.server.requests.upstream import ask, events, open_stream

if TYPE_CHECKING:
    from settle.server.gateway import Gateway

PATH = "/completion"


@dataclass(frozen=True)
class TextRequest:
    """prompt: a text, or a list of token ids and texts. suffix: what comes after the gap; None is no gap to fill. Then
    `before` is what comes before it, and `prompt` how its filling begins; extra: other files, for models of code.
    schema: {} for any JSON object. schema_name: what the field is called that it came in. more: further fields in
    llama.cpp's words."""

    prompt: str | list[Any]
    suffix: str | None = None
    before: str = ""
    extra: list[dict[str, str]] = field(default_factory=list)
    schema: dict[str, Any] | None = None
    schema_name: str = "json_schema"
    grammar: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    top_logprobs: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


async def stream(gateway: "Gateway", request: TextRequest, entry: Entry) -> AsyncIterator[dict[str, Any]]:
    """llama.cpp's events: `content` of each, the last has `stop` set. Closing it stops the model. Raises Refusal."""
    async with gateway.keeper.use(entry) as loaded:
        body = await prepared(gateway, request, entry, loaded)
        async with await open_stream(gateway.keeper.session, loaded, PATH, body | {"stream": True}) as response:
            async for event in events(response):
                yield _told(event, request, entry)


async def whole(gateway: "Gateway", request: TextRequest, entry: Entry) -> dict[str, Any]:
    """llama.cpp's answer. Raises Refusal."""
    async with gateway.keeper.use(entry) as loaded:
        body = await prepared(gateway, request, entry, loaded)
        return _told(await ask(gateway.keeper.session, loaded, PATH, body), request, entry)


async def chunks(gateway: "Gateway", request: TextRequest, entry: Entry) -> AsyncIterator[dict[str, Any]]:
    """The answer as OpenAI's chunks of a chat; the last one has usage and timings. Raises Refusal."""
    head: dict[str, Any] = {"id": f"cmpl-{secrets.token_hex(16)}", "object": "chat.completion.chunk"}
    head |= {"created": int(time.time()), "model": entry.id}
    async for event in stream(gateway, request, entry):
        if event["content"]:
            found = event.get("completion_probabilities")
            choice = {"index": 0, "delta": {"content": event["content"]}, "finish_reason": None}
            yield head | {"choices": [choice | {"logprobs": {"content": found} if found else None}]}
        if event["stop"]:
            reason = "length" if event["stop_type"] == "limit" else "stop"
            yield head | {"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}]}
            yield head | {"choices": []} | counts(event)


async def prepared(gateway: "Gateway", request: TextRequest, entry: Entry, loaded: Loaded) -> dict[str, Any]:
    """What llama.cpp is asked. Raises Refusal for what cannot be done there."""
    require_no_documents(entry, "it goes on with no text")
    asked = ChatRequest(entry.id, [], adapters=request.adapters, sampling=request.sampling)
    chat.check_biases(asked, loaded)
    chat.check_probabilities(request.top_logprobs, loaded)
    body = request.sampling | request.more | {"lora": loaded.lora(chat.scales(gateway, asked, entry, loaded))}
    body |= {"n_predict": request.max_tokens} if request.max_tokens is not None else {}
    body |= {"stop": request.stop} if request.stop else {}
    body |= {"n_probs": max(request.top_logprobs, 1)} if request.top_logprobs is not None else {}
    if request.schema is not None:
        body["grammar"] = await json_grammar(request.schema, loaded, request.schema_name)
    elif request.grammar:
        body["grammar"] = await own_grammar(request.grammar, loaded)
    prompt: str | list[Any] = request.prompt
    if request.suffix is not None:
        begun = request.prompt if isinstance(request.prompt, str) else ""
        prompt = await gap_prompt(gateway.keeper.session, loaded, request.before, request.suffix, begun, request.extra)
    return body | {"prompt": prompt}


def _told(event: dict[str, Any], request: TextRequest, entry: Entry) -> dict[str, Any]:
    """An event under our name of the model; llama.cpp gives a token where none was asked for."""
    if "model" in event:
        event["model"] = entry.id
    if request.max_tokens == 0:
        event |= {"content": "", "tokens": []}
        event |= {"tokens_predicted": 0} if "tokens_predicted" in event else {}
    if request.top_logprobs == 0:
        for token in event.get("completion_probabilities", ()):
            token["top_logprobs"] = []
    return event
