"""An embedder for tests: every word falls into some dimensions by its hash. No model, no download, microseconds a text.

Texts that share words are near one another, so what is found can be told beforehand.
"""

import re
import time
import zlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from settle.base.event_log import Events
from settle.base.events import Say
from settle.retrieve.index.embedders import Embedder, Vectorizer

_TOKEN = re.compile(r"\w+|[^\w\s]")


class Hashed(Embedder):
    """Bags of words, hashed."""

    width: int = Field(64, gt=1, description="of the vectors")
    pause: float = Field(0.0, ge=0, description="seconds that each passage takes, where a test wants to come between")

    def prepare(self, events: Events) -> None:
        events.emit(Say(text="the hashes are ready"))

    def open(self) -> Vectorizer:
        return _Hashing(self.width, self.pause)


class _Hashing(Vectorizer):
    most = 254

    def __init__(self, width: int, pause: float) -> None:
        self.width, self.identity, self._pause = width, f"hashed-{width}", pause

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(_TOKEN.findall(text)) for text in texts]

    def documents(self, texts: Sequence[str]) -> np.ndarray:
        time.sleep(self._pause * len(texts))
        return self.queries(texts)

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self._vector(text) for text in texts]) if texts else np.zeros((0, self.width), np.float32)

    def _vector(self, text: str) -> np.ndarray:
        vector = np.full(self.width, 1e-3, np.float32)
        for word in _TOKEN.findall(text.lower()):
            at = zlib.crc32(word.encode())
            vector[at % self.width] += 1 if at >> 31 else -1
        unit: np.ndarray = vector / np.linalg.norm(vector)
        return unit
