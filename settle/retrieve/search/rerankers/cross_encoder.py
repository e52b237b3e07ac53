"""A model that was made to order passages, a GGUF file with rank pooling, in llama.cpp."""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from settle.base.errors import UsageError
from settle.infer.ranker import RankEngine
from settle.library.resolve import resolve_whole
from settle.retrieve.search.rerankers import Ranker, Reranker


class CrossEncoder(Reranker):
    """bge-reranker, jina-reranker and others of their kind."""

    weight: float = Field(1.0, ge=0, le=1, description="of its order; the rest is the search's")

    def open(self) -> Ranker:
        if not self.model:
            raise UsageError("which reranker?", "--reranker.model NAME of `settle pull`, or a .gguf file")
        return _Opened(RankEngine(resolve_whole(self.model).path), self.first, self.weight)


class _Opened(Ranker):
    def __init__(self, engine: RankEngine, first: int, weight: float) -> None:
        self.first, self.weight, self._engine = first, weight, engine
        engine.start()

    def scores(self, question: str, passages: Sequence[str]) -> np.ndarray:
        return self._engine.rank(question, passages)

    def close(self) -> None:
        self._engine.close()
