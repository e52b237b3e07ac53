"""Ollama's API (https://docs.ollama.com/api): lines of JSON, models with tags, and changes of the store."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Literal

from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from settle.base.version import __version__
from settle.infer.child_process import Json
from settle.server.apis import Api
from settle.server.apis.ollama.answer import LineWriter, error_line, listed, running, shown, streamed_lines
from settle.server.gateway import Call, Endpoint, json_response
from settle.server.models.model_entry import ModelEntry, capabilities, facts, make_file, template_of
from settle.server.models.store_changes import find_offer
from settle.server.requests import chat, text_completion
from settle.server.requests.readings import embed_texts, require_dimensions, truncate_texts
from settle.wire.errors import ApiError, invalid, unsupported
from settle.wire.fields import Body, Name
from settle.wire.formats.ollama import (
    AnswerBody,
    Answerer,
    ChatBody,
    EmbedBody,
    GenerateBody,
    LoadOptions,
    OldEmbedBody,
    keep_alive_seconds,
)
from settle.wire.types import Chunk, JsonObject

VERSION = "0.32.7"  # of the Ollama whose API this is: clients turn off features that an older one lacks


RequiredName = Annotated[Name, Field(min_length=1)]  # of a change: never the only model that there happens to be


class OneModel(Body):
    """A body about one model, by Ollama's name for the field or its earlier one."""

    model: Name = ""
    name: Name = ""

    @property
    def wanted(self) -> str:
        """Raises ApiError when the two fields name two models."""
        if self.model and self.name and self.model != self.name:
            raise invalid("name", "is another model than the one in the field model")
        return self.model or self.name


class PullBody(OneModel):
    """What /api/pull takes."""

    stream: bool | None = None
    insecure: Literal[False] | None = None


class CopyBody(Body):
    """What /api/copy takes."""

    source: RequiredName
    destination: RequiredName


class DeleteBody(OneModel):
    """What /api/delete takes."""


class CreateBody(Body):
    """What /api/create takes: a model that is here, and an adapter over it that is here.

    What Ollama adds to a model (template, system, parameters, messages, license) belongs into requests, and files come
    by `settle pull`.
    """

    model: RequiredName
    source: RequiredName = Field(alias="from")
    adapters: Annotated[dict[Name, Literal[""]], Field(max_length=1)] | None = None
    stream: bool | None = None


class ShowBody(OneModel):
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
            ("POST", "/api/pull", self.endpoint(pull)),
            ("POST", "/api/copy", self.endpoint(copy)),
            ("DELETE", "/api/delete", self.endpoint(delete)),
            ("POST", "/api/create", self.endpoint(create)),
            ("POST", "/api/push", self.endpoint(push)),
            ("GET", "/api/blobs/{digest}", self.endpoint(blobs)),
            ("POST", "/api/blobs/{digest}", self.endpoint(blobs)),
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
    return json_response({"models": await asyncio.to_thread(listed, call.backend.catalogue)})


async def ps(call: Call) -> Response:
    return json_response({"models": await asyncio.to_thread(running, call.pool)})


async def show(call: Call, body: ShowBody) -> Response:
    entry = call.find(body.wanted)
    await asyncio.to_thread(make_file, entry)
    return json_response(await asyncio.to_thread(shown, call.pool, entry, bool(body.verbose)))


async def chat_lines(call: Call, body: ChatBody) -> Response:
    entry = call.find(body.model)
    if not body.messages:
        return await _only_load(call, body, entry)
    writer = await _begin(call, body, entry)
    request = body.to_chat(_answerer(body, writer))
    lines = _lines(call, body, writer, chat.stream(call.backend, request, entry))
    return await _respond(call, body.stream, lines, writer.merged)


async def generate(call: Call, body: GenerateBody) -> Response:
    entry = call.find(body.model)
    if not body.prompt and not body.suffix:
        return await _only_load(call, body, entry)
    writer = await _begin(call, body, entry)
    is_text = body.raw or body.suffix or not await asyncio.to_thread(template_of, entry)
    if is_text:  # the prompt is completed as it is
        chunks = text_completion.chunks(call.backend, body.to_text(writer.context), entry)
    else:
        chunks = chat.stream(call.backend, body.to_chat(_answerer(body, writer)), entry)
    return await _respond(call, body.stream, _lines(call, body, writer, chunks), writer.merged)


async def _begin(call: Call, body: AnswerBody, entry: ModelEntry) -> LineWriter:
    """Load the model, unless the request cannot succeed. Raises ApiError."""
    keep_alive_seconds(body.keep_alive)
    began = time.monotonic_ns()
    context = await _load(call, entry, body.options_or_default, "generate")
    return LineWriter(entry, body.model, isinstance(body, ChatBody), context, time.monotonic_ns() - began)


def _answerer(body: AnswerBody, writer: LineWriter) -> Answerer:
    return Answerer(writer.entry.id, writer.context, _thinking(body.think, writer.entry))


