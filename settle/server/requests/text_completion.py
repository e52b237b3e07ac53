"""Completing a text, or filling a gap in one, without a chat template."""

import secrets
import time
from collections.abc import AsyncGenerator

from settle.infer.child_process import Json
from settle.server.grammars import AnswerCheck, json_grammar, own_grammar
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.requests import chat
from settle.server.requests.chat import Backend
from settle.server.requests.chat_plan import delta_choice, timings_of, usage_of
from settle.server.requests.engine import (
    TEXT_PATH,
    GrammarWatch,
    ask,
    open_stream,
    read_events,
    require_possible,
    tokenize,
)
from settle.wire.errors import ApiError
from settle.wire.types import Choice, Chunk, Logprobs, TextEvent, TextRequest

FILE_SEPARATOR = "\n\n--- snippet ---\n\n"  # for models that have no token for it


async def stream(backend: Backend, request: TextRequest, entry: ModelEntry) -> AsyncGenerator[TextEvent]:
    """llama.cpp's events: `content` of each, the last has `stop` set. Closing it stops the model. Raises ApiError."""
    async with backend.pool.use(entry) as loaded:
        body = await prepare(backend.catalogue, request, entry, loaded)
        watch, check = GrammarWatch(loaded, body), AnswerCheck(loaded, request, body)
        async with await open_stream(loaded, TEXT_PATH, body | {"stream": True}) as response:
            async for event in read_events(response, watch):
                check.add(event["content"])
                if event["stop"]:
                    await check.finish(event["stop_type"] == "eos")
                yield _tidied(event, request, entry)


async def whole(backend: Backend, request: TextRequest, entry: ModelEntry) -> TextEvent:
    """llama.cpp's answer. Raises ApiError."""
    async with backend.pool.use(entry) as loaded:
        body = await prepare(backend.catalogue, request, entry, loaded)
        event: TextEvent = await ask(loaded, TEXT_PATH, body)
        check = AnswerCheck(loaded, request, body)
        check.add(event["content"])
        await check.finish(event["stop_type"] == "eos")
        return _tidied(event, request, entry)


async def chunks(backend: Backend, request: TextRequest, entry: ModelEntry) -> AsyncGenerator[Chunk]:
    """Yield the answer as OpenAI's chunks of a chat; the last one has usage and timings. Raises ApiError."""
    head: Chunk = {"id": f"cmpl-{secrets.token_hex(16)}", "object": "chat.completion.chunk"}
    head |= {"created": int(time.time()), "model": entry.id}
    async for event in stream(backend, request, entry):
        if event["content"]:
            tokens = event.get("completion_probabilities")
            logprobs: Logprobs | None = {"content": tokens} if tokens else None
            choice: Choice = {"index": 0, "delta": {"content": event["content"]}, "finish_reason": None}
            yield head | {"choices": [choice | {"logprobs": logprobs}]}
        if event["stop"]:
            reason = "length" if event["stop_type"] == "limit" else "stop"
            yield head | {"choices": [delta_choice({}, reason)]}
            yield head | {"choices": [], "usage": usage_of(event), "timings": timings_of(event)}


async def prepare(catalogue: ModelCatalogue, request: TextRequest, entry: ModelEntry, loaded: LoadedModel) -> Json:
    """Return the body for llama.cpp. Raises ApiError for what the model does not support."""
    entry.require_no_documents("it does not complete texts")
    chat.check_sampling(request, loaded)
    body = chat.drawn_body(catalogue, request, entry, loaded) | request.more
    body |= {"n_probs": max(request.top_logprobs, 1)} if request.top_logprobs is not None else {}
    if request.schema is not None:
        body["grammar"] = await json_grammar(request.schema, loaded, request.schema_name)
    elif request.grammar:
        body["grammar"] = await own_grammar(request.grammar, loaded)
    require_possible(request.prompt if isinstance(request.prompt, list) else [request.prompt], loaded)
    prompt = request.prompt if request.suffix is None else await _infill_prompt(loaded, request, request.suffix)
    return body | {"prompt": prompt}


def _tidied(event: TextEvent, request: TextRequest, entry: ModelEntry) -> TextEvent:
    """Return an event under our name of the model. llama.cpp gives one token even where none was wanted."""
    if "model" in event:
        event["model"] = entry.id
    if request.max_tokens == 0:
        event |= {"content": "", "tokens": []}
        if "tokens_predicted" in event:
            event["tokens_predicted"] = 0
    if request.top_logprobs == 0:
        for token in event.get("completion_probabilities", ()):
            token["top_logprobs"] = []
    return event


async def _infill_prompt(loaded: LoadedModel, request: TextRequest, after: str) -> list[int]:
    """Return the tokens of the prompt that code models were trained on for filling a gap. Raises ApiError.

    after: the text behind it. llama.cpp's own /infill silently drops what does not fit a batch: the beginning of the
    text before the gap, the end of the text after it, and other files altogether."""
    fim = loaded.facts.fim
    if not fim:
        message = "the model has no fill-in-the-middle tokens, so it cannot use a suffix"
        raise ApiError(400, message, "not_supported", "suffix")

    async def tokens(text: str) -> list[int]:  # code may spell a special token
        return await tokenize(loaded, text, add_special=False, parse_special=False) if text else []

    prompt = (await tokenize(loaded, "", add_special=True))[:1]  # the token that texts begin with, if there is one
    if request.extra and "rep" in fim:
        prompt += [fim["rep"], *await tokens("project\n")]
    for name, text in request.extra:
        prompt += [fim["sep"], *await tokens(f"{name or 'file'}\n")] if "sep" in fim else await tokens(FILE_SEPARATOR)
        prompt += await tokens(text)
    if request.extra and "sep" in fim:
        prompt += [fim["sep"], *await tokens("this file\n")]
    prompt += [fim["pre"], *await tokens(request.before), fim["suf"], *await tokens(after), fim["mid"]]
    return prompt + (await tokens(request.prompt) if isinstance(request.prompt, str) else [])
