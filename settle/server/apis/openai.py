"""OpenAI's API (https://platform.openai.com/docs/api-reference), under /v1 and without it, as clients call it."""

import base64
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from starlette.responses import Response

from settle.infer.child_process import ALIAS
from settle.server.apis import Shape
from settle.server.errors import Refusal, in_words_of_openai, invalid, only, unsupported
from settle.server.gateway import Call, Endpoint, Gateway, Streamed, begun, replied, told
from settle.server.models.model_catalogue import Entry, capabilities, facts
from settle.server.models.model_pool import Loaded
from settle.server.requests import chat
from settle.server.requests.chat_request import ChatRequest, HelpedPlan
from settle.server.requests.embeddings import embedded
from settle.server.requests.fields import MOST_TOKENS, Adapter, Body, Name, Sampling, Stop, effort_arguments, stops
from settle.server.requests.messages import check_messages
from settle.server.requests.text_completion import TextRequest, prepared
from settle.server.requests.tools import check_tools, choose
from settle.server.requests.upstream import ask, events, open_stream, refused

Also = Callable[[dict[str, Any]], dict[str, Any]]

DONE = b"data: [DONE]\n\n"
MOST_INPUTS = 2048


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ChatBody(Sampling):
    """What /v1/chat/completions takes."""

    messages: Annotated[list[Any], Field(max_length=10_000)]
    model: Name = ""
    max_tokens: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Any], Field(max_length=512)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    json_schema: dict[str, Any] | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    timings_per_token: bool | None = None
    # what the maker of a hosted API keeps books with: noted in the audit, or true here anyway
    user: Name | None = None
    safety_identifier: Name | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: Name | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None

    def to_chat(self) -> ChatRequest:
        """Raises Refusal."""
        tools, choice = choose(check_tools(self.tools or []), self.tool_choice)
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "needs logprobs to be true")
        arguments = (self.chat_template_kwargs or {}) | effort_arguments(self.reasoning_effort)
        given = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        schema = _schema(self.response_format) if self.response_format else self.json_schema
        if schema is not None and self.grammar:
            raise invalid("grammar", "not together with a JSON schema")
        return ChatRequest(
            model=self.model,
            messages=check_messages(self.messages),
            tools=tools,
            choice=choice,
            is_parallel=self.parallel_tool_calls,
            schema=schema,
            grammar=self.grammar,
            max_tokens=None if given == -1 else given,
            stop=stops(self.stop),
            n=self.n or 1,
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            sampling=self.llama(),
            arguments=arguments,
            adapters={a.id: a.scale for a in self.lora or []},
            timings=bool(self.timings_per_token),
        )


class CompletionBody(Sampling):
    """What /v1/completions takes."""

    prompt: str | list[str] | list[int] | list[list[int]]
    model: Name = ""
    max_tokens: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n_predict: Annotated[int, Field(ge=-1, le=MOST_TOKENS)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    best_of: Literal[1] | None = None
    stop: Stop = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    grammar: Annotated[str, Field(max_length=1 << 20)] | None = None
    json_schema: dict[str, Any] | None = None
    lora: Annotated[list[Adapter], Field(max_length=16)] | None = None
    user: Name | None = None


class EmbeddingBody(Body):
    """What /v1/embeddings takes."""

    input: str | list[str] | list[int] | list[list[int]]
    model: Name = ""
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=1 << 20)] | None = None
    user: Name | None = None


class OpenAI(Shape):
    """Chat, completions, embeddings and models."""

    is_fallback: ClassVar[bool] = True
    ALIASES: ClassVar[tuple[str, ...]] = ("/v1", "")

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        posts = [
            ("/chat/completions", self.endpoint(chat_completions, ChatBody)),
            ("/completions", self.endpoint(completions, CompletionBody)),
            ("/embeddings", self.endpoint(embeddings, EmbeddingBody)),
            ("/chat/completions/input_tokens", self.endpoint(input_tokens, ChatBody)),
        ]
        gets = [("/models", self.endpoint(models)), ("/models/{model:path}", self.endpoint(model))]
        return [
            (method, alias + path, endpoint)
            for alias in self.ALIASES
            for method, found in (("POST", posts), ("GET", gets))
            for path, endpoint in found
        ]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        return in_words_of_openai(refusal)


async def chat_completions(call: Call) -> Response:
    body = await call.body(ChatBody)
    call.record.user = body.user or body.safety_identifier or ""
    request = body.to_chat()
    entry = call.gateway.find(call, body.model)
    if not body.stream:
        answer = await chat.whole(call.gateway, request, entry)
        call.record.usage(answer.get("usage"))
        return replied(answer)
    wants_usage = bool(body.stream_options and body.stream_options.include_usage)
    pieces = _chat_stream(call, request, entry, wants_usage)
    return Streamed(await begun(told(pieces, call.record, _broken_off)), call.record)


