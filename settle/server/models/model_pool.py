"""Models on demand: one llama.cpp child for each, loaded when asked for and ended when idle or in the way.

A child knows the adapters that it was started with. One that was made since is served by a new child that takes over
when it is ready; what the old one is answering it finishes.
"""

import asyncio
import contextlib
import functools
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from settle.base.errors import EngineError, SettleError
from settle.formats.gguf import read_gguf
from settle.formats.lora_gguf import read_lora, require_fit
from settle.infer.child_process import Child, Load, Use
from settle.library.store import stamp_of
from settle.machine import memory, resident
from settle.server.errors import Refusal
from settle.server.guard.template_check import guard_template
from settle.server.models.model_catalogue import Catalogue, Entry, Facts, facts, make_file, template_of

LONGEST_UNASKED = 32_768  # tokens of context of a slot, where nothing was asked for
SHORTEST = 4_096  # below it a client's system prompt and tools hardly fit: rather refuse than load
OVERHEAD = 1.15  # what a child holds ÷ weights and context: buffers for one batch
BASIS = 80 << 20  # bytes of a child with nothing loaded
CHECK_SECONDS = 2.0
MOST_ATTEMPTS = 5  # to find what was just loaded still fresh


@dataclass(frozen=True)
class Keeping:
    """How models are kept. context, slots: None is chosen by memory. idle_seconds: 0 keeps a model for ever."""

    context: int | None = None
    slots: int | None = None
    threads: int | None = None
    idle_seconds: float = 600.0
    most_models: int = 8
    waiting: int = 64
    prompt_cache_mib: int = 256
    ready_seconds: float = 600.0


@dataclass(frozen=True)
class Key:
    """What may share a child: one file, one template, one use."""

    path: Path
    stamp: str
    template: str | None
    use: Use


@dataclass(eq=False)
class Loaded:
    """A child that is up. adapters: file and stamp of each, in the order in which llama.cpp numbers them."""

    key: Key
    child: Child
    facts: Facts
    adapters: tuple[tuple[Path, str], ...]
    needs: int
    caps: dict[str, bool]
    used: float = field(default_factory=time.monotonic)
    idle_seconds: float = 600.0
    busy: int = 0
    is_leaving: bool = False
    tokens_per_second: float = 0.0
    started: float = field(default_factory=time.time)

    @property
    def url(self) -> str:
        return self.child.address.geturl()

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.child.api_key}", "Content-Type": "application/json"}

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.child.load.context

    @property
    def slots(self) -> int:
        return self.child.load.slots

    def lora(self, scales: dict[Path, float]) -> list[dict[str, Any]]:
        """llama.cpp's list of adapters: all that are not in `scales` are off."""
        return [{"id": i, "scale": scales.get(path, 0.0)} for i, (path, _) in enumerate(self.adapters)]

    def is_fresh(self, entry: Entry) -> bool:
        """Whether neither the model's file nor the adapter's has changed since it was loaded."""
        adapter = entry.adapter
        return stamp_of(entry.path) == self.key.stamp and (
            adapter is None or (adapter, stamp_of(adapter)) in self.adapters
        )

    @property
    def expires(self) -> float:
        """Monotonic time from which it may be ended; infinity while it is busy or kept."""
        return float("inf") if self.busy or self.idle_seconds <= 0 else self.used + self.idle_seconds


