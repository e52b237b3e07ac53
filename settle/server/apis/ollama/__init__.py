"""Ollama's API (https://docs.ollama.com/api): lines of JSON, models with tags, and changes of the store."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Literal

from starlette.responses import PlainTextResponse, Response

from settle.base.version import __version__
from settle.infer.child_process import Json
from settle.server.apis import Api
from settle.server.apis.ollama import models, store
from settle.server.apis.ollama.answer import Answer, error_line, streamed_lines
from settle.server.apis.ollama.body import (
    AnswerBody,
    ChatBody,
    EmbedBody,
    GenerateBody,
    LoadOptions,
    OldEmbedBody,
    check_context,
    keep_alive_seconds,
)
from settle.server.errors import ApiError, unsupported
from settle.server.gateway import Call, Endpoint
from settle.server.http_responses import json_response
from settle.server.models.model_entry import ModelEntry, make_file
from settle.server.models.model_facts import facts
from settle.server.requests import chat, text_completion
from settle.server.requests.embeddings import embed_texts, truncate_texts
from settle.server.wire_types import Chunk, JsonObject

VERSION = "0.32.7"  # of the Ollama whose API this is: clients turn off features that an older one lacks


class ShowBody(store.OneModel):
    """What /api/show takes; clients of before 2024 send `name`."""

    verbose: bool | None = None


class Ollama(Api):
    """Chats, texts, vectors, and the store."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        return [
            ("GET", "/", self.endpoint(root)),
            ("GET", "/api/version", self.endpoint(version)),
            ("GET", "/api/tags", self.endpoint(tags)),
            ("GET", "/api/ps", self.endpoint(ps)),
            ("POST", "/api/show", self.endpoint(show)),
            ("POST", "/api/chat", self.endpoint(chat_lines)),
            ("POST", "/api/generate", self.endpoint(generate)),
            ("POST", "/api/embed", self.endpoint(embed)),
            ("POST", "/api/embeddings", self.endpoint(embeddings)),
            ("POST", "/api/pull", self.endpoint(store.pull)),
            ("POST", "/api/copy", self.endpoint(store.copy)),
            ("DELETE", "/api/delete", self.endpoint(store.delete)),
            ("POST", "/api/create", self.endpoint(store.create)),
            ("POST", "/api/push", self.endpoint(store.push)),
            ("GET", "/api/blobs/{digest}", self.endpoint(store.blobs)),
            ("POST", "/api/blobs/{digest}", self.endpoint(store.blobs)),
        ]

    def error(self, error: ApiError) -> JsonObject:
        return error_line(error)

    def owns(self, path: str) -> bool:
        return path == "/" or (path.startswith("/api/") and not path.startswith(("/api/v0/", "/api/v1/")))


async def root(call: Call) -> Response:
    return PlainTextResponse("Ollama is running")


async def version(call: Call) -> Response:
    return json_response({"version": VERSION, "settle": __version__})


async def tags(call: Call) -> Response:
    return json_response({"models": await asyncio.to_thread(models.listed, call.backend.catalogue)})


async def ps(call: Call) -> Response:
    return json_response({"models": await asyncio.to_thread(models.running, call.pool)})


async def show(call: Call, body: ShowBody) -> Response:
    entry = call.find(body.wanted)
    await asyncio.to_thread(make_file, entry)
    return json_response(await asyncio.to_thread(models.shown, call.pool, entry, bool(body.verbose)))


async def chat_lines(call: Call, body: ChatBody) -> Response:
    entry = call.find(body.model)
    if not body.messages:
        return await _only_load(call, body, entry)
    answer = await _begin(call, body, entry)
    request = body.to_chat(entry, answer.context)
    return await _respond(call, body, answer, chat.stream(call.backend, request, entry))


async def generate(call: Call, body: GenerateBody) -> Response:
    entry = call.find(body.model)
    if not body.prompt and not body.suffix:
        return await _only_load(call, body, entry)
    answer = await _begin(call, body, entry)
    if await asyncio.to_thread(body.is_text, entry):
        chunks = text_completion.chunks(call.backend, body.to_text(entry, answer.context), entry)
    else:
        chunks = chat.stream(call.backend, body.to_chat(entry, answer.context), entry)
    return await _respond(call, body, answer, chunks)


