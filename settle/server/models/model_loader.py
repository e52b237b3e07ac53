"""Starting the child of a model: how much context it is given, which adapters it knows, how much memory it needs."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import aiohttp

from settle.base.errors import EngineError, SettleError
from settle.formats.gguf import read_gguf
from settle.formats.lora_gguf import read_lora, require_fit
from settle.infer.child_process import SPARE_BYTES, Child, Load, load_seconds, needed_bytes
from settle.library.facts import Facts, Use
from settle.library.store import stamp_of
from settle.machine import memory, resident
from settle.server.models.loaded_model import AdapterFile, LoadedModel, ModelKey
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import (
    ModelEntry,
    check_model_templates,
    facts,
    template_of,
)
from settle.wire.errors import ApiError

LONGEST_DEFAULT_CONTEXT = 32_768  # tokens of a slot, unless --context says otherwise
SHORTEST_CONTEXT = 4_096  # with less, a client's system prompt and tools hardly fit: loading is refused instead
EMBEDDING_CONTEXT = 8_192  # tokens, of models that make vectors or rank
CLOSE_SECONDS = 0.2  # between two tries to end a child that is starting
BASE_BYTES = 80 << 20  # of a child with nothing loaded
MOST_MEMORY_SHARE = 0.95  # of all memory, that one model may need
_THREADS = ThreadPoolExecutor(32, "loading")  # of their own: children that hang must not hold those of the server


@dataclass(frozen=True)
class PoolSettings:
    """Settings of the models in memory.

    context, slots: None lets the free memory decide. idle_seconds: after which an unused model is unloaded; 0 keeps
    it for ever. waiting: requests that may wait for a slot of a model."""

    context: int | None = None
    slots: int | None = None
    threads: int | None = None
    idle_seconds: float = 600.0
    most_models: int = 8
    waiting: int = 64
    prompt_cache_mib: int = 256
    ready_seconds: float = 600.0

    def context_of(self, known: Facts) -> int:
        """Tokens of context that a model is given, where there is memory for it."""
        return min(self.context or LONGEST_DEFAULT_CONTEXT, known.context)


class ModelLoader:
    """Plans one child at a time, so that each sees the memory that the others leave; they load side by side.

    starting: children that are loading, and the bytes that each will need."""

    def __init__(self, catalogue: ModelCatalogue, settings: PoolSettings) -> None:
        self.catalogue, self.settings = catalogue, settings
        self._lock = asyncio.Lock()
        self.starting: dict[Child, int] = {}

    def free(self) -> int:
        """Bytes of memory that neither a program has nor a starting child will take."""
        taken = sum(max(0, needs - (resident(child.pid) if child.pid else 0)) for child, needs in self.starting.items())
        return max(0, memory().available - taken)

    async def load(
        self,
        entry: ModelEntry,
        key: ModelKey,
        session: aiohttp.ClientSession,
        make_room: Callable[[int], Awaitable[None]],
    ) -> LoadedModel:
        """Return a new child for `key`. make_room: frees so many bytes, or raises. Raises ApiError."""
        known = await asyncio.to_thread(facts, key.path)
        _require_use(entry, known, key.use)
        adapters: tuple[AdapterFile, ...] = ()
        if key.use == "generate":
            await check_model_templates(known, key.template)
            adapters = await asyncio.to_thread(self._adapters, entry, key)
        async with self._lock:
            load, needs = await self._plan(key, known, adapters)
            await make_room(needs)
            child = Child(load, min(self.settings.ready_seconds, load_seconds(known.bytes)))
            self.starting[child] = needs
        try:
            await _start(child)
        except EngineError as e:
            raise ApiError(503, e.what.splitlines()[0], "model_broken", "model") from None
        finally:
            del self.starting[child]
        model = LoadedModel(key, child, session, known, adapters, needs, {}, idle_seconds=self.settings.idle_seconds)
        try:
            async with session.get(f"{model.url}/props", headers=model.headers) as answer:
                model.capabilities = (await answer.json()).get("chat_template_caps", {})
        except (aiohttp.ClientError, json.JSONDecodeError):
            await asyncio.to_thread(child.close)
            raise ApiError(502, f"the engine of {entry.id} died right after loading", "engine_died") from None
        return model

    async def _plan(self, key: ModelKey, known: Facts, adapters: tuple[AdapterFile, ...]) -> tuple[Load, int]:
        draft = self.catalogue.draft_of(key.path) if key.use == "generate" else None
        draft_facts = await asyncio.to_thread(facts, draft.path) if draft else None
        context, slots = self._size(known, draft_facts, key.use)
        # llama.cpp's cache of earlier prompts ignores which adapter they were read with
        has_cache = key.use == "generate" and not adapters
        needs = estimate_bytes(known, context, slots, draft_facts)
        load = Load(
            path=key.path,
            context=context,
            slots=slots,
            adapters=tuple(path for path, _ in adapters),
            template=key.template if key.template != known.template else None,
            threads=self.settings.threads,
            use=key.use,
            mean_pooling=key.use == "embed" and known.pooling == "none",
            waiting=self.settings.waiting,
            draft=draft,
            prompt_cache_mib=self.settings.prompt_cache_mib if has_cache else 0,
            memory=needs + SPARE_BYTES if key.use == "generate" else None,  # others run no template of the file
        )
        return load, needs

    def _adapters(self, entry: ModelEntry, key: ModelKey) -> tuple[AdapterFile, ...]:
        """Return every adapter over this file with this template. Raises ApiError.

        One that does not fit is left out, unless it is the one that the request is for."""
        base = read_gguf(key.path)
        fitting: list[AdapterFile] = []
        for other in (entry, *self.catalogue.entries()):
            adapter = other.adapter
            if adapter is None or other.path != key.path:
                continue
            file = (adapter, stamp_of(adapter))
            try:
                if file in fitting or template_of(other) != key.template:
                    continue
                require_fit(read_lora(adapter), base, (adapter.name, key.path.name))
                fitting.append(file)
            except (SettleError, ApiError, OSError) as e:
                if other is entry:
                    message = e.what if isinstance(e, SettleError) else str(e)
                    raise ApiError(503, message, "adapter_broken", "model") from None
        return tuple(fitting)

    def _size(self, known: Facts, draft: Facts | None, use: Use) -> tuple[int, int]:
        """Tokens of context and slots: as the settings say, else as many as half of the free memory holds."""
        context = self.settings.context_of(known)
        if use != "generate":
            return min(context, EMBEDDING_CONTEXT), 1
        if self.settings.context or self.settings.slots:
            return context, self.settings.slots or 4
        most = self.free() // 2
        while True:
            for slots in (4, 2, 1):
                if estimate_bytes(known, context, slots, draft) <= most:
                    return context, slots
            if context <= SHORTEST_CONTEXT:
                return context, 1
            context = max(SHORTEST_CONTEXT, context // 2)


async def _start(child: Child) -> None:
    """Start it; whoever stops waiting ends it. Raises EngineError."""
    starting = asyncio.get_running_loop().run_in_executor(_THREADS, child.start)
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        while not starting.done():  # it may not have its process yet
            await asyncio.to_thread(child.close)
            await asyncio.wait({starting}, timeout=CLOSE_SECONDS)
        with contextlib.suppress(EngineError):
            starting.result()
        await asyncio.to_thread(child.close)
        raise


def estimate_bytes(known: Facts, context: int, slots: int, draft: Facts | None = None) -> int:
    """Memory that a child will need. draft: has the same context as the model."""
    models = [known, draft] if draft else [known]
    in_slots = slots * context * sum(m.bytes_per_token for m in models)
    return needed_bytes(sum(m.bytes for m in models), in_slots) + BASE_BYTES


def can_ever_fit(needs: int) -> bool:
    """Whether so many bytes would fit into this machine's memory if nothing else were in it."""
    return needs <= memory().total * MOST_MEMORY_SHARE


def _require_use(entry: ModelEntry, known: Facts, use: Use) -> None:
    if use == "generate" and known.embeds:
        message = f"{entry.id} makes embeddings and writes no text; send the request to /v1/embeddings"
    elif use == "rerank" and not known.reranks:
        message = f"{entry.id} is not a reranker: its file has no rank pooling"
    elif use == "embed" and known.reranks:
        message = f"{entry.id} is a reranker; send the request to /v1/rerank"
    else:
        return
    raise ApiError(400, message, "wrong_model", "model")
