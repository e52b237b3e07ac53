"""What answers requests: models that are found by name and loaded on demand, and collections of documents."""

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_pool import ModelPool

if TYPE_CHECKING:
    from settle.server.models.collection_pool import CollectionPool


@dataclass
class Backend:
    """catalogue: names of models. pool: models in memory."""

    catalogue: ModelCatalogue
    pool: ModelPool

    @functools.cached_property
    def collections(self) -> "CollectionPool":
        from settle.server.models.collection_pool import CollectionPool  # needs the extra `rag`

        return CollectionPool()

    async def close(self) -> None:
        await self.pool.close()
        if "collections" in self.__dict__:
            await asyncio.to_thread(self.collections.close)
