"""Collections of documents as models: `docs@smollm2` answers from `docs`, written by smollm2, with its citations.

An answer comes as OpenAI's chunks, which every shape puts into its own words: sentence by sentence, then the sources as
text, then what was cited as annotations. A refusal is an answer like others. Searching and checking block, so
they are done in threads.
"""

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from settle.base.errors import EngineError
from settle.formats.gguf import read_gguf
from settle.infer.client import LlamaClient
from settle.library.facts import TEMPLATE_KEY as TEMPLATE
from settle.library.store import stamp_of
from settle.retrieve.answer.answer import Answer
from settle.retrieve.answer.ask import stream_answer
from settle.retrieve.answer.retrieval import Retrieval, retrieve
from settle.retrieve.answer.write_answer import LONGEST, AnswerOptions
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.collection_folder import collection_names
from settle.server.errors import Refusal, invalid, unsupported
from settle.server.guard.template_check import guard_template
from settle.server.models.model_catalogue import Entry, template_of
from settle.server.models.model_pool import Loaded
from settle.server.requests.chat_request import ChatRequest

if TYPE_CHECKING:
    from settle.server.gateway import Gateway

THREADS = 16
MOST_TOKENS = 2 * LONGEST  # of an answer, whatever a client allows it
DRAWN = {"temperature", "top_p", "top_k", "min_p", "seed", "frequency_penalty", "presence_penalty", "repeat_penalty"}

T = TypeVar("T")


def offered(models: list[Entry]) -> Iterator[Entry]:
    """Every collection, answered by every model that takes turns."""
    found = collection_names()
    for model in models if found else ():
        with contextlib.suppress(Refusal):
            if model.path.exists() and template_of(model):
                for name in found:
                    yield answering(name, model)


def answering(collection: str, model: Entry) -> Entry:
    """A collection answered by a model."""
    aliases = tuple(f"{collection}@{alias}" for alias in model.aliases)
    told = f"the documents of {collection}, answered by {model.id}"
    return replace(model, id=f"{collection}@{model.id}", aliases=aliases, origin=told, collection=collection)


@dataclass(eq=False)
class _Opened:
    """A collection that is open. users: requests that it answers. stamp: what it was when it was opened."""

    collection: Collection
    stamp: Any
    users: int = 0
    is_old: bool = False


@dataclass
class Shelf:
    """The collections that are open, each once, and the threads that search them."""

    _opened: dict[str, _Opened] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(THREADS, "documents"))

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Collection]:
        """The collection as it is now, for one request. Raises UsageError when it is gone."""
        opened = await self.run(lambda: self._fresh(name))
        try:
            yield opened.collection
        finally:
            opened.users -= 1
            if opened.is_old and not opened.users:
                await self.run(opened.collection.close)

    def close(self) -> None:
        """Closes all of them."""
        self._threads.shutdown()
        for opened in self._opened.values():
            opened.collection.close()
        self._opened.clear()

    def _fresh(self, name: str) -> _Opened:
        with self._lock:
            known = self._opened.get(name)
            if known is not None and (known.collection.is_replaced or _stamp(known.collection) != known.stamp):
                del self._opened[name]
                known.is_old = True
                if not known.users:
                    known.collection.close()
                known = None
            if known is None:
                collection = Collection(name)
                known = self._opened[name] = _Opened(collection, _stamp(collection))
            known.users += 1
            return known


async def stream(gateway: "Gateway", request: ChatRequest, entry: Entry) -> AsyncGenerator[dict[str, Any]]:
    """OpenAI's chunks; the last one has usage, and `settle` all that is known of the answer. Raises Refusal."""
    question, earlier, writing = _asked(request)
    shelf, head = gateway.shelf, _head(entry)
    async with shelf.use(entry.collection) as collection:
        found = await shelf.run(lambda: retrieve(collection, question, earlier))
        told: Answer | None = None
        role = {"role": "assistant"}  # with the first piece: what fails before it must not have begun
        async with contextlib.aclosing(_pieces(gateway, entry, collection, found, writing)) as pieces:
            async for piece in pieces:
                if isinstance(piece, Answer):
                    told = piece
                else:
                    yield head | {"choices": [_choice(role | {"content": piece})]}
                    role = {}
    assert told is not None
    if sources := _sources(told):
        yield head | {"choices": [_choice({"content": sources})]}
    if notes := _annotations(told):
        yield head | {"choices": [_choice({"annotations": notes})]}
    yield head | {"choices": [_ended(told, request)]}
    yield head | {"choices": [], "usage": _usage(told), "settle": told.to_json()}


