"""A GGUF file that turns texts into vectors, running in llama.cpp, in a child process (see `server_child.py`)."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from settle.base.errors import UsageError
from settle.formats.gguf import pooling, read_gguf
from settle.infer.child_model import ChildModel
from settle.infer.child_process import Child, Load
from settle.library.facts import longest_context

Input = str | Sequence[int]


class VectorEngine(ChildModel[Child]):
    """One embedder loaded in one llama.cpp child.

    most: tokens of the longest text, with those that the tokenizer puts around it; never more than the model was
    trained for. slots: texts that are read together. A file that names no pooling is read with the mean.
    Raises FormatError for a file that is not a sound GGUF, UsageError for a model that ranks, EngineError when
    llama.cpp refuses the file or dies.
    """

    def __init__(self, path: Path | str, most: int = 512, threads: int | None = None, slots: int = 4) -> None:
        self.path = Path(path)
        self.metadata = read_gguf(self.path).metadata
        own_pooling = pooling(self.metadata)
        if own_pooling == "rank":
            raise UsageError(f"{self.path.name} orders passages and gives no vectors", "choose an embedder")
        self.most = min(most, longest_context(self.path.name, self.metadata))
        self._child = Child(
            Load(self.path, self.most, slots, threads=threads, use="embed", mean_pooling=own_pooling == "none")
        )

    def embed(self, inputs: Sequence[Input]) -> NDArray[np.float32]:
        """Embed texts, or ids with everything around them, none of them empty.

        Returns float32 (len(inputs), width), each of length 1. Raises EngineError for one that is too long: nothing is
        cut off.
        """
        texts = [text if isinstance(text, str) else list(map(int, text)) for text in inputs]
        answer = self._child.post("/v1/embeddings", {"input": texts, "encoding_format": "base64"})
        rows = sorted(answer["data"], key=lambda row: row["index"])
        return np.stack([np.frombuffer(base64.b64decode(row["embedding"]), np.float32) for row in rows])

    def count(self, text: str) -> int:
        """Tokens of a text, without what the tokenizer puts around it."""
        body = {"content": text, "add_special": False, "parse_special": True}
        return len(self._child.post("/tokenize", body)["tokens"])
