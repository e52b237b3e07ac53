"""LM Studio's own API, /api/v0 (https://lmstudio.ai/docs/developer/rest/endpoints): OpenAI's, with statistics."""

import importlib.metadata
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import Field
from starlette.responses import Response

from settle.server.apis import Api, openai
from settle.server.apis.openai import DONE, Completion, error_event
from settle.server.gateway import Call, Endpoint, data_event, json_response, streamed
from settle.server.models.model_entry import ModelEntry, capabilities, facts
from settle.server.models.model_pool import ModelPool
from settle.server.requests import chat
from settle.wire.errors import ApiError
from settle.wire.formats import openai as wire
from settle.wire.types import ChatRequest, Chunk, JsonObject

PATH = "/api/v0"
Ttl = Annotated[int, Field(ge=1, le=1 << 31)]


class ChatBody(wire.ChatBody):
    """What /api/v0/chat/completions takes. ttl: seconds without a request after which the model is unloaded."""

    ttl: Ttl | None = None


class CompletionBody(wire.CompletionBody):
    """What /api/v0/completions takes: one prompt, because the statistics are of one answer."""

    prompt: str
    n: Literal[1] | None = None
    ttl: Ttl | None = None


class EmbeddingBody(wire.EmbeddingBody):
    """What /api/v0/embeddings takes."""

    ttl: Ttl | None = None


class LMStudio(Api):
    """Models with their properties, and answers with how long they took."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        return [
            ("GET", f"{PATH}/models", self.endpoint(models)),
            ("GET", f"{PATH}/models/{{model:path}}", self.endpoint(model)),
            ("POST", f"{PATH}/chat/completions", self.endpoint(chat_completions)),
            ("POST", f"{PATH}/completions", self.endpoint(completions)),
            ("POST", f"{PATH}/embeddings", self.endpoint(embeddings)),
        ]

    def owns(self, path: str) -> bool:
        return path.startswith(("/api/v0/", "/api/v1/"))


async def models(call: Call) -> Response:
    data = [_model(call.pool, entry) for entry in call.backend.catalogue.offered()]
    return json_response({"object": "list", "data": data})


async def model(call: Call) -> Response:
    return json_response(_model(call.pool, call.find(call.path["model"])))


async def chat_completions(call: Call, body: ChatBody) -> Response:
    call.record.user = body.user or body.safety_identifier or ""
    request, entry = body.to_chat(), call.find(body.model)
    if body.stream:
        return await streamed(_chat_stream(call, body, request, entry), call.record, error_event)
    answer = await chat.whole(call.backend, request, entry)
    call.record.usage(answer.get("usage"))
    statistics = _statistics(call.pool, entry, answer, answer["choices"][0]["finish_reason"], request.max_tokens)
    await call.pool.keep(entry, body.ttl)
    return json_response({**answer, **statistics})


async def _chat_stream(call: Call, body: ChatBody, request: ChatRequest, entry: ModelEntry) -> AsyncGenerator[bytes]:
    """Yield the events; the statistics come with usage, in a last event of their own."""
    reason = None
    async for chunk in chat.stream(call.backend, request, entry):
        for choice in chunk["choices"]:
            reason = choice.get("finish_reason") or reason
        if chunk.get("usage"):
            call.record.usage(chunk["usage"])
            yield data_event({**chunk, **_statistics(call.pool, entry, chunk, reason, request.max_tokens)})
        else:
            yield data_event(chunk)
    await call.pool.keep(entry, body.ttl)
    yield DONE


async def completions(call: Call, body: CompletionBody) -> Response:
    entry = call.find(body.model)

    def extra(answer: Chunk) -> JsonObject:
        reason = answer["choices"][0].get("finish_reason") if answer.get("choices") else None
        return _statistics(call.pool, entry, answer, reason, body.limit)

    response = await Completion(call, body, entry, extra).respond()
    await call.pool.keep(entry, body.ttl)
    return response


async def embeddings(call: Call, body: EmbeddingBody) -> Response:
    response = await openai.embeddings(call, body)
    await call.pool.keep(call.find(body.model), body.ttl)
    return response


def _model(pool: ModelPool, entry: ModelEntry) -> JsonObject:
    """Fields that are unknown, because the file is damaged or not converted yet, are left out."""
    loaded = pool.find(entry)
    where, _, what = entry.origin.partition(":")
    publisher = what.split("/")[0] if where in ("hub", "lmstudio") and "/" in what else where.split(" ")[0]
    fields: JsonObject = {"id": entry.id, "object": "model", "type": "llm", "publisher": publisher or "settle"}
    fields |= {"compatibility_type": "gguf", "state": "loaded" if loaded else "not-loaded"}
    try:
        known, can = facts(entry.path), capabilities(entry)
        fields |= {"arch": known.architecture, "quantization": known.quantization, "max_context_length": known.context}
        fields |= {} if "completion" in can else {"type": "embeddings"}  # rerankers too: they write no text
        fields["capabilities"] = ["tool_use"] if "tools" in can else []
    except ApiError as e:  # it is listed with its fault
        fields["broken"] = e.message
    return fields | ({"loaded_context_length": loaded.context} if loaded else {})


def _statistics(
    pool: ModelPool, entry: ModelEntry, answer: Chunk, reason: str | None, max_tokens: int | None
) -> JsonObject:
    timings, known, loaded = answer.get("timings", {}), facts(entry.path), pool.find(entry)
    num_tokens = timings.get("predicted_n", 0)
    # a stop string and the model's own end are not distinguished
    ended = {"stop": "eosFound", "tool_calls": "toolCalls"}.get(reason or "", reason)
    if reason == "length":
        is_limit = max_tokens is not None and num_tokens >= max_tokens
        ended = "maxPredictedTokensReached" if is_limit else "contextLengthReached"
    return {
        "stats": {
            "tokens_per_second": timings.get("predicted_per_second", 0.0),
            "time_to_first_token": timings.get("prompt_ms", 0.0) / 1e3,
            "generation_time": timings.get("predicted_ms", 0.0) / 1e3,
            "stop_reason": ended,
        },
        "model_info": {
            "arch": known.architecture,
            "quant": known.quantization,
            "format": "gguf",
            "context_length": loaded.context if loaded else pool.settings.context_of(known),
        },
        "runtime": {
            "name": "llama.cpp",
            "version": importlib.metadata.version("xllamacpp"),
            "supported_formats": ["gguf"],
        },
    }