async def _chat_stream(call: Call, request: ChatRequest, entry: Entry, wants_usage: bool) -> AsyncGenerator[bytes]:
    """llama.cpp's own stream, handed on as it comes where nothing in it has to be changed."""
    keeper = call.gateway.keeper
    if entry.collection:
        answer = _written(call, chat.stream(call.gateway, request, entry), wants_usage)
        async with contextlib.aclosing(answer) as pieces:
            async for event in pieces:
                yield event
        return
    async with keeper.use(entry) as loaded:
        plan = await chat.prepare(call.gateway, request, entry, loaded)
        if isinstance(plan, HelpedPlan) or plan.trimmed or request.top_logprobs is not None:
            answer = _written(call, plan.chunks(keeper.session, loaded), wants_usage)
            async with contextlib.aclosing(answer) as pieces:
                async for event in pieces:
                    yield event
            return
        rest, theirs, ours = b"", json.dumps(ALIAS).encode(), json.dumps(entry.id).encode()
        async with await plan.open(keeper.session, loaded) as response:
            async for piece in response.content.iter_any():
                if (
                    not rest
                    and b"reasoning_content" not in piece
                    and b'"usage"' not in piece
                    and piece.endswith(b"\n\n")
                ):
                    yield piece.replace(theirs, ours)
                    continue
                *whole, rest = (rest + piece).split(b"\n\n")
                tidied = b"".join(_tidied(event, call, wants_usage, entry.id) for event in whole)
                if tidied:
                    yield tidied


async def _written(call: Call, chunks: AsyncGenerator[dict[str, Any]], wants_usage: bool) -> AsyncGenerator[bytes]:
    async with contextlib.aclosing(chunks):
        async for chunk in chunks:
            if not chunk["choices"]:
                call.record.usage(chunk.get("usage"))
            if chunk["choices"] or wants_usage or chunk.get("settle"):
                yield _event(chunk)
    yield DONE


def _tidied(event: bytes, call: Call, wants_usage: bool, model: str) -> bytes:
    """One event of llama.cpp's stream: reasoning under both names, usage only for those who asked."""
    if not event.startswith(b"data: {"):
        return event + b"\n\n" if event.strip() else b""
    chunk = json.loads(event[6:].decode("utf-8", "replace"))
    if "error" in chunk:
        raise refused(500, event[6:])
    chunk["model"] = model
    if "usage" in chunk:
        call.record.usage(chunk["usage"])
        if not wants_usage and not chunk["choices"]:
            return b""
    for choice in chunk.get("choices", ()):
        reasoning = choice["delta"].get("reasoning_content")
        if reasoning is not None:
            choice["delta"]["reasoning"] = reasoning
    return _event(chunk)


async def input_tokens(call: Call) -> Response:
    body = await call.body(ChatBody)
    entry = call.gateway.find(call, body.model)
    number = await chat.count(call.gateway, body.to_chat(), entry)
    return replied({"object": "response.input_tokens", "input_tokens": number})


async def completions(call: Call) -> Response:
    return await completed(call, await call.body(CompletionBody))


async def completed(call: Call, body: CompletionBody, also: Also = lambda _: {}) -> Response:
    """also: what the answer holds beside OpenAI's fields, made from the part of it that has the timings."""
    call.record.user = body.user or ""
    entry = call.gateway.find(call, body.model)
    prompts = _prompts(body.prompt)
    if body.stream:
        if len(prompts) > 1 or (body.n or 1) > 1:
            raise unsupported("stream", "one prompt and one answer at a time")
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        pieces = _completion_stream(call, body, entry, prompts[0], wants_usage, also)
        return Streamed(await begun(told(pieces, call.record, _broken_off)), call.record)
    async with call.gateway.keeper.use(entry) as loaded:
        request = await _completion(call.gateway, body, entry, loaded)
        if (body.n or 1) > loaded.slots:
            raise unsupported("n", f"{loaded.slots} answers at a time are the most here")
        answers = []
        for prompt in prompts:
            asked = request | {"prompt": prompt} | ({"n": body.n} if body.n else {})
            answers.append(await ask(call.gateway.keeper.session, loaded, "/v1/completions", asked))
            if body.echo:
                text = await _text(call.gateway, loaded, prompt)
                for choice in answers[-1]["choices"]:
                    choice["text"] = text + choice["text"]
    choices = [choice for answer in answers for choice in answer["choices"]]
    for index, choice in enumerate(choices):
        choice["index"] = index
        choice["logprobs"] = _legacy(choice.get("logprobs"), body.logprobs)
    usage = {
        key: sum(answer["usage"][key] for answer in answers)
        for key in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    call.record.usage(usage)
    return replied(answers[0] | {"model": entry.id, "choices": choices, "usage": usage} | also(answers[0]))


async def _completion_stream(
    call: Call, body: CompletionBody, entry: Entry, prompt: Any, wants_usage: bool, also: Also
) -> AsyncGenerator[bytes]:
    keeper = call.gateway.keeper
    async with keeper.use(entry) as loaded:
        request = await _completion(call.gateway, body, entry, loaded)
        request |= {"prompt": prompt, "stream": True}
        request["stream_options"] = {"include_usage": True}
        echoed = await _text(call.gateway, loaded, prompt) if body.echo else ""
        async with await open_stream(keeper.session, loaded, "/v1/completions", request) as response:
            async for chunk in events(response):
                if chunk.get("usage"):
                    call.record.usage(chunk["usage"])
                    if not wants_usage:
                        chunk.pop("usage")
                        if not chunk["choices"]:
                            continue
                for choice in chunk["choices"]:
                    choice["text"], echoed = echoed + choice.get("text", ""), ""
                    choice["logprobs"] = _legacy(choice.get("logprobs"), body.logprobs)
                more = also(chunk) if "timings" in chunk else {}
                yield _event(chunk | {"model": entry.id} | more)
        yield DONE


async def _completion(gateway: Gateway, body: CompletionBody, entry: Entry, loaded: Loaded) -> dict[str, Any]:
    """What llama.cpp is asked, but for the prompt. Raises Refusal."""
    most = body.max_tokens if body.max_tokens is not None else body.n_predict
    request = TextRequest(
        prompt="",
        schema=body.json_schema,
        grammar=body.grammar,
        max_tokens=16 if most is None else most,  # OpenAI's default
        stop=stops(body.stop),
        top_logprobs=body.logprobs,
        sampling=body.llama(),
        adapters={a.id: a.scale for a in body.lora or []},
    )
    return await prepared(gateway, request, entry, loaded) | {"model": entry.id}


async def _text(gateway: Gateway, loaded: Loaded, prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    told = await ask(gateway.keeper.session, loaded, "/detokenize", {"tokens": prompt})
    return str(told["content"])


def _prompts(given: Any) -> list[Any]:
    """Each prompt: a text or token ids."""
    prompts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else list(given)
    if not prompts or len(prompts) > MOST_INPUTS:
        raise invalid("prompt", f"1 to {MOST_INPUTS} prompts")
    return prompts


def _legacy(logprobs: dict[str, Any] | None, wanted: int | None) -> dict[str, Any] | None:
    """Probabilities as /v1/completions has them: lists beside each other."""
    if logprobs is None or wanted is None:
        return None
    tokens = logprobs["content"]
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{t["token"]: t["logprob"] for t in token["top_logprobs"][:wanted]} for token in tokens],
        "text_offset": offsets,
    }