class Keeper:
    """Loads, keeps and unloads. on_change: told "loaded", "unloaded", "died", "swapped" and of whom."""

    def __init__(self, catalogue: Catalogue, keeping: Keeping, on_change: Callable[[str, str], None]) -> None:
        self.catalogue, self.keeping = catalogue, keeping
        self._on_change = on_change
        self._up: dict[Key, Loaded] = {}
        self._leaving: set[Loaded] = set()
        self._locks: dict[Key, asyncio.Lock] = {}
        self._room = asyncio.Lock()
        self._tasks: set[asyncio.Task] = set()
        self._loading: dict[tuple[Key, tuple[Path, str] | None], asyncio.Task] = {}
        self._starting: set[Child] = set()
        self._ready: dict[tuple[Entry, Use], Loaded] = {}  # who answered last: the short way, taken by most requests

    async def start(self) -> None:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=1 << 16,
        )
        self._spawn(self._tidy())

    async def close(self) -> None:
        """Ends every child; none is left when it returns."""
        for task in self._tasks:
            task.cancel()
        everyone = [*self._starting, *(loaded.child for loaded in self.loaded())]
        self._up.clear()
        await asyncio.gather(*(asyncio.to_thread(child.close) for child in everyone))
        await self.session.close()

    def loaded(self) -> list[Loaded]:
        """The children that are up."""
        return [*self._up.values(), *self._leaving]

    def of(self, entry: Entry) -> Loaded | None:
        """The child that serves an entry now, or None."""
        for key, loaded in self._up.items():
            if key.path == entry.path and (not entry.adapter or any(p == entry.adapter for p, _ in loaded.adapters)):
                return loaded
        return None

    def context_of(self, known: Facts) -> int:
        """Tokens of context that a model would be given, where memory has room for it."""
        return min(self.keeping.context or LONGEST_UNASKED, known.context)

    @contextlib.asynccontextmanager
    async def use(self, entry: Entry, use: Use = "generate") -> AsyncIterator[Loaded]:
        """A child that serves `entry`, for one request. Raises Refusal when there is none to be had, and when it died
        under the request."""
        loaded = await self._get(entry, use)
        if loaded.busy >= loaded.slots + self.keeping.waiting:
            raise Refusal(
                429,
                f"{loaded.busy} requests for {entry.id} are waiting already",
                "rate_limit_exceeded",
                retry_seconds=2,
            )
        loaded.busy += 1
        try:
            yield loaded
        except (aiohttp.ClientError, ConnectionError) as e:
            await self._bury(loaded)
            raise Refusal(502, f"the engine of {entry.id} died under this request; ask again", "engine_died") from e
        finally:
            loaded.busy -= 1
            loaded.used = time.monotonic()
            if loaded.is_leaving and not loaded.busy:
                await self._end(loaded)

    async def unload(self, entry: Entry) -> bool:
        """Ends the children of an entry once they are idle; whether there was one."""
        keys = [key for key in self._up if key.path == entry.path]
        for key in keys:
            self._leave(self._up.pop(key))
        return bool(keys)

    async def keep(self, entry: Entry, seconds: float) -> None:
        """From now on the children of an entry end once they are idle for `seconds`: 0 is at once, below 0 never."""
        if seconds == 0:
            await self.unload(entry)
        for key, loaded in self._up.items():
            if key.path == entry.path:
                loaded.idle_seconds = seconds if seconds > 0 else math.inf

    async def _get(self, entry: Entry, use: Use) -> Loaded:
        up = self._ready.get((entry, use))
        if up is not None and self._up.get(up.key) is up and up.child.alive() and up.is_fresh(entry):
            return up
        await asyncio.to_thread(make_file, entry)
        template = await asyncio.to_thread(template_of, entry) if use == "generate" else None
        path = entry.path
        key = Key(path, stamp_of(path), template, use)
        wanted = (entry.adapter, stamp_of(entry.adapter)) if entry.adapter and use == "generate" else None
        for _ in range(MOST_ATTEMPTS):
            up = self._up.get(key)
            if up is not None and up.child.alive() and (wanted is None or wanted in up.adapters):
                self._ready[entry, use] = up
                return up
            # loading goes on when who asked for it leaves: others wait for it, or will come again
            loading = self._loading.get((key, wanted))
            if loading is None:
                loading = self._spawn(self._bring_up(entry, key, wanted))
                self._loading[key, wanted] = loading
                loading.add_done_callback(functools.partial(self._loaded, (key, wanted)))
            await asyncio.shield(loading)
        raise Refusal(503, f"the files of {entry.id} are changing; ask again", "model_broken", "model", retry_seconds=2)

    def _loaded(self, what: tuple[Key, Any], loading: asyncio.Task) -> None:
        del self._loading[what]
        if not loading.cancelled():
            loading.exception()  # told to those who wait, if there are any left

    async def _bring_up(self, entry: Entry, key: Key, wanted: tuple[Path, str] | None) -> None:
        """A child that serves `entry` in the place of the one that does not."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            up = self._up.get(key)
            if up is not None and not up.child.alive():
                await self._bury(up)
                up = None
            if up is not None and (wanted is None or wanted in up.adapters):
                return
            for other in [k for k in self._up if k.path == key.path and k.stamp != key.stamp]:
                self._leave(self._up.pop(other))  # the file was replaced
            fresh = await self._load(entry, key, up)
            self._up[key] = fresh
            if up is not None:
                self._leave(up)
            self._on_change("swapped" if up is not None else "loaded", entry.id)

    async def _load(self, entry: Entry, key: Key, before: Loaded | None) -> Loaded:
        """A new child for `key`; `before` goes on answering until it is there, where memory has room for both."""
        known = await asyncio.to_thread(facts, key.path)
        _require_use(entry, known, key.use)
        if key.template:
            # llama.cpp runs the template while it loads, and has no limits for it
            await asyncio.to_thread(guard_template, key.template, [{"role": "user", "content": "hello"}], [])
        adapters = await asyncio.to_thread(self._adapters, entry, key) if key.use == "generate" else ()
        async with self._room:
            draft = self.catalogue.draft_of(key.path) if key.use == "generate" else None
            proposing = await asyncio.to_thread(facts, draft.path) if draft else None
            context, slots = self._size(known, proposing, key.use)
            needs = needed(known, context, slots, proposing)
            await self._make_room(entry, needs, before)
            # llama.cpp's cache of earlier prompts does not ask which adapter they were read with
            load = Load(
                path=key.path,
                context=context,
                slots=slots,
                adapters=tuple(path for path, _ in adapters),
                template=key.template if key.template != known.template else None,
                threads=self.keeping.threads,
                use=key.use,
                mean_pooling=key.use == "embed" and known.pooling == "none",
                waiting=self.keeping.waiting,
                draft=draft,
                prompt_cache_mib=0 if adapters or key.use != "generate" else self.keeping.prompt_cache_mib,
            )
            child = Child(load, self.keeping.ready_seconds)
            self._starting.add(child)
            try:
                await asyncio.to_thread(child.start)
            except EngineError as e:
                raise Refusal(503, e.what.splitlines()[0], "model_broken", "model") from None
            finally:
                self._starting.discard(child)
        idle = before.idle_seconds if before else self.keeping.idle_seconds
        loaded = Loaded(key, child, known, adapters, needs, {}, idle_seconds=idle)
        try:
            async with self.session.get(f"{loaded.url}/props", headers=loaded.headers) as answer:
                loaded.caps = (await answer.json()).get("chat_template_caps", {})
        except (aiohttp.ClientError, json.JSONDecodeError):
            await asyncio.to_thread(child.close)
            raise Refusal(502, f"the engine of {entry.id} died right after loading", "engine_died") from None
        return loaded

    def _adapters(self, entry: Entry, key: Key) -> tuple[tuple[Path, str], ...]:
        """Every adapter over this file with this template; one that does not fit is left out, unless it is the one
        that was asked for. Raises Refusal then."""
        base = read_gguf(key.path)
        fitting = []
        others = [e for e in self.catalogue.entries() if e.path == key.path and e.adapter]
        for other in [entry, *others] if entry.adapter else others:
            assert other.adapter is not None
            found = (other.adapter, stamp_of(other.adapter))
            try:
                if found in fitting or template_of(other) != key.template:
                    continue
                require_fit(read_lora(other.adapter), base, (other.adapter.name, key.path.name))
                fitting.append(found)
            except (SettleError, Refusal, OSError) as e:
                if other is entry:
                    said = e.what if isinstance(e, SettleError) else str(e)
                    raise Refusal(503, said, "adapter_broken", "model") from None
        return tuple(fitting)

    def _size(self, known: Facts, proposing: Facts | None, use: Use) -> tuple[int, int]:
        """Tokens of context and slots: as asked for; else as many as half of the memory that is free holds."""
        context = self.context_of(known)
        if use != "generate":
            return min(context, 8192), 1
        if self.keeping.context or self.keeping.slots:
            return context, self.keeping.slots or 4
        most = memory().available // 2
        while True:
            for slots in (4, 2, 1):
                if needed(known, context, slots, proposing) <= most:
                    return context, slots
            if context <= SHORTEST:
                return context, 1
            context = max(SHORTEST, context // 2)

    async def _make_room(self, entry: Entry, needs: int, before: Loaded | None) -> None:
        """Ends idle models, the longest unused first, until what is needed is free. Raises Refusal when it never is."""
        if needs > memory().total * 0.95:
            raise self._too_large(entry, needs)
        waited = 0.0
        while memory().available < needs or len(self._up) >= self.keeping.most_models + (before is not None):
            idle = [loaded for loaded in self._up.values() if not loaded.busy and loaded is not before]
            if idle:
                oldest = min(idle, key=lambda loaded: loaded.used)
                del self._up[oldest.key]
                await self._end(oldest)
            elif self._leaving and waited < 30:
                waited += 0.1
                await asyncio.sleep(0.1)
            elif before is not None and before.key in self._up and memory().available < needs:
                # no room for two of them: what the old one is answering comes first
                self._leave(self._up.pop(before.key))
            else:
                raise self._too_large(entry, needs)

    def _too_large(self, entry: Entry, needs: int) -> Refusal:
        free = memory().available
        busy = ", ".join(f"{up.key.path.stem} ({up.needs / 1e9:.1f} GB)" for up in self._up.values())
        fitting = []
        for other in self.catalogue.entries():
            with contextlib.suppress(Refusal):
                if other.path.exists() and needed(facts(other.path), SHORTEST, 1) <= free:
                    fitting.append(other.id)
        said = f"{entry.id} needs {needs / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        said += f"; busy: {busy}" if busy else ""
        said += f"; what would fit: {', '.join(fitting[:8])}" if fitting else "; a shorter --context needs less"
        return Refusal(503, said, "insufficient_memory", "model", retry_seconds=10 if busy else None)

    def _leave(self, loaded: Loaded) -> None:
        """No new request goes to it; it ends with its last one."""
        loaded.is_leaving = True
        self._leaving.add(loaded)
        if not loaded.busy:
            self._spawn(self._end(loaded))

    async def _end(self, loaded: Loaded) -> None:
        self._leaving.discard(loaded)
        self._ready = {what: up for what, up in self._ready.items() if up is not loaded}
        await asyncio.to_thread(loaded.child.close)
        self._on_change("unloaded", loaded.key.path.stem)

    async def _bury(self, loaded: Loaded) -> None:
        """Forget a child that died; one that is alive stays."""
        if loaded.child.alive():
            await asyncio.sleep(0.2)  # the connection breaks a moment before the process is gone
        if loaded.child.alive():
            return
        if self._up.get(loaded.key) is loaded:
            del self._up[loaded.key]
            self._on_change("died", loaded.key.path.stem)
        self._leaving.discard(loaded)
        await asyncio.to_thread(loaded.child.close)

    async def _tidy(self) -> None:
        """Ends what is idle for too long, and buries what died unseen."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            for key, loaded in list(self._up.items()):
                if not loaded.child.alive():
                    await self._bury(loaded)
                elif loaded.expires <= now:
                    del self._up[key]
                    await self._end(loaded)

    def _spawn(self, work: Any) -> asyncio.Task:
        task: asyncio.Task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def needed(known: Facts, context: int, slots: int, proposing: Facts | None = None) -> int:
    """Bytes that a child will hold. proposing: its draft, which has the same context."""
    both = [known, proposing] if proposing else [known]
    return int(OVERHEAD * sum(model.bytes + slots * context * model.bytes_per_token for model in both)) + BASIS


def held(loaded: Loaded) -> int:
    """Bytes that a child holds now."""
    pid = loaded.child.pid
    return resident(pid) if pid else 0


def _require_use(entry: Entry, known: Facts, use: Use) -> None:
    if use == "generate" and known.embeds:
        raise Refusal(
            400, f"{entry.id} makes embeddings and does not write; ask /v1/embeddings", "wrong_model", "model"
        )
    if use == "rerank" and not known.reranks:
        raise Refusal(400, f"{entry.id} is no reranker: its file has no rank pooling", "wrong_model", "model")
    if use == "embed" and known.reranks:
        raise Refusal(400, f"{entry.id} is a reranker; ask /v1/rerank", "wrong_model", "model")