async def _load(call: Call, entry: ModelEntry, options: LoadOptions, use: Literal["generate", "embed"]) -> int:
    """Tokens of context of the child that will writer. Raises ApiError for options that it does not fulfil."""
    options.check()
    await asyncio.to_thread(make_file, entry)
    known = await asyncio.to_thread(facts, entry.path)
    _check_context(options.num_ctx, call.pool.settings.context_of(known), known.context, entry)
    async with call.pool.use(entry, use) as loaded:
        _check_context(options.num_ctx, loaded.context, known.context, entry)
        return loaded.context


async def _only_load(call: Call, body: AnswerBody, entry: ModelEntry) -> Response:
    """Nothing to answer: Ollama's way to load a model, or with keep_alive 0 to unload it."""
    idle = keep_alive_seconds(body.keep_alive)
    if idle == 0:
        body.options_or_default.check()
        await call.pool.unload(entry)
        return json_response(LineWriter(entry, body.model, isinstance(body, ChatBody), 0, 0).done("unload"))
    writer = await _begin(call, body, entry)
    await call.pool.keep(entry, idle)
    return json_response(writer.done("load"))


async def _respond(
    call: Call,
    stream: bool | None,
    lines: AsyncGenerator[Json],
    merged: Callable[[list[Json]], Json] = lambda lines: lines[-1],
) -> Response:
    if stream is False:
        return json_response(merged([line async for line in lines]))
    return await streamed_lines(call, lines)


async def _lines(
    call: Call, body: AnswerBody, writer: LineWriter, chunks: AsyncGenerator[Chunk]
) -> AsyncGenerator[Json]:
    """Yield the lines; afterwards the model is kept for as long as the request wants."""
    is_begun = False
    try:
        async for chunk in chunks:
            call.record.usage(chunk.get("usage"))
            for line in writer.lines(chunk):
                is_begun = True
                yield line
    finally:
        if is_begun:
            await call.pool.keep(writer.entry, keep_alive_seconds(body.keep_alive))


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
    require_dimensions(body.dimensions, vectors, entry)
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
    await call.pool.keep(entry, idle)
    return json_response({"embedding": vectors[0]})


def _thinking(think: bool | str | None, entry: ModelEntry) -> JsonObject:
    """Return arguments of the template. Raises ApiError where the template does not support them."""
    if think is None:
        return {}
    if "thinking" not in capabilities(entry):
        if think is False:
            return {}
        raise unsupported("think", f"{entry.id} does not support thinking")
    template = template_of(entry) or ""
    if isinstance(think, str):
        if "reasoning_effort" not in template:
            raise unsupported("think", f"{entry.id} has no levels of thinking: true or false")
        return {"reasoning_effort": think, "enable_thinking": True}
    if not think and "enable_thinking" not in template:
        raise unsupported("think", f"{entry.id} always thinks")
    return {"enable_thinking": think}


def _check_context(wanted: int | None, context: int, longest: int, entry: ModelEntry) -> None:
    """Raise ApiError when a num_ctx is longer than the context.

    context: in tokens, as served; longest: that the model supports."""
    if wanted is None or wanted <= context:
        return
    message = f"options.num_ctx: {entry.id} is served with a context of {context} tokens, but {wanted} are wanted"
    fix = f"run `settle serve --context {wanted}`" if wanted <= longest else f"the model supports {longest} at most"
    counts = {"n_ctx": context}
    raise ApiError(400, f"{message}; {fix}", "context_length_exceeded", "options.num_ctx", counts)


async def pull(call: Call, body: PullBody) -> Response:
    name = body.wanted
    entries = call.backend.catalogue.entries()
    if any(name.removesuffix(":latest") in (entry.id, *entry.aliases) for entry in entries):
        return await _respond(call, body.stream, _status_lines(f"{name} is here", "success"))
    call.gateway.store.require_open()
    offer = await asyncio.to_thread(find_offer, name, call.gateway.store.pull_from)
    return await _respond(call, body.stream, call.gateway.store.pull(offer))


async def create(call: Call, body: CreateBody) -> Response:
    entry = call.find(body.source)
    for name in body.adapters or ():
        adapter = call.find(name if ":" in name else f"{entry.id}:{name}")
        if not adapter.adapter or adapter.path != entry.path:
            raise unsupported("adapters", f"{adapter.id} is not an adapter over {entry.id}")
        entry = adapter
    await call.gateway.store.copy(entry, body.model)
    return await _respond(call, body.stream, _status_lines(f"using {entry.id}", "success"))


async def copy(call: Call, body: CopyBody) -> Response:
    await call.gateway.store.copy(call.find(body.source), body.destination)
    return Response(status_code=200)


async def delete(call: Call, body: DeleteBody) -> Response:
    if not body.wanted:
        raise ApiError(400, "model is missing", "missing_required_parameter", "model")
    await call.gateway.store.delete(call.find(body.wanted))
    return Response(status_code=200)


async def push(call: Call) -> Response:
    raise ApiError(501, "this server pushes no models; `settle export` writes a model to a file", "not_supported")


async def blobs(call: Call) -> Response:
    message = "this server takes no files over the network; run `settle pull PATH` on its machine"
    raise ApiError(403, message, "not_allowed")


async def _status_lines(*statuses: str) -> AsyncGenerator[JsonObject]:
    for status in statuses:
        yield {"status": status}
