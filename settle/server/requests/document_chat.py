"""Chats with collections of documents: `docs@smollm2` answers from `docs`, written by smollm2, with citations.

An answer is OpenAI's chunks, which every API translates: sentence by sentence, then the sources as text, then the
citations as annotations. A refusal is an answer like others. Searching and checking block, so they run in threads.
"""

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from settle.base.errors import EngineError
from settle.formats import Metadata
from settle.formats.gguf import read_gguf
from settle.infer.child_process import Json
from settle.infer.client import LlamaClient
from settle.library.facts import TEMPLATE_KEY
from settle.library.store import stamp_of
from settle.retrieve.answer.answer import CitedAnswer
from settle.retrieve.answer.ask import stream_answer
from settle.retrieve.answer.evidence import Retrieval, retrieve
from settle.retrieve.answer.write_answer import LONGEST, AnswerOptions
from settle.retrieve.index.catalogue import Occurrence
from settle.retrieve.index.collection import Collection
from settle.server.models.loaded_model import LoadedModel
from settle.server.models.model_entry import ModelEntry, check_template
from settle.server.models.model_pool import ModelPool
from settle.server.requests.chat_plan import chunk_head, delta_choice
from settle.wire.errors import ApiError, invalid, unsupported
from settle.wire.types import ChatRequest, Chunk, Delta, Usage

NUM_THREADS = 16  # that search
MOST_TOKENS = 2 * LONGEST  # of an answer, whatever max_tokens allows
SAMPLING = {
    *("temperature", "top_p", "top_k", "min_p", "seed"),
    *("frequency_penalty", "presence_penalty", "repeat_penalty"),
}

_TURNS = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})

T = TypeVar("T")


@dataclass(eq=False)
class _OpenCollection:
    """A collection while requests use it."""

    collection: Collection
    stamp: tuple[object, ...]  # of its content when it was opened
    users: int = 0  # requests that it answers
    is_old: bool = False


@dataclass
class CollectionPool:
    """The collections of documents that are open, each once, and the threads that search them.

    One is opened when a request needs it, and again when it has changed.
    """

    _open: dict[str, _OpenCollection] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(NUM_THREADS, "documents"))

    async def run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @contextlib.asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Collection]:
        """Yield the collection as it is now, for one request. Raises UsageError when it is gone."""
        opened = await self.run(lambda: self._fresh(name))
        try:
            yield opened.collection
        finally:
            opened.users -= 1
            if opened.is_old and not opened.users:
                await self.run(opened.collection.close)

    def close(self) -> None:
        self._threads.shutdown()
        for opened in self._open.values():
            opened.collection.close()
        self._open.clear()

    def _fresh(self, name: str) -> _OpenCollection:
        with self._lock:
            known = self._open.get(name)
            if known is not None and (known.collection.is_replaced or _stamp(known.collection) != known.stamp):
                del self._open[name]
                known.is_old = True
                if not known.users:
                    known.collection.close()
                known = None
            if known is None:
                collection = Collection(name)
                known = self._open[name] = _OpenCollection(collection, _stamp(collection))
            known.users += 1
            return known


def _stamp(collection: Collection) -> tuple[object, ...]:
    """Return what differs after every change of the collection by anyone."""
    catalogue = collection.catalogue
    settings = catalogue.settings
    return settings.get("next_id", int), settings.get("indexed", float), catalogue.counts()["passages"]


@dataclass
class DocumentChats:
    """Answers chats from collections of documents."""

    _collections: CollectionPool = field(default_factory=CollectionPool)

    async def stream(self, pool: ModelPool, request: ChatRequest, entry: ModelEntry) -> AsyncGenerator[Chunk]:
        """Yield OpenAI's chunks; the last one has usage, and `settle` all that is known of the answer.

        Raises ApiError."""
        question, earlier, options = _question(request)
        head = chunk_head(entry)
        async with self._collections.use(entry.collection) as collection:
            retrieval = await self._collections.run(lambda: retrieve(collection, question, earlier))
            role: Delta = {"role": "assistant"}  # with the first piece: a request that fails must not have begun
            pieces = _pieces(pool, self._collections, entry, collection, retrieval, options)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    if isinstance(piece, CitedAnswer):
                        whole_answer = piece
                    else:
                        yield head | {"choices": [delta_choice(role | {"content": piece})]}
                        role = {}
        assert whole_answer is not None
        if sources := _sources(whole_answer):
            yield head | {"choices": [delta_choice({"content": sources})]}
        if notes := _annotations(whole_answer):
            yield head | {"choices": [delta_choice({"annotations": notes})]}
        generation = whole_answer.generation
        last = delta_choice({}, "length" if generation and generation.is_cut else "stop")
        if request.wants_stop and generation and generation.stop:
            last["stopped_by"] = generation.stop
        yield head | {"choices": [last]}
        prompt, written = (generation.prompt_tokens, generation.new_tokens) if generation else (0, 0)
        usage: Usage = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        yield head | {"choices": [], "usage": usage, "settle": whole_answer.to_json()}

    def close(self) -> None:
        """Close the collections that are open."""
        self._collections.close()


