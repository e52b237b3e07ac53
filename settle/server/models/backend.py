"""What answers requests: models that are found by name and loaded on demand, and collections of documents."""

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from settle.server.models.model_catalogue import ModelCatalogue
from settle.server.models.model_entry import ModelEntry
from settle.server.models.model_pool import ModelPool
from settle.wire.requests import ChatRequest
from settle.wire.types import Chunk


class DocumentAnswerer(Protocol):
    """Answers chats from collections of documents."""

    def stream(self, pool: ModelPool, request: ChatRequest, entry: ModelEntry) -> AsyncGenerator[Chunk]:
        """Yield OpenAI's chunks; the last one has usage and `settle`. Raises ApiError."""

    def close(self) -> None:
        """Close the collections that are open."""


@dataclass
class Backend:
    """The models and collections of a server."""

    catalogue: ModelCatalogue
    pool: ModelPool
    open_documents: Callable[[], DocumentAnswerer]  # needs the extra `rag`

    @functools.cached_property
    def documents(self) -> DocumentAnswerer:
        """What answers from documents, made when it is first asked."""
        return self.open_documents()

    async def close(self) -> None:
        """Unload all models and close all collections."""
        await self.pool.close()
        if "documents" in self.__dict__:
            await asyncio.to_thread(self.documents.close)
