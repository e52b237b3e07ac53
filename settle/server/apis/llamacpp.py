"""llama.cpp's own API (https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md), as far as clients
call it: texts, gaps in code (Mistral's form too), tokens, templates, and ranking documents."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator
from starlette.responses import Response

from settle.server.apis import Shape
from settle.server.errors import Refusal, invalid, unsupported
from settle.server.gateway import Call, Endpoint, Streamed, begun, replied, told
from settle.server.models.model_catalogue import Entry, facts, make_file, template_of
from settle.server.requests import chat, text_completion
from settle.server.requests.chat_request import ChatRequest, counts
from settle.server.requests.embeddings import reranked
from settle.server.requests.fields import MOST_TOKENS, Adapter, Body, Name, Sampling, Stop, stops
from settle.server.requests.messages import check_messages
from settle.server.requests.text_completion import TextRequest
from settle.server.requests.tools import check_tools, choose
from settle.server.requests.upstream import ask

KINDS = {
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
    json_schema: dict[str, Any] | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    return_tokens: bool | None = None
    timings_per_token: bool | None = None
    t_max_predict_ms: Annotated[int, Field(ge=0, le=1 << 31)] | None = None
    n_indent: Annotated[int, Field(ge=0, le=1 << 16)] | None = None
    # a full context is never shifted, so everything is kept; which slot answers is chosen here
    n_keep: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n_discard: Literal[0] | None = None
    id_slot: Literal[-1] | None = None

    PASSED: ClassVar[tuple[str, ...]] = (
        "post_sampling_probs",
        "return_tokens",
        "timings_per_token",
        "t_max_predict_ms",
        "n_indent",
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _pairs(cls, given: Any) -> Any:
        """llama.cpp's [[token, bias], …] as OpenAI's object; false is never."""
        if not isinstance(given, list):
            return given
        if not all(isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int for pair in given):
            raise ValueError("a list of [token id, bias] is needed")
        return {str(token): -100.0 if bias is False else bias for token, bias in given}

    def to_text(self, entry: Entry) -> TextRequest:
        """Raises Refusal."""
        if self.json_schema is not None and self.grammar:
            raise invalid("grammar", "not together with a JSON schema")
        if self.post_sampling_probs and not self.n_probs:
            raise invalid("post_sampling_probs", "needs n_probs to be 1 or more")
        passed = {name: getattr(self, name) for name in self.PASSED if getattr(self, name) is not None}
        return TextRequest(
            prompt=_one_prompt(self.prompt, entry),
            schema=self.json_schema,
            grammar=self.grammar,
            max_tokens=None if self.n_predict == -1 else self.n_predict,
            stop=stops(self.stop),
            top_logprobs=self.n_probs or None,
            sampling=self.llama(),
            adapters={adapter.id: adapter.scale for adapter in self.lora or []},
            more=passed,
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

    def to_text(self, entry: Entry) -> TextRequest:
        """Raises Refusal."""
        extra = [file.model_dump() for file in self.input_extra or []]
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
        """Raises Refusal. At the end of a file there is no gap, and the text is gone on with."""
        if self.random_seed is not None and self.seed is not None:
            raise invalid("random_seed", "not together with seed")
        seeded = self.model_copy(update={"seed": self.random_seed if self.seed is None else self.seed})
        given = {"max_tokens": self.max_tokens, "stop": stops(self.stop), "sampling": seeded.llama()}
        if not self.suffix:
            return TextRequest(self.prompt, **given)
        return TextRequest("", before=self.prompt, suffix=self.suffix, **given)


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

    messages: Annotated[list[Any], Field(max_length=10_000)]
    model: Name = ""
    tools: Annotated[list[Any], Field(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Document(Body):
    """A document as Cohere's clients send it."""

    text: Text


class RerankBody(Body):
    """What /v1/rerank takes."""

    query: Annotated[str, Field(min_length=1, max_length=1 << 20)]
    documents: Annotated[list[Text | Document], Field(min_length=1, max_length=2048)]
    model: Name = ""
    top_n: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    return_documents: bool | None = None


