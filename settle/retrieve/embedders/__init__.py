"""Embedders: one file a way to turn texts into vectors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np

from settle.base.registry import Part


class Vectorizer(ABC):
    """An opened embedder. width: of its vectors. most: tokens of a text that it reads; what is longer would be cut off.
    identity: says which vectors can be compared: the hash of the weights with everything else that changes a vector.
    """

    width: int
    most: int
    identity: str

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without what is put around it."""

    @abstractmethod
    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Passages as float32 (len(texts), width), each of length 1."""

    @abstractmethod
    def query(self, text: str) -> np.ndarray:
        """A question as float32 (width,), of length 1."""

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Ends what was started. Calling it twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Embedder(Part):
    """The contract of an embedder."""

    def open(self) -> Vectorizer:
        """Loads it. Raises UsageError with what to install or pull when it is not here."""
        raise NotImplementedError
