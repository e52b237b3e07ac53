"""Models on demand: one llama.cpp child for each, loaded when a request needs it and ended when idle or in the way.

A child knows the adapters that it was started with. An adapter that was made since is served by a new child, which
takes over when it is ready; the old one finishes what it is answering.
"""

import asyncio
import collections
import contextlib
import functools
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import aiohttp

from settle.library.facts import Use
from settle.server.models.loaded_model import (
    AdapterFile,
    BackgroundTasks,
    LoadedModel,
    LoadedModels,
    ModelKey,
    OnChange,
)
from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry, facts, file_stamp, make_file, template_of
from settle.server.models.model_loader import (
    SHORTEST_CONTEXT,
    ModelLoader,
    PoolSettings,
    can_ever_fit,
    estimate_bytes,
)
from settle.wire.errors import ApiError

CHECK_SECONDS = 2.0  # between two looks for idle and dead children
ABANDONED_SECONDS = 10.0  # that a model goes on loading for nobody: a client that gave up may ask again
LEAVE_SECONDS = 30.0  # that a new model waits for the memory of those that leave
MOST_ATTEMPTS = 5  # to find what was just loaded still fresh

Wanted = tuple[ModelKey, AdapterFile | None]


class Loadings:
    """Models that are loading, each for all the requests that wait for it; it ends a moment after the last has left."""

    def __init__(self, tasks: BackgroundTasks) -> None:
        self._tasks = tasks
        self._loading: dict[Wanted, asyncio.Task[None]] = {}
        self._waiting: collections.Counter[asyncio.Task[None]] = collections.Counter()

    async def wait_for(self, what: Wanted, load: Callable[[], Coroutine[object, object, None]]) -> None:
        """Begin to load, unless that is under way, and wait until it is done. Raises what loading raises."""
        loading = self._loading.get(what)
        if loading is None:
            loading = self._loading[what] = self._tasks.spawn(load())
            loading.add_done_callback(functools.partial(self._finish, what))
        self._waiting[loading] += 1
        try:
            await asyncio.shield(loading)
        finally:
            self._waiting[loading] -= 1
            if not self._waiting[loading]:
                del self._waiting[loading]
                if not loading.done():
                    asyncio.get_running_loop().call_later(ABANDONED_SECONDS, self._abandon, what, loading)

    def _abandon(self, what: Wanted, loading: "asyncio.Task[None]") -> None:
        if loading not in self._waiting and self._loading.get(what) is loading:
            del self._loading[what]  # whoever asks from now on begins anew
            loading.cancel()

    def _finish(self, what: Wanted, loading: "asyncio.Task[None]") -> None:
        if self._loading.get(what) is loading:
            del self._loading[what]
        if not loading.cancelled():
            loading.exception()  # those who wait get it, if there are any left