async def embeddings(call: Call) -> Response:
    return await embed(call, await call.body(EmbeddingBody))


async def embed(call: Call, body: EmbeddingBody) -> Response:
    call.record.user = body.user or ""
    entry = call.gateway.find(call, body.model)
    vectors, tokens = await embedded(call, entry, _prompts(body.input))
    if body.dimensions is not None and vectors and body.dimensions != len(vectors[0]):
        raise unsupported("dimensions", f"{entry.id} makes vectors of {len(vectors[0])} numbers")
    encode = (
        (lambda v: base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode())
        if body.encoding_format == "base64"
        else list
    )
    data = [{"object": "embedding", "index": i, "embedding": encode(v)} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return replied({"object": "list", "data": data, "model": entry.id, "usage": usage})


async def models(call: Call) -> Response:
    entries = call.gateway.catalogue.offered()
    return replied({"object": "list", "data": [_model(call.gateway, entry) for entry in entries]})


async def model(call: Call) -> Response:
    return replied(_model(call.gateway, call.gateway.find(call, call.path["model"])))


def _model(gateway: Gateway, entry: Entry) -> dict[str, Any]:
    """OpenAI's fields, and what clients look for in others' lists: the context under its several names."""
    told: dict[str, Any] = {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "settle"}
    loaded = gateway.keeper.of(entry)
    told["status"] = {"value": "loaded" if loaded else "unloaded"}
    with contextlib.suppress(Refusal):
        known = facts(entry.path)
        length = loaded.context if loaded else gateway.keeper.context_of(known)
        told |= {"context_length": length, "max_model_len": length}
        told["meta"] = {
            "n_ctx": length,
            "n_ctx_train": known.context,
            "n_params": known.parameters,
            "size": known.bytes,
        }
        told["meta"] |= {"n_embd": known.width, "n_vocab": known.num_vocab}
        told["capabilities"] = capabilities(entry)
    return told


def _schema(form: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of an answer, {} for any object, None for text. Raises Refusal."""
    where = "response_format"
    kind = form.get("type")
    if kind == "text":
        only(form, ("type",), where)
        return None
    if kind == "json_object":  # llama.cpp's clients put a schema here
        only(form, ("type", "schema"), where)
        schema = form.get("schema", {})
    elif kind == "json_schema":
        only(form, ("type", "json_schema"), where)
        inner = form.get("json_schema")
        if not isinstance(inner, dict):
            raise invalid(f"{where}.json_schema", "must be an object")
        only(inner, ("name", "description", "schema", "strict"), f"{where}.json_schema")
        schema = inner.get("schema")
    else:
        raise invalid(f"{where}.type", "one of text, json_object, json_schema")
    if not isinstance(schema, dict):
        raise invalid(
            f"{where}.schema" if kind == "json_object" else f"{where}.json_schema.schema", "must be an object"
        )
    return schema or ({} if kind == "json_object" else {"type": "object"})


def _event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _broken_off(refusal: Refusal) -> bytes:
    return _event(OpenAI().error(refusal)) + DONE
