"""Ollama's API (https://docs.ollama.com/api): lines of JSON, models with tags, and changes of the store."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from settle.base.version import __version__
from settle.server.apis import Shape
from settle.server.apis.ollama import models
from settle.server.apis.ollama.requests import (
    Asked,
    ChatBody,
    EmbedBody,
    GenerateBody,
    Loading,
    OldEmbedBody,
    check_context,
    seconds,
)
from settle.server.errors import Refusal, invalid, unsupported
from settle.server.gateway import Call, Endpoint, Streamed, begun, replied, told
from settle.server.models import store_changes
from settle.server.models.model_catalogue import Entry, facts, make_file
from settle.server.requests import chat, text_completion
from settle.server.requests.embeddings import embedded, shortened
from settle.server.requests.fields import Body, Name

VERSION = "0.32.7"  # of the Ollama whose API this is: clients turn off what an older one would not know
LINES = "application/x-ndjson"
Named = Annotated[Name, Field(min_length=1)]  # where a change is asked for: never of whatever there happens to be
OURS = {"response_format": "format", "reasoning_effort": "think"}  # fields that Ollama calls something else


class OneModel(Body):
    """A body about one model, by Ollama's name for the field or its earlier one."""

    model: Name = ""
    name: Name = ""

    @property
    def asked(self) -> str:
        """Raises Refusal when the two fields tell of two models."""
        if self.model and self.name and self.model != self.name:
            raise invalid("name", "is another model than the one in the field model")
        return self.model or self.name


class ShowBody(OneModel):
    """What /api/show takes; clients of before 2024 send `name`."""

    verbose: bool | None = None


class PullBody(OneModel):
    """What /api/pull takes."""

    stream: bool | None = None
    insecure: Literal[False] | None = None


class CopyBody(Body):
    """What /api/copy takes."""

    source: Named
    destination: Named


class DeleteBody(OneModel):
    """What /api/delete takes."""


class CreateBody(Body):
    """What /api/create takes: a model that is here, and an adapter over it that is here. What Ollama puts around a
    model (template, system, parameters, messages, license) is for the requests to say, and files come by `settle pull`.
    """

    model: Named
    source: Named = Field(alias="from")
    adapters: Annotated[dict[Name, Literal[""]], Field(max_length=1)] | None = None
    stream: bool | None = None


class Ollama(Shape):
    """Chat, texts, vectors, and the store."""

    def endpoints(self) -> list[tuple[str, str, Endpoint]]:
        made = [
            ("GET", "/", root, None),
            ("GET", "/api/version", version, None),
            ("GET", "/api/tags", tags, None),
            ("GET", "/api/ps", ps, None),
            ("POST", "/api/show", show, ShowBody),
            ("POST", "/api/chat", chat_lines, ChatBody),
            ("POST", "/api/generate", generate, GenerateBody),
            ("POST", "/api/embed", embed, EmbedBody),
            ("POST", "/api/embeddings", embeddings, OldEmbedBody),
            ("POST", "/api/pull", pull, PullBody),
            ("POST", "/api/copy", copy, CopyBody),
            ("DELETE", "/api/delete", delete, DeleteBody),
            ("POST", "/api/create", create, CreateBody),
            ("POST", "/api/push", push, None),
            ("GET", "/api/blobs/{digest}", blobs, None),
            ("POST", "/api/blobs/{digest}", blobs, None),
        ]
        return [(method, path, self.endpoint(handler, takes)) for method, path, handler, takes in made]

    def error(self, refusal: Refusal) -> dict[str, Any]:
        said, param = refusal.message, refusal.param or ""
        if param in OURS and said.startswith(f"{param}: "):
            said = OURS[param] + said.removeprefix(param)
        return {"error": said}

    def owns(self, path: str) -> bool:
        return path == "/" or (path.startswith("/api/") and not path.startswith(("/api/v0/", "/api/v1/")))


async def root(call: Call) -> Response:
    return PlainTextResponse("Ollama is running")


async def version(call: Call) -> Response:
    return replied({"version": VERSION, "settle": __version__})


async def tags(call: Call) -> Response:
    return replied({"models": await asyncio.to_thread(models.listed, call.gateway)})


