"""A GGUF file that scores how well passages answer a question, running in llama.cpp, in a child process."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from settle.base.errors import UsageError
from settle.formats.gguf import pooling, read_gguf
from settle.infer.child_model import ChildModel
from settle.infer.child_process import Child, Load
from settle.library.facts import longest_context


class RankEngine(ChildModel[Child]):
    """One reranker loaded in one llama.cpp child.

    most: tokens of a question and a passage together; never more than the model was trained for. Raises FormatError for
    a file that is not a sound GGUF, UsageError for a model that does not rank, EngineError when llama.cpp refuses the
    file or dies.
    """

    def __init__(self, path: Path | str, most: int = 1024, threads: int | None = None) -> None:
        self.path = Path(path)
        metadata = read_gguf(self.path).metadata
        if pooling(metadata) != "rank":
            raise UsageError(f"{self.path.name} is not a reranker", "choose one: bge-reranker-v2-m3, jina-reranker …")
        self.most = min(most, longest_context(self.path.name, metadata))
        self._child = Child(Load(self.path, self.most, threads=threads, use="rerank"))

    def rank(self, question: str, passages: Sequence[str]) -> NDArray[np.float32]:
        """Scores, float32 (len(passages),), higher for the better ones. Raises EngineError where a question and a
        passage are too long together: nothing is cut off."""
        answer = self._child.post("/v1/rerank", {"query": question, "documents": list(passages)})
        scores = np.empty(len(passages), np.float32)
        for row in answer["results"]:
            scores[row["index"]] = row["relevance_score"]
        return scores
