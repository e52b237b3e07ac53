"""LM Studio's own API, /api/v0 (https://lmstudio.ai/docs/developer/rest/endpoints): OpenAI's, with numbers about it."""

import contextlib
import importlib.metadata
import json
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import Response

from settle.server.apis import Shape, openai
from settle.server.errors import Refusal
from settle.server.gateway import Call, Endpoint, Gateway, Streamed, begun, replied, told
from settle.server.models.model_catalogue import Entry, capabilities, facts
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest

PATH = "/api/v0"
Ttl = Annotated[int, Field(ge=1, le=1 << 31)]


class ChatBody(openai.ChatBody):
    """What /api/v0/chat/completions takes. ttl: seconds without a request after which the model is unloaded."""

    ttl: Ttl | None = None


class CompletionBody(openai.CompletionBody):
    """What /api/v0/completions takes: one prompt, so that the numbers are about one answer."""

    prompt: str
    n: Literal[1] | None = None
    ttl: Ttl | None = None


class EmbeddingBody(openai.EmbeddingBody):
    """What /api/v0/embeddings takes."""

    ttl: Ttl | None = None


class LMStudio(Shape):
    """Models with what they are, and answers with how long they took."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        return [
            ("GET", f"{PATH}/models", self.endpoint(models)),
            ("GET", f"{PATH}/models/{{model:path}}", self.endpoint(model)),
            ("POST", f"{PATH}/chat/completions", self.endpoint(chat_completions, ChatBody)),
            ("POST", f"{PATH}/completions", self.endpoint(completions, CompletionBody)),
            ("POST", f"{PATH}/embeddings", self.endpoint(embeddings, EmbeddingBody)),
        ]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        return openai.OpenAI().error(refusal)

    def owns(self, path: str) -> bool:
        return path.startswith(("/api/v0/", "/api/v1/"))


async def models(call: Call) -> Response:
    entries = call.gateway.catalogue.offered()
    return replied({"object": "list", "data": [_model(call.gateway, entry) for entry in entries]})


async def model(call: Call) -> Response:
    return replied(_model(call.gateway, call.gateway.find(call, call.path["model"])))


async def chat_completions(call: Call) -> Response:
    body = await call.body(ChatBody)
    call.record.user = body.user or body.safety_identifier or ""
    request, entry = body.to_chat(), call.gateway.find(call, body.model)
    if body.stream:
        pieces = _chat_stream(call, body, request, entry)
        return Streamed(await begun(told(pieces, call.record, _broken_off)), call.record)
    answer = await chat.whole(call.gateway, request, entry)
    call.record.usage(answer.get("usage"))
    reason = answer["choices"][0]["finish_reason"]
    answer |= _about(call.gateway, entry, answer, reason, request.max_tokens)
    await _keep(call, entry, body.ttl)
    return replied(answer)


async def _chat_stream(call: Call, body: ChatBody, request: ChatRequest, entry: Entry) -> AsyncGenerator[bytes]:
    """The numbers come with usage, in a last event of their own."""
    reason = None
    async for chunk in chat.stream(call.gateway, request, entry):
        for choice in chunk["choices"]:
            reason = choice.get("finish_reason") or reason
        if chunk.get("usage"):
            call.record.usage(chunk["usage"])
            chunk |= _about(call.gateway, entry, chunk, reason, request.max_tokens)
        yield _event(chunk)
    await _keep(call, entry, body.ttl)
    yield openai.DONE


async def completions(call: Call) -> Response:
    body = await call.body(CompletionBody)
    entry = call.gateway.find(call, body.model)
    most = body.max_tokens if body.max_tokens is not None else body.n_predict

    def also(answer: dict[str, Any]) -> dict[str, Any]:
        choices = answer.get("choices") or [{}]
        return _about(call.gateway, entry, answer, choices[0].get("finish_reason"), 16 if most is None else most)

    response = await openai.completed(call, body, also)
    await _keep(call, entry, body.ttl)
    return response


async def embeddings(call: Call) -> Response:
    body = await call.body(EmbeddingBody)
    response = await openai.embed(call, body)
    await _keep(call, call.gateway.find(call, body.model), body.ttl)
    return response


async def _keep(call: Call, entry: Entry, ttl: int | None) -> None:
    if ttl is not None:
        await call.gateway.keeper.keep(entry, ttl)


def _model(gateway: Gateway, entry: Entry) -> dict[str, Any]:
    """What a file that is damaged, or not made yet, does not tell is left out."""
    loaded = gateway.keeper.of(entry)
    where, _, what = entry.origin.partition(":")
    publisher = what.split("/")[0] if where in ("hub", "lmstudio") and "/" in what else where.split(" ")[0]
    told: dict[str, Any] = {"id": entry.id, "object": "model", "type": "llm", "publisher": publisher or "settle"}
    told |= {"compatibility_type": "gguf", "state": "loaded" if loaded else "not-loaded"}
    with contextlib.suppress(Refusal):
        known, does = facts(entry.path), capabilities(entry)
        told |= {"arch": known.architecture, "quantization": known.quantization, "max_context_length": known.context}
        told |= {} if "completion" in does else {"type": "embeddings"}  # a reranker is none, but writes nothing either
        told["capabilities"] = ["tool_use"] if "tools" in does else []
    return told | ({"loaded_context_length": loaded.context} if loaded else {})


def _about(
    gateway: Gateway, entry: Entry, answer: dict[str, Any], reason: str | None, most: int | None
) -> dict[str, Any]:
    """LM Studio's numbers, in seconds. most: tokens that were asked for."""
    timings, known, loaded = answer.get("timings", {}), facts(entry.path), gateway.keeper.of(entry)
    made = timings.get("predicted_n", 0)
    # whether a stop string or the model ended the answer is not told apart
    ended = {"stop": "eosFound", "tool_calls": "toolCalls"}.get(reason or "", reason)
    if reason == "length":
        ended = "maxPredictedTokensReached" if most is not None and made >= most else "contextLengthReached"
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
            "context_length": loaded.context if loaded else gateway.keeper.context_of(known),
        },
        "runtime": {
            "name": "llama.cpp",
            "version": importlib.metadata.version("xllamacpp"),
            "supported_formats": ["gguf"],
        },
    }


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _broken_off(refusal: Refusal) -> bytes:
    return _event(openai.OpenAI().error(refusal)) + openai.DONE
