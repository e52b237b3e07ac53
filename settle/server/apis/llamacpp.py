"""llama.cpp's own API (https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md).

It is served as far as clients use it: completion, fill-in-the-middle (Mistral's form too), tokens, templates, and
reranking.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from starlette.responses import Response

from settle.server.apis import Api
from settle.server.gateway import Call, Endpoint, data_event, json_response, streamed
from settle.server.models.model_entry import ModelEntry, facts, make_file, template_of
from settle.server.requests import chat, text_completion
from settle.server.requests.chat_plan import usage_of
from settle.server.requests.engine import ask
from settle.server.requests.readings import rank_documents
from settle.wire.errors import ApiError, invalid, unsupported
from settle.wire.fields import MOST_TOKENS, Adapter, Body, Name, Sampling, Stop, stops
from settle.wire.messages import check_messages, check_tools, choose
from settle.wire.types import ChatRequest, Chunk, JsonObject, TextRequest

ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
RERANK = ("/rerank", "/reranking", "/v1/rerank", "/v1/reranking")
FIM = ("/fim/completions", "/v1/fim/completions")
Text = Annotated[str, Field(max_length=1 << 24)]
Tokens = Annotated[list[Annotated[int, Field(ge=0, le=1 << 31)]], Field(max_length=1 << 20)]


class CompletionBody(Sampling):
    """What /completion takes."""

    prompt: str | Annotated[list[int | str], Field(max_length=1 << 20)]
    model: Name = ""
    n_predict: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    stop: Stop = None
    stream: bool | None = None
    n_probs: Annotated[int, Field(ge=0, le=100)] | None = None
    post_sampling_probs: bool | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    json_schema: JsonObject | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    t_max_predict_ms: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    n_indent: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    # a full context is never shifted, so everything is kept; the server chooses the slot
    n_keep: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n_discard: Literal[0] | None = None
    id_slot: Literal[-1] | None = None

    PASSED_ON: ClassVar[tuple[str, ...]] = (
        "post_sampling_probs",
        "return_tokens",
        "timings_per_token",
        "t_max_predict_ms",
        "n_indent",
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, biases: object) -> object:
        """llama.cpp's [[token, bias], …] as OpenAI's object; a bias of false forbids the token."""
        if not isinstance(biases, list):
            return biases
        if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int for pair in biases):
            raise ValueError("a list of [token id, bias] is needed")
        return {str(token): -100.0 if bias is False else bias for token, bias in biases}

    def to_text(self, entry: ModelEntry) -> TextRequest:
        """Return the request of a text. Raises ApiError."""
        if self.json_schema is not None and self.grammar:
            raise invalid("grammar", "cannot be combined with a JSON schema")
        if self.post_sampling_probs and not self.n_probs:
            raise invalid("post_sampling_probs", "needs n_probs to be 1 or more")
        passed_on = self.model_dump(include={*self.PASSED_ON}, exclude_none=True)
        return TextRequest(
            prompt=_one_prompt(self.prompt, entry),
            schema=self.json_schema,
            grammar=self.grammar,
            max_tokens=None if self.n_predict == -1 else self.n_predict,
            stop=stops(self.stop),
            top_logprobs=self.n_probs or None,
            sampling=self.llama(),
            adapters={adapter.id: adapter.scale for adapter in self.lora or []},
            more=passed_on,
        )


class Extra(Body):
    """Another file of a project that a gap is in."""

    text: Text
    filename: Annotated[str, Field(max_length=4096)] = ""


class InfillBody(CompletionBody):
    """What /infill takes. prompt: how the filling begins."""

    prompt: str = ""
    input_prefix: Text
    input_suffix: Text
    input_extra: Annotated[list[Extra], Field(max_length=1024)] | None = None

    def to_text(self, entry: ModelEntry) -> TextRequest:
        """Return the request of a text. Raises ApiError."""
        extra = [(file.filename, file.text) for file in self.input_extra or []]
        request = super().to_text(entry)
        return replace(request, before=self.input_prefix, suffix=self.input_suffix, extra=extra)


class FimBody(Sampling):
    """What /fim/completions takes, in Mistral's form (https://docs.mistral.ai/api/endpoint/fim)."""

    prompt: Text
    suffix: Text | None = None
    model: Name = ""
    max_tokens: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    min_tokens: Literal[0] | None = None
    stop: Stop = None
    stream: bool | None = None
    random_seed: Annotated[int, Field(ge=0, le=(1 << 64) - 1)] | None = None

    def to_text(self) -> TextRequest:
        """Return the request of a text, completed where it has no suffix, and so no gap. Raises ApiError."""
        if self.random_seed is not None and self.seed is not None:
            raise invalid("random_seed", "cannot be combined with seed")
        seeded = self.model_copy(update={"seed": self.random_seed if self.seed is None else self.seed})
        return TextRequest(
            prompt="" if self.suffix else self.prompt,
            before=self.prompt if self.suffix else "",
            suffix=self.suffix or None,
            max_tokens=self.max_tokens,
            stop=stops(self.stop),
            sampling=seeded.llama(),
        )


