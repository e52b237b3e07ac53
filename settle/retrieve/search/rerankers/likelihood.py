"""The language model's own judgement: how likely the question is to it after the passage; any GGUF model that writes.

Sachan et al. 2022, "Improving Passage Retrieval with Zero-Shot Question Generation", arXiv:2204.07496.
"""

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from settle.base.errors import UsageError
from settle.infer.scorer import Scorer
from settle.library.facts import longest_context
from settle.library.pretrained import open_pretrained
from settle.model.pretrained import Pretrained
from settle.retrieve.search.rerankers import Ranker, Reranker

_CONTEXT = 1024  # tokens of a passage and a question; what is longer is cut off


class Likelihood(Reranker):
    """Mean log-probability of the question's tokens."""

    weight: float = Field(0.5, ge=0, le=1, description="of its order; the rest is the search's")

    def open(self) -> Ranker:
        if not self.model:
            raise UsageError("likely to which model?", "--reranker.model NAME of `settle pull`, or a .gguf file")
        return _Opened(open_pretrained(self.model), self.first, self.weight)


class _Opened(Ranker):
    def __init__(self, model: Pretrained, first: int, weight: float) -> None:
        self.first, self.weight = first, weight
        self._tokenizer = model.tokenizer
        self._context = min(_CONTEXT, longest_context(model.name, model.metadata))
        self._scorer = Scorer(model.source.path, self._context)
        self._scorer.start()

    def scores(self, question: str, passages: Sequence[str]) -> np.ndarray:
        asked = self._ids(f"\n\nQuestion: {question}\n")[: self._context // 2]
        windows = [[*self._before(passage, self._context - len(asked)), *asked] for passage in passages]
        found = self._scorer.logprobs(windows)
        return np.array([came[-len(asked) :].mean() for came in found], np.float32)

    def close(self) -> None:
        self._scorer.close()

    def _before(self, passage: str, most: int) -> list[int]:
        ids = self._ids(f"Passage: {passage}")[:most]
        return [self._tokenizer.bos_id or 0, *ids] if self._tokenizer.add_bos else ids

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist()
        return ids
