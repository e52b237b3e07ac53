"""Stores: one file for each place where vectors are kept and their nearest neighbours are found."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from settle.base.registry import Part


class Vectors(ABC):
    """An opened store. The catalogue decides which vectors count; after a crash a store may hold some that do not."""

    @abstractmethod
    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Store int64 (n,) ids with float32 (n, width) vectors of length 1; they are on the disk when it returns.

        An id that is stored already gets the new vector.
        """

    @abstractmethod
    def remove(self, ids: Sequence[int]) -> None:
        """Remove some vectors; ids that are not stored are no error."""

    @abstractmethod
    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        """Return int64 ids that include the k nearest to a float32 (width,) vector of length 1.

        They are compared exactly afterwards: an approximate store returns several times k.
        """

    @abstractmethod
    def compact(self) -> None:
        """Return the room of removed vectors to the disk, and update the index."""

    @abstractmethod
    def drop(self) -> None:
        """Remove everything of this collection, where `url` is too."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def close(self) -> None:
        """Close the store. Calling it twice is harmless."""


class Store(Part):
    """The contract of a store."""

    url: str = Field(
        "", description="server or object store that stores the vectors; the collection's folder when not given"
    )

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        """Open or make the store.

        folder: where it may put its files. name: of the collection's table, which no other one at `url` has. Raises
        UsageError with what to install when its library is missing.
        """
        raise NotImplementedError
