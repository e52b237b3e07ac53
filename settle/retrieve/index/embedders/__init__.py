"""Embedders: one file for each way to turn texts into vectors."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np

from settle.base.event_log import Events
from settle.base.registry import Part


class Vectorizer(ABC):
    """An opened embedder."""

    width: int  # of its vectors
    most: int  # tokens of a text that it reads
    # only vectors with the same one can be compared: it hashes the weights and everything else that changes a vector
    identity: str

    @abstractmethod
    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, without prefixes and special tokens."""

    @abstractmethod
    def documents(self, texts: Sequence[str]) -> np.ndarray:
        """Return passages as float32 (len(texts), width), each of length 1.

        Raises DataError for one that is too long: nothing is cut off.
        """

    @abstractmethod
    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return questions as float32 (len(texts), width), each of length 1. Raises DataError for a longer one."""

    def query(self, text: str) -> np.ndarray:
        """Return a question as float32 (width,), of length 1: the mean of its parts where it is too long."""
        mean = self.queries(list(self.parts(text))).mean(0)
        unit: np.ndarray = mean / np.linalg.norm(mean)
        return unit

    def parts(self, text: str) -> Iterator[str]:
        """Halve a text, between words where possible, until each part is short enough."""
        if self.count([text])[0] <= self.most or len(text) < 2:
            yield text
            return
        middle = text.rfind(" ", 1, len(text) // 2 + 1)
        cut = middle if middle > 0 else len(text) // 2
        yield from self.parts(text[:cut])
        yield from self.parts(text[cut:])

    def close(self) -> None:  # noqa: B027  most have nothing to end
        """Stop what was started. Calling it twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Embedder(Part):
    """The contract of an embedder."""

    def prepare(self, events: Events) -> None:  # noqa: B027  most have nothing to pull
        """Pull what is not on this machine yet, and report what the user should know. Raises SettleError."""

    def open(self) -> Vectorizer:
        """Load it. Raises UsageError with what to install, pull or start when it is not here."""
        raise NotImplementedError


def identity_of(**parts: object) -> str:
    """Return one string for everything that changes a vector."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