class TokenizeBody(Body):
    """What /tokenize takes."""

    content: Text
    model: Name = ""
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    """What /detokenize takes."""

    tokens: Tokens
    model: Name = ""


class TemplateBody(Body):
    """What /apply-template takes."""

    messages: Annotated[list[object], Field(max_length=10_000)]
    model: Name = ""
    tools: Annotated[list[object], Field(max_length=512)] | None = None
    tool_choice: str | JsonObject | None = None
    chat_template_kwargs: JsonObject | None = None


class Document(Body):
    """A document in the form of Cohere's clients."""

    text: Text


class RerankBody(Body):
    """What /v1/rerank takes."""

    query: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    documents: Annotated[list[Text | Document], Field(min_length=1, max_length=2048)]
    model: Name = ""
    top_n: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    return_documents: bool | None = None


class LlamaCpp(Api):
    """Completions, tokens and ranks."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        fim, rank = self.endpoint(fim_completions), self.endpoint(rerank)
        return [
            ("POST", "/completion", self.endpoint(completion)),
            ("POST", "/infill", self.endpoint(infill)),
            ("POST", "/tokenize", self.endpoint(tokenize)),
            ("POST", "/detokenize", self.endpoint(detokenize)),
            ("POST", "/apply-template", self.endpoint(apply_template)),
            ("GET", "/props", self.endpoint(props)),
            *(("POST", path, fim) for path in FIM),
            *(("POST", path, rank) for path in RERANK),
        ]

    def error(self, error: ApiError) -> JsonObject:
        kind = ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
        kind = "exceed_context_size_error" if error.code == "context_length_exceeded" else kind
        return {"error": {"code": error.status, "message": error.message, "type": kind} | error.extra}

    def owns(self, path: str) -> bool:
        ours = ("/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props")
        return path in (*ours, *FIM, *RERANK)


async def infill(call: Call, body: InfillBody) -> Response:
    return await completion(call, body)


async def completion(call: Call, body: CompletionBody) -> Response:
    entry = call.find(body.model)
    await asyncio.to_thread(make_file, entry)
    request = body.to_text(entry)
    if body.stream:
        return await streamed(_events(call, request, entry), call.record, _error_event)
    answer = await text_completion.whole(call.backend, request, entry)
    call.record.usage(usage_of(answer))
    return json_response(answer)


async def _events(call: Call, request: TextRequest, entry: ModelEntry) -> AsyncGenerator[bytes]:
    async for event in text_completion.stream(call.backend, request, entry):
        if event["stop"]:
            call.record.usage(usage_of(event))
        yield data_event(event)


async def fim_completions(call: Call, body: FimBody) -> Response:
    entry = call.find(body.model)
    request = body.to_text()
    if body.stream:
        return await streamed(_fim_stream(call, request, entry), call.record, _error_event)
    answer = await text_completion.whole(call.backend, request, entry)
    usage = usage_of(answer)
    call.record.usage(usage)
    message = {"role": "assistant", "content": answer["content"], "tool_calls": None}
    reason = "length" if answer["stop_type"] == "limit" else "stop"
    head = {"id": secrets.token_hex(16), "object": "chat.completion", "created": int(time.time()), "model": entry.id}
    return json_response(
        head | {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage}
    )


async def _fim_stream(call: Call, request: TextRequest, entry: ModelEntry) -> AsyncGenerator[bytes]:
    """Mistral sends usage with the chunk that has the finish reason."""
    last: Chunk = {}
    async for chunk in text_completion.chunks(call.backend, request, entry):
        if chunk.get("usage"):
            call.record.usage(chunk["usage"])
            yield data_event(last | {"usage": chunk["usage"]}) + b"data: [DONE]\n\n"
        elif chunk["choices"][0]["finish_reason"]:
            last = chunk
        else:
            yield data_event(chunk)


async def tokenize(call: Call, body: TokenizeBody) -> Response:
    entry = call.find(body.model)
    async with call.pool.use(entry, await _any_use(entry)) as loaded:
        return json_response(await ask(loaded, "/tokenize", body.model_dump(exclude={"model"})))


async def detokenize(call: Call, body: DetokenizeBody) -> Response:
    entry = call.find(body.model)
    async with call.pool.use(entry, await _any_use(entry)) as loaded:
        _check_tokens(body.tokens, entry, "tokens")
        return json_response(await ask(loaded, "/detokenize", {"tokens": body.tokens}))


async def apply_template(call: Call, body: TemplateBody) -> Response:
    entry = call.find(body.model)
    tools, choice = choose(check_tools(body.tools or []), body.tool_choice)
    request = ChatRequest(
        model=entry.id,
        messages=check_messages(body.messages),
        tools=tools,
        choice=choice,
        arguments=body.chat_template_kwargs or {},
    )
    async with call.pool.use(entry) as loaded:
        return json_response({"prompt": await chat.rendered(call.backend.catalogue, request, entry, loaded)})


async def rerank(call: Call, body: RerankBody) -> Response:
    entry = call.find(body.model)
    documents = [d.text if isinstance(d, Document) else d for d in body.documents]
    ranks, tokens = await rank_documents(call.pool, entry, body.query, documents)
    call.record.prompt_tokens = tokens
    if body.return_documents:
        ranks = [{**rank, "document": {"text": documents[rank["index"]]}} for rank in ranks]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"model": entry.id, "object": "list", "usage": usage, "results": ranks[: body.top_n]})


async def props(call: Call) -> Response:
    """How a model is served, or would be: this does not load it. Its slots are known once it is loaded."""
    unknown = {*call.request.query_params} - {"model"}
    if unknown:
        raise unsupported(sorted(unknown)[0][:100], "is not supported")
    entry = call.find(call.request.query_params.get("model", ""))
    known, pool = facts(entry.path), call.pool
    loaded = pool.find(entry)
    context = loaded.context if loaded else pool.settings.context_of(known)
    return json_response(
        {
            "default_generation_settings": {"n_ctx": context, "params": {}},
            "total_slots": loaded.slots if loaded else pool.settings.slots or 1,
            "model_alias": entry.id,
            "model_path": entry.id,  # the path stays private
            "modalities": {"vision": False, "audio": False},
            "chat_template": template_of(entry) or "",
            "chat_template_caps": loaded.capabilities if loaded else {},
            "build_info": "settle",
            "is_sleeping": loaded is None,
        }
    )


async def _any_use(entry: ModelEntry) -> Literal["generate", "embed", "rerank"]:
    """Return a use that the model supports: every child has the tokenizer. Raises ApiError."""
    await asyncio.to_thread(make_file, entry)
    known = facts(entry.path)
    return "rerank" if known.reranks else "embed" if known.embeds else "generate"


def _one_prompt(prompt: str | list[int | str], entry: ModelEntry) -> str | list[int | str]:
    """Return a text, or token ids and texts in a row.

    Raises ApiError for several prompts, which llama.cpp answers as one."""
    if isinstance(prompt, str):
        return prompt
    tokens = [piece for piece in prompt if isinstance(piece, int)]
    if not tokens and len(prompt) != 1:
        raise unsupported("prompt", "one prompt at a time")
    _check_tokens(tokens, entry, "prompt")
    return prompt if tokens else str(prompt[0])


def _check_tokens(tokens: list[int], entry: ModelEntry, param: str) -> None:
    """llama.cpp fails on unknown tokens. Raises ApiError."""
    number = facts(entry.path).num_vocab
    if any(not 0 <= token < number for token in tokens):
        raise invalid(param, f"the model has {number} tokens")


def _error_event(error: ApiError) -> bytes:
    return data_event(LlamaCpp().error(error))
