"""Which documents are nearly the same: MinHash over word shingles (by `rensa`), found by banding.

What grows with the corpus lies on disk (256 bytes a document) and is compared one band at a time.
Legend: D documents, W words, B bytes, H hashes per signature.
"""

from pathlib import Path

import numpy as np
import rensa

from settle.data.spool import Spool
from settle.data.words import word_starts

_HASHES, _ROWS = 64, 4  # 16 bands of 4: two documents with Jaccard 0.6 meet in 89 of 100 cases, with 0.85 always
_SHINGLE = 5  # words
_SEED = 1
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Similarity:
    """The similar pairs among a spool's documents."""

    def __init__(self, documents: Spool) -> None:
        self.size = len(documents)
        self._signatures = _signatures(documents)
        self._pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def clusters(self, jaccard: float) -> np.ndarray:
        """For each document the first document of its cluster: int64 (D,); pairs at or above `jaccard` are joined."""
        left, right, alike = self._candidates()
        enough = alike >= jaccard
        parent = list(range(self.size))

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for a, b in zip(left[enough].tolist(), right[enough].tolist(), strict=True):
            a, b = root(a), root(b)
            parent[max(a, b)] = min(a, b)
        for i in range(self.size):
            parent[i] = parent[parent[i]]
        return np.array([root(i) for i in parent], np.int64)

    def _candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs (left < right) that share a band, and the share of equal hashes: an estimate of Jaccard."""
        if self._pairs is None:
            found = [self._band(first) for first in range(0, _HASHES, _ROWS)]
            pairs = np.unique(np.concatenate(found), axis=0)
            alike = np.empty(len(pairs), np.float32)
            for start in range(0, len(pairs), 65536):
                a, b = pairs[start : start + 65536].T
                alike[start : start + 65536] = (self._signatures[a] == self._signatures[b]).mean(1)
            self._pairs = pairs[:, 0], pairs[:, 1], alike
        return self._pairs

    def _band(self, first: int) -> np.ndarray:
        """Documents equal in one band, as pairs: each with its group's first and with its neighbour."""
        key = np.zeros(self.size, np.uint64)
        for column in range(first, first + _ROWS):
            key = (key ^ self._signatures[:, column].astype(np.uint64)) * _PRIME
            key ^= key >> np.uint64(29)
        order = np.argsort(key, kind="stable")
        same = np.append(False, key[order][1:] == key[order][:-1])
        begins = np.maximum.accumulate(np.where(same, 0, np.arange(self.size)))
        at = np.flatnonzero(same)
        pairs = np.concatenate([np.stack([order[begins[at]], order[at]], 1), np.stack([order[at - 1], order[at]], 1)])
        return np.unique(pairs, axis=0)


def _signatures(documents: Spool) -> np.ndarray:
    """MinHash signatures on disk: uint32 (D, H)."""
    path: Path = documents.folder / "signatures.bin"
    with path.open("wb") as f:
        for _, text, ends in documents.chunks():
            hashes, rows = _shingles(np.frombuffer(text, np.uint8), ends)
            matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, _HASHES, _SEED)
            np.array(matrix.to_rows(), np.uint32).tofile(f)
    if not len(documents):
        return np.zeros((0, _HASHES), np.uint32)
    return np.memmap(path, np.uint32, "r").reshape(-1, _HASHES)


def _shingles(buffer: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of every five words in a row of each document, and where each document's begin (D + 1,): both uint64.

    A document of fewer words has one shingle: all of them.
    """
    starts = word_starts(buffer, ends)
    power = np.full(len(buffer), _PRIME, np.uint64)
    power[0] = 1
    inverse = np.full(len(buffer), _INVERSE, np.uint64)
    inverse[0] = 1
    np.multiply.accumulate(power, out=power)
    np.multiply.accumulate(inverse, out=inverse)
    words = np.add.reduceat((buffer.astype(np.uint64) + np.uint64(1)) * power, starts) * inverse[starts]
    words = (words ^ (words >> np.uint64(31))) * _MIX
    words ^= words >> np.uint64(29)
    closing = np.searchsorted(starts, ends)
    counts = np.diff(closing, prepend=-1) - 1
    begins = closing - counts
    shingles = np.zeros(len(words), np.uint64)
    usable = max(len(words) - _SHINGLE, 0)
    for k in range(_SHINGLE):
        shingles[:usable] = shingles[:usable] * _PRIME + words[k : k + usable]
    for document in np.flatnonzero(counts < _SHINGLE).tolist():
        own = words[begins[document] : begins[document] + counts[document]]
        shingles[begins[document]] = np.bitwise_xor.reduce(own * _PRIME + _MIX) if len(own) else 0
    amounts = np.maximum(counts - _SHINGLE + 1, 1)
    rows = np.append(0, np.cumsum(amounts))
    index = np.arange(rows[-1]) - np.repeat(rows[:-1] - begins, amounts)
    mixed = shingles[index]
    return (mixed ^ (mixed >> np.uint64(32))) * _MIX, rows.astype(np.uint64)