class LlamaCpp(Shape):
    """Texts, tokens and ranks."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        fim, rank = self.endpoint(fim_completions, FimBody), self.endpoint(rerank, RerankBody)
        return [
            ("POST", "/completion", self.endpoint(completion, CompletionBody)),
            ("POST", "/infill", self.endpoint(infill, InfillBody)),
            ("POST", "/tokenize", self.endpoint(tokenize, TokenizeBody)),
            ("POST", "/detokenize", self.endpoint(detokenize, DetokenizeBody)),
            ("POST", "/apply-template", self.endpoint(apply_template, TemplateBody)),
            ("GET", "/props", self.endpoint(props)),
            *(("POST", path, fim) for path in FIM),
            *(("POST", path, rank) for path in RERANK),
        ]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        kind = KINDS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "server_error")
        kind = "exceed_context_size_error" if refusal.code == "context_length_exceeded" else kind
        return {"error": {"code": refusal.status, "message": refusal.message, "type": kind} | refusal.extra}

    def owns(self, path: str) -> bool:
        ours = ("/completion", "/infill", "/tokenize", "/detokenize", "/apply-template", "/props")
        return path in (*ours, *FIM, *RERANK)


async def completion(call: Call) -> Response:
    return await _completed(call, await call.body(CompletionBody))


async def infill(call: Call) -> Response:
    return await _completed(call, await call.body(InfillBody))


async def _completed(call: Call, body: CompletionBody) -> Response:
    entry = call.gateway.find(call, body.model)
    await asyncio.to_thread(make_file, entry)
    request = body.to_text(entry)
    if body.stream:
        return Streamed(await begun(told(_events(call, request, entry), call.record, _broken_off)), call.record)
    answer = await text_completion.whole(call.gateway, request, entry)
    call.record.usage(counts(answer)["usage"])
    return replied(answer)


async def _events(call: Call, request: TextRequest, entry: Entry) -> AsyncGenerator[bytes]:
    async for event in text_completion.stream(call.gateway, request, entry):
        if event["stop"]:
            call.record.usage(counts(event)["usage"])
        yield _event(event)


async def fim_completions(call: Call) -> Response:
    body = await call.body(FimBody)
    entry = call.gateway.find(call, body.model)
    request = body.to_text()
    if body.stream:
        return Streamed(await begun(told(_fim_stream(call, request, entry), call.record, _broken_off)), call.record)
    answer = await text_completion.whole(call.gateway, request, entry)
    usage = counts(answer)["usage"]
    call.record.usage(usage)
    message = {"role": "assistant", "content": answer["content"], "tool_calls": None}
    reason = "length" if answer["stop_type"] == "limit" else "stop"
    head = {"id": secrets.token_hex(16), "object": "chat.completion", "created": int(time.time()), "model": entry.id}
    return replied(head | {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": usage})


async def _fim_stream(call: Call, request: TextRequest, entry: Entry) -> AsyncGenerator[bytes]:
    """Mistral tells usage with the chunk that has the reason."""
    last: dict[str, Any] = {}
    async for chunk in text_completion.chunks(call.gateway, request, entry):
        if chunk.get("usage"):
            call.record.usage(chunk["usage"])
            yield _event(last | {"usage": chunk["usage"]}) + b"data: [DONE]\n\n"
        elif chunk["choices"][0]["finish_reason"]:
            last = chunk
        else:
            yield _event(chunk)


async def tokenize(call: Call) -> Response:
    body = await call.body(TokenizeBody)
    entry = call.gateway.find(call, body.model)
    asked = body.model_dump(exclude={"model"})
    async with call.gateway.keeper.use(entry, await _any_use(entry)) as loaded:
        return replied(await ask(call.gateway.keeper.session, loaded, "/tokenize", asked))


async def detokenize(call: Call) -> Response:
    body = await call.body(DetokenizeBody)
    entry = call.gateway.find(call, body.model)
    async with call.gateway.keeper.use(entry, await _any_use(entry)) as loaded:
        _check_tokens(body.tokens, entry, "tokens")
        asked = {"tokens": body.tokens}
        return replied(await ask(call.gateway.keeper.session, loaded, "/detokenize", asked))


async def apply_template(call: Call) -> Response:
    body = await call.body(TemplateBody)
    entry = call.gateway.find(call, body.model)
    tools, choice = choose(check_tools(body.tools or []), body.tool_choice)
    request = ChatRequest(
        model=entry.id,
        messages=check_messages(body.messages),
        tools=tools,
        choice=choice,
        arguments=body.chat_template_kwargs or {},
    )
    async with call.gateway.keeper.use(entry) as loaded:
        return replied({"prompt": await chat.rendered(call.gateway, request, entry, loaded)})


async def rerank(call: Call) -> Response:
    body = await call.body(RerankBody)
    entry = call.gateway.find(call, body.model)
    documents = [d.text if isinstance(d, Document) else d for d in body.documents]
    results, tokens = await reranked(call, entry, body.query, documents)
    if body.return_documents:
        results = [result | {"document": {"text": documents[result["index"]]}} for result in results]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return replied({"model": entry.id, "object": "list", "usage": usage, "results": results[: body.top_n]})


async def props(call: Call) -> Response:
    """What a model is served with, or would be: asking does not load it. Its slots are told once it is there."""
    unknown = {*call.request.query_params} - {"model"}
    if unknown:
        raise unsupported(sorted(unknown)[0][:100], "not known here")
    entry = call.gateway.find(call, call.request.query_params.get("model", ""))
    known, keeper = facts(entry.path), call.gateway.keeper
    loaded = keeper.of(entry)
    context = loaded.context if loaded else keeper.context_of(known)
    return replied(
        {
            "default_generation_settings": {"n_ctx": context, "params": {}},
            "total_slots": loaded.slots if loaded else keeper.keeping.slots or 1,
            "model_alias": entry.id,
            "model_path": entry.id,  # where it lies is nobody's business
            "modalities": {"vision": False, "audio": False},
            "chat_template": template_of(entry) or "",
            "chat_template_caps": loaded.caps if loaded else {},
            "build_info": "settle",
            "is_sleeping": loaded is None,
        }
    )


async def _any_use(entry: Entry) -> Literal["generate", "embed", "rerank"]:
    """A use that the model is for: every child knows the tokens. Raises Refusal."""
    await asyncio.to_thread(make_file, entry)
    known = facts(entry.path)
    return "rerank" if known.reranks else "embed" if known.embeds else "generate"


def _one_prompt(given: str | list[int | str], entry: Entry) -> str | list[Any]:
    """A text, or token ids and texts in a row. Raises Refusal for several prompts, which llama.cpp answers as one."""
    if isinstance(given, str):
        return given
    if len(given) == 1 and isinstance(given[0], str):
        return given[0]
    if not any(isinstance(piece, int) for piece in given):
        raise unsupported("prompt", "one prompt at a time")
    _check_tokens([piece for piece in given if isinstance(piece, int)], entry, "prompt")
    return given


def _check_tokens(tokens: list[int], entry: Entry, param: str) -> None:
    """llama.cpp fails on a token that there is not. Raises Refusal."""
    number = facts(entry.path).num_vocab
    if any(not 0 <= token < number for token in tokens):
        raise invalid(param, f"the model has {number} tokens")


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _broken_off(refusal: Refusal) -> bytes:
    return _event(LlamaCpp().error(refusal))