async def _pieces(
    pool: ModelPool,
    collections: CollectionPool,
    entry: ModelEntry,
    collection: Collection,
    retrieval: Retrieval,
    options: AnswerOptions,
) -> AsyncGenerator[str | CitedAnswer]:
    """Yield the text of the answer as it comes, and then the answer.

    Neither a refusal nor an answer with a warning loads a model."""
    if not retrieval.evidence.is_sure:
        async with contextlib.aclosing(_in_thread(collections, stream_answer(collection, None, retrieval))) as pieces:
            async for piece in pieces:
                yield piece
        return
    left = threading.Event()
    async with pool.use(entry) as loaded:
        await check_template(loaded.key.template or "", _TURNS, (), {})
        model = await collections.run(lambda: _model(entry, loaded))
        steps = stream_answer(collection, model, retrieval, replace(options, is_cancelled=left.is_set))
        try:
            async with contextlib.aclosing(_in_thread(collections, steps, left)) as pieces:
                async for piece in pieces:
                    yield piece
        except EngineError as e:
            if not loaded.child.alive():
                raise ConnectionError(e.what) from None  # for the model pool
            raise ApiError(502, e.what, "engine_error") from None


async def _in_thread(
    collections: CollectionPool, steps: Generator[str, None, CitedAnswer], left: threading.Event | None = None
) -> AsyncGenerator[str | CitedAnswer]:
    """Yield what a generator yields and returns, each step in a thread.

    left: set when nobody waits for more; the current step then ends by itself."""

    def step() -> str | CitedAnswer:
        try:
            return next(steps)
        except StopIteration as end:
            result: CitedAnswer = end.value
            return result

    piece: str | CitedAnswer = ""
    task = None
    try:
        while not isinstance(piece, CitedAnswer):
            task = asyncio.ensure_future(collections.run(step))
            piece = await asyncio.shield(task)
            yield piece
    except asyncio.CancelledError:
        if left is not None:
            left.set()
        if task is not None:
            await asyncio.wait([task])
        raise
    finally:
        if task is None or task.done():
            steps.close()


def _question(request: ChatRequest) -> tuple[str, list[str], AnswerOptions]:
    """Return the question, those before it, and how to write the answer. Raises ApiError for what is unsupported."""
    what = f"{request.model} answers from documents"
    turns = request.messages
    if request.tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns):
        raise unsupported("tools", f"{what} and does not call tools")
    if request.schema is not None or request.grammar:
        raise unsupported("response_format", f"{what}, in sentences with citations")
    for name, is_set in (
        ("n", request.n > 1),
        ("logprobs", request.top_logprobs is not None),
        ("thinking", request.thinking_budget is not None),
        ("lora", bool(request.adapters)),
        ("reasoning_effort", request.arguments not in ({}, {"reasoning_effort": "none", "enable_thinking": False})),
        *((name, name not in SAMPLING) for name in request.sampling),
    ):
        if is_set:
            raise unsupported(name, f"{what}; use the model itself for this")
    questions = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
    if turns[-1]["role"] != "user" or not questions[-1]:
        raise invalid("messages", f"{what}: the last message must be a question")
    system = "\n".join(turn["content"] for turn in turns if turn["role"] == "system")
    tokens = min(request.max_tokens or LONGEST, MOST_TOKENS)
    return questions[-1], questions[:-1], AnswerOptions(system, tokens, tuple(request.stop), request.sampling)


def _model(entry: ModelEntry, loaded: LoadedModel) -> LlamaClient:
    template = loaded.key.template or ""
    metadata = {**_metadata(entry.path, stamp_of(entry.path)), TEMPLATE_KEY: template}
    scales = loaded.lora_scales({entry.adapter: 1.0} if entry.adapter else {})
    return LlamaClient(loaded.child, metadata, scales)


@lru_cache(16)
def _metadata(path: Path, stamp: str) -> Metadata:
    return dict(read_gguf(path).metadata)


def _sources(whole_answer: CitedAnswer) -> str:
    """Return the cited places as lines below the answer."""
    if not whole_answer.cited:
        return ""
    lines = [f"[{source.number}] {piece.place} — {source.title}" for source, piece in whole_answer.cited]
    return "\n\n" + "\n".join(["Nearest:" if whole_answer.kind == "refused" else "Sources:", *lines])


def _annotations(whole_answer: CitedAnswer) -> list[Json]:
    """OpenAI's citations of URLs, one for each sentence with a citation; `text` is the passage."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": sentence.start,
                "end_index": sentence.end,
                "title": sentence.source.title,
                "url": _url(sentence.piece.occurrence),
                "text": sentence.piece.passage.text,
            },
        }
        for sentence in whole_answer.sentences
        if sentence.source and sentence.piece
    ]


def _url(occurrence: Occurrence) -> str:
    suffix = occurrence.place.suffix
    return Path(occurrence.path).as_uri() + (f"#L{suffix[1:]}" if suffix.startswith(":") else suffix)
