"""The collections of documents that are open, each once, and the threads that search them. Needs the extra `rag`."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from settle.retrieve.index.collection import Collection

NUM_THREADS = 16

T = TypeVar("T")


@dataclass(eq=False)
class _OpenCollection:
    """users: requests that it answers. stamp: of its content when it was opened."""

    collection: Collection
    stamp: tuple[object, ...]
    users: int = 0
    is_old: bool = False


@dataclass
class CollectionPool:
    """Opens a collection when a request needs it, and again when it has changed."""

    _open: dict[str, _OpenCollection] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(NUM_THREADS, "documents"))

    async def run(self, work: Callable[[], T]) -> T:
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
    """Differs after every change of the collection by anyone."""
    catalogue = collection.catalogue
    settings = catalogue.settings
    return settings.get("next_id", int), settings.get("indexed", float), catalogue.counts()["passages"]