async def ps(call: Call) -> Response:
    return replied({"models": await asyncio.to_thread(models.running, call.gateway)})


async def show(call: Call) -> Response:
    body = await call.body(ShowBody)
    entry = call.gateway.find(call, body.asked)
    await asyncio.to_thread(make_file, entry)
    return replied(await asyncio.to_thread(models.shown, call.gateway, entry, bool(body.verbose)))


async def chat_lines(call: Call) -> Response:
    body = await call.body(ChatBody)
    entry = call.gateway.find(call, body.model)
    if not body.messages:
        return await _only_loaded(call, body, entry)
    answer = await _begin(call, body, entry)
    request = body.to_chat(entry, answer.context)
    return await _answered(call, body, answer, chat.stream(call.gateway, request, entry))


async def generate(call: Call) -> Response:
    body = await call.body(GenerateBody)
    entry = call.gateway.find(call, body.model)
    if not body.prompt and not body.suffix:
        return await _only_loaded(call, body, entry)
    answer = await _begin(call, body, entry)
    if await asyncio.to_thread(body.is_text, entry):
        chunks = text_completion.chunks(call.gateway, body.to_text(entry, answer.context), entry)
    else:
        chunks = chat.stream(call.gateway, body.to_chat(entry, answer.context), entry)
    return await _answered(call, body, answer, chunks)


