"""Stores: one file a place where vectors are kept for their nearest to be found."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from settle.base.registry import Part


class Vectors(ABC):
    """An opened store. Which vectors count is not its business: the catalogue decides (see `catalogue.py`), and a store
    may hold some that do not, after a crash.
    """

    @abstractmethod
    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        """Keeps int64 (n,) ids with float32 (n, width) vectors of length 1; on the disk when it returns. An id that is
        there already gets the new vector."""

    @abstractmethod
    def remove(self, ids: Sequence[int]) -> None:
        """Forgets some; ids that are not there are no error."""

    @abstractmethod
    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        """int64 ids that the k nearest to a float32 (width,) vector of length 1 are among. They are compared in full
        afterwards: a store that reckons roughly gives some times as many."""

    @abstractmethod
    def compact(self) -> None:
        """Gives the disk back what removed vectors held, and brings what speeds a search up to date."""

    @abstractmethod
    def drop(self) -> None:
        """Removes everything of this collection, where `url` is too."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def close(self) -> None:
        """Calling it twice is harmless."""


class Store(Part):
    """The contract of a store."""

    url: str = Field(
        "", description="server or object store that stores the vectors; the collection's folder when not given"
    )

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        """Opens or makes the store. folder: where it may put its files; name: of the collection, for what it shares
        with others at `url`. Raises UsageError with what to install when its library is missing."""
        raise NotImplementedError