class ModelPool:
    """The children that answer requests.

    Loading continues when the request that began it leaves, as long as others wait for it."""

    def __init__(self, catalogue: ModelCatalogue, settings: PoolSettings, on_change: OnChange) -> None:
        self.catalogue, self.settings = catalogue, settings
        self._on_change = on_change
        self._tasks = BackgroundTasks()
        self._models = LoadedModels(self._tasks, on_change)
        self._loader = ModelLoader(catalogue, settings)
        self._locks: dict[ModelKey, asyncio.Lock] = {}
        self._loadings = Loadings(self._tasks)

    async def start(self) -> None:
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            read_bufsize=1 << 16,
        )
        self._tasks.spawn(self._tidy())

    async def close(self) -> None:
        """End every child; none is left when it returns."""
        self._tasks.cancel()
        children = [*self._loader.starting, *(model.child for model in self.loaded())]
        await asyncio.gather(*(asyncio.to_thread(child.close) for child in children))
        await self.session.close()

    def loaded(self) -> list[LoadedModel]:
        return self._models.all()

    def find(self, entry: ModelEntry) -> LoadedModel | None:
        """Return the child that serves an entry now, or None."""
        for model in list(self._models.up.values()):
            is_known = not entry.adapter or any(path == entry.adapter for path, _ in model.adapters)
            if model.key.path == entry.path and is_known:
                return model
        return None

    @contextlib.asynccontextmanager
    async def use(self, entry: ModelEntry, use: Use = "generate") -> AsyncIterator[LoadedModel]:
        """Yield a child that serves `entry`, for one request.

        Raises ApiError when there is none, and when the child died during the request."""
        model = await self._get(entry, use)
        if model.busy >= model.slots + self.settings.waiting:
            message = f"{model.busy} requests for {entry.id} are waiting already"
            raise ApiError(429, message, "rate_limit_exceeded", retry_seconds=2)
        model.busy += 1
        try:
            yield model
        except (aiohttp.ClientError, ConnectionError) as e:
            await self._models.bury(model)
            message = f"the engine of {entry.id} died during this request; try again"
            raise ApiError(502, message, "engine_died") from e
        finally:
            model.busy -= 1
            model.used = time.monotonic()
            if model.is_leaving and not model.busy:
                await self._models.end(model)

    async def unload(self, entry: ModelEntry) -> bool:
        """End the children of an entry once they are idle; return whether there was one."""
        models = [model for model in self._models.up.values() if model.key.path == entry.path]
        for model in models:
            self._models.retire(model)
        return bool(models)

    async def keep(self, entry: ModelEntry, seconds: float | None) -> None:
        """End the children of an entry once they are idle for `seconds`: 0 at once, below 0 never, None no change."""
        if seconds is None:
            return
        if seconds == 0:
            await self.unload(entry)
        for model in list(self._models.up.values()):
            if model.key.path == entry.path:
                model.idle_seconds = seconds if seconds > 0 else math.inf

    async def _get(self, entry: ModelEntry, use: Use) -> LoadedModel:
        recent = self._models.recent(entry, use)
        if recent is not None:
            return recent
        await asyncio.to_thread(make_file, entry)
        template = await asyncio.to_thread(template_of, entry) if use == "generate" else None
        key = ModelKey(entry.path, file_stamp(entry, entry.path), template, use)
        adapter = entry.adapter if use == "generate" else None
        wanted = (adapter, file_stamp(entry, adapter)) if adapter else None
        for _ in range(MOST_ATTEMPTS):
            model = self._models.up.get(key)
            if model is not None and model.child.alive() and (wanted is None or wanted in model.adapters):
                self._models.remember(entry, use, model)
                return model
            bring_up = functools.partial(self._bring_up, entry, key, wanted)
            await self._loadings.wait_for((key, wanted), bring_up)
        message = f"the files of {entry.id} are changing; try again"
        raise ApiError(503, message, "model_broken", "model", retry_seconds=2)

    async def _bring_up(self, entry: ModelEntry, key: ModelKey, wanted: AdapterFile | None) -> None:
        """Replace the child of `key` by one that knows the adapter.

        The old one answers until the new one is up, where there is memory for both."""
        async with self._locks.setdefault(key, asyncio.Lock()):
            before = self._models.up.get(key)
            if before is not None and not before.child.alive():
                await self._models.bury(before)
                before = None
            if before is not None and (wanted is None or wanted in before.adapters):
                return
            for other in list(self._models.up.values()):
                if other.key.path == key.path and other.key.stamp != key.stamp:
                    self._models.retire(other)  # the file was replaced
            fresh = await self._loader.load(
                entry, key, self.session, lambda needs: self._make_room(entry, needs, before)
            )
            if before is not None:
                fresh.idle_seconds = before.idle_seconds
                if self._models.up.get(key) is before:
                    self._models.retire(before)
            self._models.up[fresh.key] = fresh
            self._on_change("swapped" if before is not None else "loaded", entry.id)

    async def _make_room(self, entry: ModelEntry, needs: int, before: LoadedModel | None) -> None:
        """End idle models, the longest unused first, until `needs` bytes are free.

        Raises ApiError when they cannot be."""
        if not can_ever_fit(needs):
            raise self._too_large(entry, needs)
        waited = 0.0
        while True:
            up = list(self._models.up.values())
            num_models = len(up) + len(self._loader.starting)
            is_full = num_models >= self.settings.most_models + (before is not None)
            if self._loader.free() >= needs and not is_full:
                return
            idle = [model for model in up if not model.busy and model is not before]
            if idle:
                await self._models.end(min(idle, key=lambda model: model.used))
            elif (self._models.leaving or is_full) and waited < LEAVE_SECONDS:
                waited += 0.1
                await asyncio.sleep(0.1)
            elif before is not None and before in up and self._loader.free() < needs:
                self._models.retire(before)  # no memory for both: the old one finishes its answers first
            else:
                if not is_full:
                    raise self._too_large(entry, needs)
                busy = ", ".join(model.key.path.stem for model in self._models.up.values())
                message = f"{entry.id} cannot be loaded: this server keeps at most {self.settings.most_models} models"
                message += f" (--most-models), and all of them are answering: {busy}; try again"
                raise ApiError(503, message, "overloaded", "model", retry_seconds=10)

    def _too_large(self, entry: ModelEntry, needs: int) -> ApiError:
        free = self._loader.free()
        busy = ", ".join(f"{model.key.path.stem} ({model.needs / 1e9:.1f} GB)" for model in self._models.up.values())
        fitting = []
        for other in self.catalogue.entries():
            with contextlib.suppress(ApiError):
                if other.path.exists() and estimate_bytes(facts(other.path), SHORTEST_CONTEXT, 1) <= free:
                    fitting.append(other.id)
        message = f"{entry.id} needs {needs / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
        message += f"; busy: {busy}" if busy else ""
        message += f"; models that fit: {', '.join(fitting[:8])}" if fitting else "; a shorter --context needs less"
        return ApiError(503, message, "insufficient_memory", "model", retry_seconds=10 if busy else None)

    async def _tidy(self) -> None:
        """End children that were idle for too long or work for nobody, and forget those that died unnoticed."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            for model in list(self._models.up.values()):
                if self._models.up.get(model.key) is not model:
                    continue  # it left while another one ended
                if not model.child.alive():
                    await self._models.bury(model)
                elif model.expires <= now or model.spins(now):
                    await self._models.end(model)
