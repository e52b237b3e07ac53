"""Rerankers: one file a way to read a question and a passage together; slow, so only the best of a search are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
from pydantic import Field

from settle.base.registry import Part
from settle.retrieve.search.hybrid_search import Hit


class Ranker(ABC):
    """An opened reranker. Use it as a context manager. first: passages that it orders anew; weight: of what it says."""

    first: int
    weight: float

    @abstractmethod
    def scores(self, question: str, passages: Sequence[str]) -> np.ndarray:
        """float32 (len(passages),), higher for those that answer the question better."""

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Ends what was started. Calling it twice is harmless."""

    def reranked(self, question: str, hits: Sequence[Hit]) -> list[Hit]:
        """Hits, the best first, the first of them ordered anew; the others follow as they were."""
        some = hits[: self.first]
        if len(some) < 2:
            return list(hits)
        told = _standard(self.scores(question, [hit.passage.embedded for hit in some]))
        before = _standard(np.array([hit.score for hit in some], np.float32))
        order = np.argsort(-(self.weight * told + (1 - self.weight) * before), kind="stable")
        return [some[i] for i in order] + list(hits[len(some) :])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Reranker(Part):
    """The contract of a reranker."""

    model: str = Field("", description="a model that `settle pull` got, by name, or a .gguf file")
    first: int = Field(20, gt=0, description="so many of the best passages are ordered anew")

    def open(self) -> Ranker:
        """Loads it. Raises UsageError with what to install or pull when it is not here."""
        raise NotImplementedError


def _standard(scores: np.ndarray) -> np.ndarray:
    """With mean 0 and deviation 1, so that scores of two kinds can be added."""
    spread = float(scores.std())
    return (scores - scores.mean()) / spread if spread else np.zeros_like(scores)
