"""Models that are in memory: one llama.cpp child each, and the set of those that are up or about to leave."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from settle.infer.child_process import Child
from settle.library.facts import Facts, Use
from settle.library.store import stamp_of
from settle.machine import cpu_seconds, resident
from settle.server.models.model_entry import ModelEntry

AdapterFile = tuple[Path, str]  # and its stamp
OnChange = Callable[[str, str], None]  # "loaded", "unloaded", "died" or "swapped", and the name of the model

ANSWER_SECONDS = 20.0  # that a child is given to say that it lives, on a busy machine
REST_SECONDS, RESTLESS = 20.0, 0.5  # a child that nobody asks for so long, and that keeps half a core busy, spins


@dataclass(frozen=True)
class ModelKey:
    """Requests with the same key may share a child: one file, one template, one use."""

    path: Path
    stamp: str
    template: str | None
    use: Use


@dataclass(eq=False)
class LoadedModel:
    """A child that is up.

    session: that requests to it share. adapters: in the order in which llama.cpp numbers them. needs: bytes, as
    estimated. capabilities: of the chat template, as llama.cpp reports them."""

    key: ModelKey
    child: Child
    session: aiohttp.ClientSession
    facts: Facts
    adapters: tuple[AdapterFile, ...]
    needs: int
    capabilities: dict[str, bool]
    used: float = field(default_factory=time.monotonic)
    idle_seconds: float = 600.0
    busy: int = 0
    is_leaving: bool = False
    _rest: tuple[float, float] | None = None  # since when nobody asks, and its processor time by then

    @property
    def url(self) -> str:
        return str(self.child.address.geturl())

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

    @property
    def resident_bytes(self) -> int:
        pid = self.child.pid
        return resident(pid) if pid else 0

    @property
    def expires(self) -> float:
        """Monotonic time from which it may be ended; infinity while it is busy or kept."""
        return float("inf") if self.busy or self.idle_seconds <= 0 else self.used + self.idle_seconds

    def spins(self, now: float) -> bool:
        """Return whether it works on for nobody; asked now and then.

        A chat template without an end does when its client has left."""
        pid = self.child.pid
        if self.busy or pid is None:
            self._rest = None
            return False
        if self._rest is None or self._rest[0] < self.used:
            self._rest = now, cpu_seconds(pid)
        since, before = self._rest
        if now - since < REST_SECONDS:
            return False
        self._rest = now, cpu_seconds(pid)
        return self._rest[1] - before > RESTLESS * (now - since)

    async def answers(self) -> bool:
        """Whether the child answers at all: one that writes its memory to disk after a crash is a process, and dead."""
        try:
            timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
            async with self.session.get(f"{self.url}/health", headers=self.headers, timeout=timeout) as answer:
                return answer.status < 500
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    def lora_scales(self, scales: Mapping[Path, float]) -> list[Mapping[str, float]]:
        """llama.cpp's list of adapters: those that are not in `scales` are off."""
        return [{"id": i, "scale": scales.get(path, 0.0)} for i, (path, _) in enumerate(self.adapters)]

    def is_fresh(self, entry: ModelEntry) -> bool:
        """Whether neither the model's file nor the adapter's has changed since it was loaded."""
        adapter = entry.adapter
        try:
            return stamp_of(entry.path) == self.key.stamp and (
                adapter is None or (adapter, stamp_of(adapter)) in self.adapters
            )
        except OSError:  # whoever loads it again says that it is gone
            return False


class BackgroundTasks:
    """Tasks that nobody awaits, kept from being collected."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()


class LoadedModels:
    """The children that are up, and those that leave: they take no new request and end with their last one."""

    def __init__(self, tasks: BackgroundTasks, on_change: OnChange) -> None:
        self._tasks, self._on_change = tasks, on_change
        self.up: dict[ModelKey, LoadedModel] = {}
        self.leaving: set[LoadedModel] = set()
        self._recent: dict[tuple[ModelEntry, Use], LoadedModel] = {}  # spares most requests the way by the disk

    def all(self) -> list[LoadedModel]:
        """Those that leave included."""
        return [*self.up.values(), *self.leaving]

    def recent(self, entry: ModelEntry, use: Use) -> LoadedModel | None:
        """Return the child that answered for `entry` before, if it still can."""
        model = self._recent.get((entry, use))
        is_usable = model is not None and self.up.get(model.key) is model and model.child.alive()
        return model if model is not None and is_usable and model.is_fresh(entry) else None

    def remember(self, entry: ModelEntry, use: Use, model: LoadedModel) -> None:
        self._recent[entry, use] = model

    def retire(self, model: LoadedModel) -> None:
        """No new request goes to it; it ends with its last one."""
        if self.up.get(model.key) is model:
            del self.up[model.key]
        model.is_leaving = True
        self.leaving.add(model)
        if not model.busy:
            self._tasks.spawn(self.end(model))

    async def end(self, model: LoadedModel) -> None:
        if self.up.get(model.key) is model:
            del self.up[model.key]
        self.leaving.discard(model)
        self._recent = {key: other for key, other in self._recent.items() if other is not model}
        await asyncio.to_thread(model.child.close)
        self._on_change("unloaded", model.key.path.stem)

    async def bury(self, model: LoadedModel) -> None:
        """Forgets a child that died, or that a crash left half alive; one that answers stays."""
        if model.child.alive():
            await asyncio.sleep(0.2)  # the connection breaks a moment before the process is gone
        if model.child.alive() and await model.answers():
            return
        if self.up.get(model.key) is model:
            del self.up[model.key]
            self._on_change("died", model.key.path.stem)
        self.leaving.discard(model)
        await asyncio.to_thread(model.child.close)