async def _begin(call: Call, body: AnswerBody, entry: ModelEntry) -> Answer:
    """Loads the model, unless the request cannot succeed. Raises ApiError."""
    keep_alive_seconds(body.keep_alive)
    began = time.monotonic_ns()
    context = await _load(call, entry, body.options_or_default, "generate")
    return Answer(entry, body.model, isinstance(body, ChatBody), context, time.monotonic_ns() - began)


async def _load(call: Call, entry: ModelEntry, options: LoadOptions, use: Literal["generate", "embed"]) -> int:
    """Tokens of context of the child that will answer. Raises ApiError for options that it does not fulfil."""
    options.check()
    await asyncio.to_thread(make_file, entry)
    known = await asyncio.to_thread(facts, entry.path)
    check_context(options.num_ctx, call.pool.settings.context_of(known), known.context, entry)
    async with call.pool.use(entry, use) as loaded:
        check_context(options.num_ctx, loaded.context, known.context, entry)
        return loaded.context


async def _only_load(call: Call, body: AnswerBody, entry: ModelEntry) -> Response:
    """Nothing to answer: Ollama's way to load a model, or with keep_alive 0 to unload it."""
    idle = keep_alive_seconds(body.keep_alive)
    if idle == 0:
        body.options_or_default.check()
        await call.pool.unload(entry)
        return json_response(Answer(entry, body.model, isinstance(body, ChatBody), 0, 0).done("unload"))
    answer = await _begin(call, body, entry)
    if idle is not None:
        await call.pool.keep(entry, idle)
    return json_response(answer.done("load"))


async def _respond(call: Call, body: AnswerBody, answer: Answer, chunks: AsyncGenerator[Chunk]) -> Response:
    lines = _lines(call, body, answer, chunks)
    if body.stream is False:
        return json_response(answer.merged([line async for line in lines]))
    return await streamed_lines(call, lines)


async def _lines(call: Call, body: AnswerBody, answer: Answer, chunks: AsyncGenerator[Chunk]) -> AsyncGenerator[Json]:
    """The lines; afterwards the model is kept for as long as the request wants."""
    is_begun = False
    try:
        async for chunk in chunks:
            call.record.usage(chunk.get("usage"))
            for line in answer.lines(chunk):
                is_begun = True
                yield line
    finally:
        idle = keep_alive_seconds(body.keep_alive)
        if is_begun and idle is not None:
            await call.pool.keep(answer.entry, idle)


async def embed(call: Call, body: EmbedBody) -> Response:
    entry = call.find(body.model)
    idle, began = keep_alive_seconds(body.keep_alive), time.monotonic_ns()
    await _load(call, entry, body.options or LoadOptions(), "embed")
    loading = time.monotonic_ns() - began
    texts = [body.input] if isinstance(body.input, str) else body.input or []
    inputs: list[str | list[int]] = [] if texts == [""] else [*texts]
    num_cut = 0
    if body.truncate and inputs:
        inputs, num_cut = await truncate_texts(call.pool, entry, texts)
    vectors, tokens = await embed_texts(call.pool, entry, inputs) if inputs else ([], 0)
    call.record.prompt_tokens = tokens
    if body.dimensions is not None and vectors and body.dimensions != len(vectors[0]):
        raise unsupported("dimensions", f"{entry.id} makes vectors of {len(vectors[0])} numbers")
    if idle is not None:
        await call.pool.keep(entry, idle)
    answer: JsonObject = {"model": body.model or entry.id, "embeddings": vectors}
    answer |= {"total_duration": time.monotonic_ns() - began, "load_duration": loading, "prompt_eval_count": tokens}
    return json_response(answer | ({"settle": {"truncated": num_cut}} if num_cut else {}))


async def embeddings(call: Call, body: OldEmbedBody) -> Response:
    entry = call.find(body.model)
    idle = keep_alive_seconds(body.keep_alive)
    await _load(call, entry, body.options or LoadOptions(), "embed")
    vectors, tokens = await embed_texts(call.pool, entry, [body.prompt]) if body.prompt else ([[]], 0)
    call.record.prompt_tokens = tokens
    if idle is not None:
        await call.pool.keep(entry, idle)
    return json_response({"embedding": vectors[0]})