async def whole(gateway: "Gateway", request: ChatRequest, entry: Entry) -> dict[str, Any]:
    """OpenAI's chat.completion. Raises Refusal."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    last: dict[str, Any] = {}
    choice: dict[str, Any] = {}
    async with contextlib.aclosing(stream(gateway, request, entry)) as chunks:
        async for last in chunks:
            for choice in last["choices"]:
                delta = choice.pop("delta")
                message["content"] += delta.get("content") or ""
                message |= {"annotations": delta["annotations"]} if "annotations" in delta else {}
    return last | {"object": "chat.completion", "choices": [choice | {"message": message}]}


async def _pieces(
    gateway: "Gateway", entry: Entry, collection: Collection, found: Retrieval, writing: AnswerOptions
) -> AsyncGenerator[str | Answer]:
    """The answer's text as it comes, and at last the answer. A refusal loads no model."""
    if not found.evidence.enough:
        async with contextlib.aclosing(_stepped(gateway.shelf, stream_answer(collection, None, found))) as pieces:
            async for piece in pieces:
                yield piece
        return
    left = threading.Event()
    async with gateway.keeper.use(entry) as loaded:
        model = await gateway.shelf.run(lambda: _model(entry, loaded))
        asked = stream_answer(collection, model, found, replace(writing, is_cancelled=left.is_set))
        try:
            async with contextlib.aclosing(_stepped(gateway.shelf, asked, left)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineError as e:
            if not loaded.child.alive():
                raise ConnectionError(e.what) from None  # for the keeper
            raise Refusal(502, e.what, "engine_error") from None


async def _stepped(
    shelf: Shelf, pieces: Generator[str, None, Answer], left: threading.Event | None = None
) -> AsyncGenerator[str | Answer]:
    """What a generator yields and returns, each step in a thread. left: set when nobody waits for more; the step that
    is under way then ends by itself."""

    def step() -> str | Answer:
        try:
            return next(pieces)
        except StopIteration as ended:
            told: Answer = ended.value
            return told

    piece: str | Answer = ""
    working = None
    try:
        while not isinstance(piece, Answer):
            working = asyncio.ensure_future(shelf.run(step))
            piece = await asyncio.shield(working)
            yield piece
    except asyncio.CancelledError:
        if left is not None:
            left.set()
        if working is not None:
            await asyncio.wait([working])
        raise
    finally:
        if working is None or working.done():
            pieces.close()


def _asked(request: ChatRequest) -> tuple[str, list[str], AnswerOptions]:
    """The question, those before it, and how the answer is to be written. Raises Refusal for what cannot be had."""
    what = f"{request.model} answers from documents"
    turns = request.messages
    if request.tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns):
        raise unsupported("tools", f"{what} and calls nothing")
    if request.schema is not None or request.grammar:
        raise unsupported("response_format", f"{what}, in sentences with citations")
    for name, is_asked in (
        ("n", request.n > 1),
        ("logprobs", request.top_logprobs is not None),
        ("thinking", request.thinking_budget is not None),
        ("lora", bool(request.adapters)),
        ("reasoning_effort", request.arguments not in ({}, {"reasoning_effort": "none", "enable_thinking": False})),
        *((name, name not in DRAWN) for name in request.sampling),
    ):
        if is_asked:
            raise unsupported(name, f"{what}; ask the model itself for this")
    questions = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
    if turns[-1]["role"] != "user" or not questions[-1]:
        raise invalid("messages", f"{what}: the last message must be a question")
    system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    tokens = min(request.max_tokens or LONGEST, MOST_TOKENS)
    return questions[-1], questions[:-1], AnswerOptions(system, tokens, tuple(request.stop), request.sampling)


def _model(entry: Entry, loaded: Loaded) -> LlamaClient:
    """The child as what writes the answer."""
    template = loaded.key.template or ""
    guard_template(template, [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], [])
    metadata = {**_metadata(entry.path, stamp_of(entry.path)), TEMPLATE: template}
    return LlamaClient(loaded.child, metadata, loaded.lora({entry.adapter: 1.0} if entry.adapter else {}))


@lru_cache(16)
def _metadata(path: Path, stamp: str) -> dict[str, Any]:
    return dict(read_gguf(path).metadata)


def _stamp(collection: Collection) -> Any:
    """Another one after every change of the collection by anyone."""
    catalogue = collection.catalogue
    return (
        catalogue.settings.get("next_id", int),
        catalogue.settings.get("indexed", float),
        catalogue.counts()["passages"],
    )


def _head(entry: Entry) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(16)}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": entry.id,
        "system_fingerprint": "settle",
    }


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}


def _ended(told: Answer, request: ChatRequest) -> dict[str, Any]:
    last = _choice({}, "length" if told.generation and told.generation.is_cut else "stop")
    if request.tells_stop and told.generation and told.generation.stop:
        last["stopped_by"] = told.generation.stop
    return last


def _usage(told: Answer) -> dict[str, int]:
    """Tokens that the model read and wrote."""
    prompt, made = (told.generation.prompt_tokens, told.generation.new_tokens) if told.generation else (0, 0)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _sources(told: Answer) -> str:
    """The places as lines below the answer."""
    if not told.cited:
        return ""
    lines = [f"[{source.number}] {piece.place} — {source.title}" for source, piece in told.cited]
    return "\n\n" + "\n".join(["Nearest:" if told.kind == "refused" else "Sources:", *lines])


def _annotations(told: Answer) -> list[dict[str, Any]]:
    """OpenAI's citations of addresses, one for each sentence that is cited; `text` is the passage."""
    notes = []
    for sentence in told.sentences:
        if sentence.source and sentence.piece:
            cited = {
                "start_index": sentence.start,
                "end_index": sentence.end,
                "title": sentence.source.title,
                "url": _url(sentence.piece.occurrence.path, sentence.piece.place),
                "text": sentence.piece.passage.text,
            }
            notes.append({"type": "url_citation", "url_citation": cited})
    return notes


def _url(path: str, place: str) -> str:
    """A place in a file as an address: lines as `#L12`."""
    rest = place.removeprefix(path)
    return Path(path).as_uri() + (f"#L{rest[1:]}" if rest.startswith(":") else rest)
