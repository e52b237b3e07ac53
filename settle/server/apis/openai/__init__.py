"""OpenAI's API (https://platform.openai.com/docs/api-reference), under /v1 and without it, as clients call it."""

import base64
import contextlib
import json
import struct
from collections.abc import AsyncGenerator
from typing import ClassVar

from starlette.responses import Response

from settle.infer.child_process import ALIAS
from settle.server.apis import Api
from settle.server.apis.openai.body import ChatBody, CompletionBody, EmbeddingBody, prompts_of
from settle.server.apis.openai.completions import DONE, Completion, error_event
from settle.server.errors import ApiError, unsupported
from settle.server.gateway import Call, Endpoint
from settle.server.http_responses import data_event, json_response, streamed
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_facts import capabilities, facts
from settle.server.models.model_pool import ModelPool
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest
from settle.server.requests.embeddings import embed_texts
from settle.server.requests.engine import engine_error, is_constrained
from settle.server.wire_types import Chunk, JsonObject

ALIASES = ("/v1", "")  # of every path


class OpenAI(Api):
    """Chat, completions, embeddings and models."""

    is_fallback: ClassVar[bool] = True

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/chat/completions", self.endpoint(chat_completions)),
            ("/completions", self.endpoint(completions)),
            ("/embeddings", self.endpoint(embeddings)),
            ("/chat/completions/input_tokens", self.endpoint(input_tokens)),
        ]
        gets = [("/models", self.endpoint(models)), ("/models/{model:path}", self.endpoint(model))]
        return [
            (method, alias + path, endpoint)
            for alias in ALIASES
            for method, routes in (("POST", posts), ("GET", gets))
            for path, endpoint in routes
        ]


async def chat_completions(call: Call, body: ChatBody) -> Response:
    call.record.user = body.user or body.safety_identifier or ""
    request = body.to_chat()
    entry = call.find(body.model)
    if not body.stream:
        answer = await chat.whole(call.backend, request, entry)
        call.record.usage(answer.get("usage"))
        return json_response(answer)
    return await streamed(_chat_stream(call, request, entry, body.wants_usage), call.record, error_event)


async def _chat_stream(call: Call, request: ChatRequest, entry: ModelEntry, wants_usage: bool) -> AsyncGenerator[bytes]:
    """llama.cpp's own stream, passed on as it comes where nothing in it has to be changed."""
    if entry.collection:
        answer = _event_stream(call, chat.stream(call.backend, request, entry), wants_usage)
        async with contextlib.aclosing(answer) as pieces:
            async for event in pieces:
                yield event
        return
    async with call.pool.use(entry) as loaded:
        plan = await chat.prepare(call.backend.catalogue, request, entry, loaded)
        if not plan.is_passed_on or is_constrained(plan.body):
            answer = _event_stream(call, plan.chunks(loaded), wants_usage)
            async with contextlib.aclosing(answer) as pieces:
                async for event in pieces:
                    yield event
            return
        rest, engine_name, our_name = b"", json.dumps(ALIAS).encode(), json.dumps(entry.id).encode()
        async with await plan.open(loaded) as response:
            async for piece in response.content.iter_any():
                is_plain = not rest and b"reasoning_content" not in piece and b'"usage"' not in piece
                if is_plain and piece.endswith(b"\n\n"):
                    yield piece.replace(engine_name, our_name)
                    continue
                *events, rest = (rest + piece).split(b"\n\n")
                tidied = b"".join(_tidied(event, call, wants_usage, entry.id) for event in events)
                if tidied:
                    yield tidied


async def _event_stream(call: Call, chunks: AsyncGenerator[Chunk], wants_usage: bool) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if not chunk["choices"]:
                call.record.usage(chunk.get("usage"))
            if chunk["choices"] or wants_usage or chunk.get("settle"):
                yield data_event(chunk)
    yield DONE


def _tidied(event: bytes, call: Call, wants_usage: bool, model: str) -> bytes:
    """One event of llama.cpp's stream: reasoning under both names, usage only where the request wants it."""
    if not event.startswith(b"data: {"):
        return event + b"\n\n" if event.strip() else b""
    chunk = json.loads(event[6:].decode("utf-8", "replace"))
    if "error" in chunk:
        raise engine_error(500, event[6:])
    chunk["model"] = model
    if "usage" in chunk:
        call.record.usage(chunk["usage"])
        if not wants_usage and not chunk["choices"]:
            return b""
    for choice in chunk.get("choices", ()):
        reasoning = choice["delta"].get("reasoning_content")
        if reasoning is not None:
            choice["delta"]["reasoning"] = reasoning
    return data_event(chunk)


async def input_tokens(call: Call, body: ChatBody) -> Response:
    entry = call.find(body.model)
    number = await chat.count(call.backend, body.to_chat(), entry)
    return json_response({"object": "response.input_tokens", "input_tokens": number})


async def completions(call: Call, body: CompletionBody) -> Response:
    return await Completion(call, body, call.find(body.model)).respond()


async def embeddings(call: Call, body: EmbeddingBody) -> Response:
    return await embed(call, body)


async def embed(call: Call, body: EmbeddingBody) -> Response:
    """/v1/embeddings, as OpenAI's and LM Studio's APIs answer it. Raises ApiError."""
    call.record.user = body.user or ""
    entry = call.find(body.model)
    vectors, tokens = await embed_texts(call.pool, entry, prompts_of(body.input))
    call.record.prompt_tokens = tokens
    if body.dimensions is not None and vectors and body.dimensions != len(vectors[0]):
        raise unsupported("dimensions", f"{entry.id} makes vectors of {len(vectors[0])} numbers")
    is_base64 = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _base64(vector) if is_base64 else vector}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": entry.id, "usage": usage})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


async def models(call: Call) -> Response:
    data = [_model(call.pool, entry) for entry in call.backend.catalogue.offered()]
    return json_response({"object": "list", "data": data})


async def model(call: Call) -> Response:
    return json_response(_model(call.pool, call.find(call.path["model"])))


def _model(pool: ModelPool, entry: ModelEntry) -> JsonObject:
    """OpenAI's fields, and those that clients read in other servers' lists: the context under its several names."""
    fields: JsonObject = {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "settle"}
    loaded = pool.find(entry)
    fields["status"] = {"value": "loaded" if loaded else "unloaded"}
    try:
        known = facts(entry.path)
        length = loaded.context if loaded else pool.settings.context_of(known)
        fields |= {"context_length": length, "max_model_len": length}
        fields["meta"] = {
            "n_ctx": length,
            "n_ctx_train": known.context,
            "n_params": known.parameters,
            "size": known.bytes,
            "n_embd": known.width,
            "n_vocab": known.num_vocab,
        }
        fields["capabilities"] = capabilities(entry)
    except ApiError as e:  # it is listed with its fault
        fields["broken"] = e.message
    return fields
