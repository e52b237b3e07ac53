"""OpenAI's API (https://platform.openai.com/docs/api-reference), under /v1 and without it, as clients call it."""

import base64
import contextlib
import json
import struct
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import ClassVar

from starlette.responses import Response

from settle.infer.child_process import ALIAS
from settle.server.apis import Api
from settle.server.gateway import Call, Endpoint, data_event, json_response, streamed
from settle.server.grammars import AnswerCheck
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_entry import ModelEntry, capabilities, facts
from settle.server.models.model_pool import ModelPool
from settle.server.requests import chat
from settle.server.requests.engine import (
    COMPLETIONS_PATH,
    GrammarWatch,
    ask,
    detokenize,
    engine_error,
    is_constrained,
    open_stream,
    read_events,
    require_possible,
)
from settle.server.requests.readings import embed_texts, require_dimensions
from settle.server.requests.text_completion import prepare
from settle.wire.errors import ApiError, openai_error, unsupported
from settle.wire.formats.openai import ChatBody, CompletionBody, EmbeddingBody, Prompt, prompts_of
from settle.wire.types import ChatRequest, Choice, Chunk, JsonObject, Logprobs, Usage

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
    if entry.collection:
        events = _event_stream(call, chat.stream(call.backend, request, entry), body.wants_usage)
    else:
        events = _chat_stream(call, request, entry, body.wants_usage)
    return await streamed(events, call.record, error_event)


async def _chat_stream(call: Call, request: ChatRequest, entry: ModelEntry, wants_usage: bool) -> AsyncGenerator[bytes]:
    """llama.cpp's own stream, passed on as it comes where nothing in it has to be changed."""
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
                for event in events:  # one by one: what came before a fault arrives
                    if tidied := _tidied(event, call, wants_usage, entry.id):
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
    call.record.user = body.user or ""
    entry = call.find(body.model)
    vectors, tokens = await embed_texts(call.pool, entry, prompts_of(body.input))
    call.record.prompt_tokens = tokens
    require_dimensions(body.dimensions, vectors, entry)
    made: list[object] = [*vectors]
    if body.encoding_format == "base64":
        made = [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(made)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({"object": "list", "data": data, "model": entry.id, "usage": usage})


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


DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Completion:
    """A completion while it is answered.

    extra: fields of the answer beside OpenAI's, made from the part of it that has the timings."""

    call: Call
    body: CompletionBody
    entry: ModelEntry
    extra: Callable[[Chunk], JsonObject] = lambda _: {}

    async def respond(self) -> Response:
        """Return the response. Raises ApiError."""
        body = self.body
        self.call.record.user = body.user or ""
        prompts = prompts_of(body.prompt)
        if body.stream:
            if len(prompts) > 1 or (body.n or 1) > 1:
                raise unsupported("stream", "one prompt and one answer at a time")
            return await streamed(self._stream(prompts[0]), self.call.record, error_event)
        return await self._whole(prompts)

    async def _whole(self, prompts: list[Prompt]) -> Response:
        body = self.body
        async with self.call.pool.use(self.entry) as loaded:
            request = await self._request(loaded)
            if (body.n or 1) > loaded.slots:
                raise unsupported("n", f"at most {loaded.slots} answers at a time")
            answers = []
            for prompt in prompts:
                require_possible([prompt], loaded)
                number = {"n": body.n} if body.n else {}
                answer = await ask(loaded, COMPLETIONS_PATH, request | {"prompt": prompt} | number)
                check = AnswerCheck(loaded, body.to_text(), request)
                for choice in answer["choices"]:
                    check.add(choice["text"], choice["index"])
                    await check.finish(choice["finish_reason"] == "stop", choice["index"])
                if body.echo:
                    text = await _text(loaded, prompt)
                    for choice in answer["choices"]:
                        choice["text"] = text + choice["text"]
                answers.append(answer)
        every = enumerate(choice for answer in answers for choice in answer["choices"])
        choices = [_with_old_logprobs(choice | {"index": index}, body.logprobs) for index, choice in every]
        usage: Usage = {
            "prompt_tokens": sum(answer["usage"]["prompt_tokens"] for answer in answers),
            "completion_tokens": sum(answer["usage"]["completion_tokens"] for answer in answers),
            "total_tokens": sum(answer["usage"]["total_tokens"] for answer in answers),
        }
        self.call.record.usage(usage)
        fields = {"model": self.entry.id, "choices": choices, "usage": usage}
        return json_response({**answers[0], **fields, **self.extra(answers[0])})

    async def _stream(self, prompt: Prompt) -> AsyncGenerator[bytes]:
        body, wants_usage = self.body, self.body.wants_usage
        async with self.call.pool.use(self.entry) as loaded:
            require_possible([prompt], loaded)
            request = await self._request(loaded) | {"prompt": prompt, "stream": True}
            request["stream_options"] = {"include_usage": True}
            echo = await _text(loaded, prompt) if body.echo else ""
            watch, check = GrammarWatch(loaded, request), AnswerCheck(loaded, body.to_text(), request)
            async with await open_stream(loaded, COMPLETIONS_PATH, request) as response:
                async for chunk in read_events(response, watch):
                    if chunk.get("usage"):
                        self.call.record.usage(chunk["usage"])
                        if not wants_usage:
                            del chunk["usage"]
                            if not chunk["choices"]:
                                continue
                    choices = []
                    for choice in chunk["choices"]:
                        check.add(choice.get("text"))
                        if choice.get("finish_reason"):
                            await check.finish(choice["finish_reason"] == "stop")
                        choice["text"], echo = echo + choice.get("text", ""), ""
                        choices.append(_with_old_logprobs(choice, body.logprobs))
                    extra = self.extra(chunk) if "timings" in chunk else {}
                    yield data_event({**chunk, "choices": choices, "model": self.entry.id, **extra})
        yield DONE

    async def _request(self, loaded: LoadedModel) -> JsonObject:
        """Return the body for llama.cpp, without the prompt. Raises ApiError."""
        request = await prepare(self.call.backend.catalogue, self.body.to_text(), self.entry, loaded)
        return request | {"model": self.entry.id}


def error_event(error: ApiError) -> bytes:
    """How a stream ends that broke off."""
    return data_event(openai_error(error)) + DONE


async def _text(loaded: LoadedModel, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else await detokenize(loaded, prompt)


def _with_old_logprobs(choice: Choice, num_wanted: int | None) -> JsonObject:
    logprobs = choice.get("logprobs")
    old = None if logprobs is None or num_wanted is None else _old_logprobs(logprobs, num_wanted)
    return {**choice, "logprobs": old}


def _old_logprobs(logprobs: Logprobs, num_wanted: int) -> JsonObject:
    """As /v1/completions has them: lists side by side."""
    tokens = logprobs["content"]
    offsets, length = [], 0
    for token in tokens:
        offsets.append(length)
        length += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{t["token"]: t["logprob"] for t in token["top_logprobs"][:num_wanted]} for token in tokens],
        "text_offset": offsets,
    }