class Answer:
    """Lines of one answer, made from OpenAI's chunks. name: of the model, as the client called it."""

    def __init__(self, entry: Entry, name: str, is_chat: bool, context: int, loading: int) -> None:
        self.entry, self.context, self.loading = entry, context, loading
        self._head, self._is_chat = {"model": name or entry.id}, is_chat
        self._began = time.monotonic_ns() - loading
        self._calls: dict[int, dict[str, Any]] = {}
        self._reason = "stop"

    def lines(self, chunk: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            for call in delta.get("tool_calls") or ():
                self._gather(call)
            text, thought = delta.get("content") or "", delta.get("reasoning_content")
            if text or thought or choice.get("logprobs"):
                yield self._line(text, thought, choice.get("logprobs"))
            if choice.get("finish_reason"):
                self._reason = "length" if choice["finish_reason"] == "length" else "stop"
                if self._calls:
                    yield from self._told_calls()
        if chunk.get("usage"):
            yield self.done(self._reason) | _counts(chunk)

    def done(self, reason: str) -> dict[str, Any]:
        spent = {"total_duration": time.monotonic_ns() - self._began, "load_duration": self.loading}
        return self._line("") | {"done": True, "done_reason": reason} | spent

    def merged(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        """All the lines as one."""
        whole = dict(lines[-1])
        pieces = [line["message"] if self._is_chat else line for line in lines]
        text = "".join(said["content" if self._is_chat else "response"] for said in pieces)
        thought = "".join(said.get("thinking", "") for said in pieces)
        calls = [call for said in pieces for call in said.get("tool_calls", ())]
        logprobs = [token for line in lines for token in line.get("logprobs", ())]
        extra: dict[str, Any] = ({"thinking": thought} if thought else {}) | ({"tool_calls": calls} if calls else {})
        if self._is_chat:
            whole["message"] = {"role": "assistant", "content": text} | extra
        else:
            whole |= {"response": text} | extra
        return whole | ({"logprobs": logprobs} if logprobs else {})

    def _line(self, text: str, thought: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        head: dict[str, Any] = self._head | {"created_at": models.now()}
        thinking = {"thinking": thought} if thought else {}
        if self._is_chat:
            head["message"] = {"role": "assistant", "content": text} | thinking
        else:
            head |= {"response": text} | thinking
        told = {"logprobs": [_token(t) for t in logprobs["content"]]} if logprobs else {}
        return head | {"done": False} | told

    def _gather(self, call: dict[str, Any]) -> None:
        """Ollama tells a call whole, with its arguments as an object."""
        kept = self._calls.setdefault(call.get("index", 0), {"id": "", "name": "", "arguments": ""})
        function = call.get("function", {})
        kept["id"] = call.get("id") or kept["id"]
        kept["name"] += function.get("name") or ""
        kept["arguments"] += function.get("arguments") or ""

    def _told_calls(self) -> Iterator[dict[str, Any]]:
        calls = []
        for index, call in sorted(self._calls.items()):
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except ValueError:  # cut off by num_predict: told as it came, so that nothing is lost
                yield self._line(f"{call['name']} {call['arguments']}")
                continue
            function = {"index": index, "name": call["name"], "arguments": arguments}
            calls.append({"id": call["id"], "function": function})
        if calls:
            line = self._line("")
            line["message"]["tool_calls"] = calls
            yield line


async def _begin(call: Call, body: Asked, entry: Entry) -> Answer:
    """Loads the model, unless that would be in vain. Raises Refusal."""
    seconds(body.keep_alive)
    began = time.monotonic_ns()
    context = await _ready(call, entry, body.given, "generate")
    return Answer(entry, body.model, isinstance(body, ChatBody), context, time.monotonic_ns() - began)


async def _ready(call: Call, entry: Entry, options: Loading, use: Literal["generate", "embed"]) -> int:
    """Tokens of context of the child that will answer. Raises Refusal for options that do not hold there."""
    options.check()
    keeper = call.gateway.keeper
    await asyncio.to_thread(make_file, entry)
    known = await asyncio.to_thread(facts, entry.path)
    check_context(options.num_ctx, keeper.context_of(known), known.context, entry)
    async with keeper.use(entry, use) as loaded:
        check_context(options.num_ctx, loaded.context, known.context, entry)
        return loaded.context


async def _only_loaded(call: Call, body: Asked, entry: Entry) -> Response:
    """Nothing to answer: Ollama's way to load a model, or with keep_alive 0 to unload it."""
    idle = seconds(body.keep_alive)
    if idle == 0:
        body.given.check()
        await call.gateway.keeper.unload(entry)
        return replied(Answer(entry, body.model, isinstance(body, ChatBody), 0, 0).done("unload"))
    answer = await _begin(call, body, entry)
    if idle is not None:
        await call.gateway.keeper.keep(entry, idle)
    return replied(answer.done("load"))


async def _answered(call: Call, body: Asked, answer: Answer, chunks: AsyncIterator[dict[str, Any]]) -> Response:
    lines = _lines(call, body, answer, chunks)
    if body.stream is False:
        return replied(answer.merged([line async for line in lines]))
    return Streamed(await begun(_written(lines, call)), call.record, LINES)


async def _lines(
    call: Call, body: Asked, answer: Answer, chunks: AsyncIterator[dict[str, Any]]
) -> AsyncGenerator[dict[str, Any]]:
    """The lines; then the model is kept for as long as was asked."""
    is_begun = False
    try:
        async for chunk in chunks:
            call.record.usage(chunk.get("usage"))
            for line in answer.lines(chunk):
                is_begun = True
                yield line
    finally:
        idle = seconds(body.keep_alive)
        if is_begun and idle is not None:
            await call.gateway.keeper.keep(answer.entry, idle)


async def embed(call: Call) -> Response:
    body = await call.body(EmbedBody)
    entry = call.gateway.find(call, body.model)
    idle, began = seconds(body.keep_alive), time.monotonic_ns()
    await _ready(call, entry, body.options or Loading(), "embed")
    loading = time.monotonic_ns() - began
    inputs: list[Any] = [body.input] if isinstance(body.input, str) else list(body.input or [])
    inputs, cut = [] if inputs == [""] else inputs, 0
    if body.truncate and inputs:
        inputs, cut = await shortened(call, entry, inputs)
    vectors, tokens = await embedded(call, entry, inputs) if inputs else ([], 0)
    if body.dimensions is not None and vectors and body.dimensions != len(vectors[0]):
        raise unsupported("dimensions", f"{entry.id} makes vectors of {len(vectors[0])} numbers")
    if idle is not None:
        await call.gateway.keeper.keep(entry, idle)
    answer: dict[str, Any] = {"model": body.model or entry.id, "embeddings": vectors}
    answer |= {"total_duration": time.monotonic_ns() - began, "load_duration": loading, "prompt_eval_count": tokens}
    return replied(answer | ({"settle": {"truncated": cut}} if cut else {}))


async def embeddings(call: Call) -> Response:
    body = await call.body(OldEmbedBody)
    entry = call.gateway.find(call, body.model)
    idle = seconds(body.keep_alive)
    await _ready(call, entry, body.options or Loading(), "embed")
    vectors, _ = await embedded(call, entry, [body.prompt]) if body.prompt else ([[]], 0)
    if idle is not None:
        await call.gateway.keeper.keep(entry, idle)
    return replied({"embedding": vectors[0]})


async def pull(call: Call) -> Response:
    body = await call.body(PullBody)
    name = body.asked
    if any(name.removesuffix(":latest") in (e.id, *e.aliases) for e in call.gateway.catalogue.entries()):
        lines = _are(f"{name} is here", "success")
    else:
        store_changes.require_open(call.gateway)
        offer = await asyncio.to_thread(store_changes.offer_for, name, call.gateway.pull_from)
        lines = store_changes.pull(call.gateway, offer)
    return await _statuses(call, body.stream, lines)


async def copy(call: Call) -> Response:
    body = await call.body(CopyBody)
    await store_changes.copy(call.gateway, call.gateway.find(call, body.source), body.destination)
    return Response(status_code=200)


async def create(call: Call) -> Response:
    body = await call.body(CreateBody)
    entry = call.gateway.find(call, body.source)
    for name in body.adapters or ():
        over = call.gateway.find(call, name if ":" in name else f"{entry.id}:{name}")
        if not over.adapter or over.path != entry.path:
            raise unsupported("adapters", f"{over.id} is no adapter over {entry.id}")
        entry = over
    await store_changes.copy(call.gateway, entry, body.model)
    return await _statuses(call, body.stream, _are(f"using {entry.id}", "success"))


async def delete(call: Call) -> Response:
    body = await call.body(DeleteBody)
    name = body.asked
    if not name:
        raise Refusal(400, "model is missing", "missing_required_parameter", "model")
    await store_changes.delete(call.gateway, call.gateway.find(call, name))
    return Response(status_code=200)


async def push(call: Call) -> Response:
    raise Refusal(501, "nothing is pushed from here; `settle export` writes a model as a file", "not_supported")


async def blobs(call: Call) -> Response:
    said = "no files are taken over the network; `settle pull PATH` puts one into the store, on the server's machine"
    raise Refusal(403, said, "not_allowed")


async def _are(*statuses: str) -> AsyncIterator[dict[str, Any]]:
    for status in statuses:
        yield {"status": status}


async def _statuses(call: Call, stream: bool | None, lines: AsyncIterator[dict[str, Any]]) -> Response:
    if stream is False:
        return replied([line async for line in lines][-1])
    return Streamed(await begun(_written(lines, call)), call.record, LINES)


def _counts(chunk: dict[str, Any]) -> dict[str, Any]:
    """Of an answer's last chunk; durations in nanoseconds."""
    usage, timings = chunk["usage"], chunk.get("timings", {})
    counts = {
        "prompt_eval_count": usage["prompt_tokens"],
        "prompt_eval_duration": int(timings.get("prompt_ms", 0) * 1e6),
        "eval_count": usage["completion_tokens"],
        "eval_duration": int(timings.get("predicted_ms", 0) * 1e6),
    }
    return counts | ({"settle": chunk["settle"]} if "settle" in chunk else {})


def _token(token: dict[str, Any]) -> dict[str, Any]:
    """A token's probability without what Ollama does not tell."""
    kept = {name: token[name] for name in ("token", "logprob", "bytes") if name in token}
    return kept | ({"top_logprobs": [_token(t) for t in token["top_logprobs"]]} if token.get("top_logprobs") else {})


def _broken_off(refusal: Refusal) -> dict[str, Any]:
    return Ollama().error(refusal)


async def _written(lines: AsyncIterator[dict[str, Any]], call: Call) -> AsyncGenerator[bytes]:
    async for line in told(lines, call.record, _broken_off):
        yield json.dumps(line, ensure_ascii=False).encode() + b"\n"
