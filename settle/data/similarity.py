"""Near-duplicate documents: MinHash over word shingles (by `rensa`), found by banding.

What grows with the corpus lies on disk (256 bytes a document) and is compared one band at a time.
Legend: D documents, W words, B bytes, H hashes per signature.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import rensa

from settle.data.document_buffer import DocumentBuffer
from settle.data.tokenizer.character_classes import word_starts

_HASHES, _ROWS = 64, 4  # 16 bands of 4: two documents with Jaccard 0.6 meet in 89 of 100 cases, with 0.85 always
_SHINGLE = 5  # words
_SEED = 1
_AT_ONCE = 1 << 14  # words
_LEAST_SIMILARITY = 0.5  # pairs less alike are of no use to anyone
_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_MIX = np.uint64(0xBF58476D1CE4E5B9)


class Similarity:
    """The similar pairs among a spool's documents."""

    def __init__(self, documents: DocumentBuffer) -> None:
        self.size = len(documents)
        path: Path = documents.folder / "similar.npz"
        if not path.exists():
            left, right, alike = self._compare(_signatures(documents))
            np.savez(path, left=left, right=right, alike=alike)
        with np.load(path) as pairs:
            self._left, self._right, self._alike = pairs["left"], pairs["right"], pairs["alike"]

    def clusters(self, jaccard: float) -> np.ndarray:
        """Return for each document the first of its cluster: int64 (D,); pairs at or above `jaccard` are joined."""
        enough = self._alike >= jaccard
        left, right = self._left[enough], self._right[enough]
        parent = {i: i for i in np.union1d(left, right).tolist()}

        def root(i: int) -> int:
            while parent[i] != i:
                parent[i] = parent[parent[i]]
                i = parent[i]
            return i

        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = root(a), root(b)
            parent[max(a, b)] = min(a, b)
        first = np.arange(self.size)
        joined = list(parent)
        first[joined] = [root(i) for i in joined]
        return first

    def _compare(self, signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs (left < right) that share a band, and the share of equal hashes: an estimate of Jaccard."""
        pairs = [_band(signatures, first) for first in range(0, _HASHES, _ROWS)]
        left, right = np.divmod(np.unique(np.concatenate(pairs)), max(self.size, 1))
        alike = np.empty(len(left), np.float32)
        for start in range(0, len(left), 65536):
            part = slice(start, start + 65536)
            alike[part] = (signatures[left[part]] == signatures[right[part]]).mean(1)
        likely = alike >= _LEAST_SIMILARITY
        return left[likely], right[likely], alike[likely]


def _band(signatures: np.ndarray, first: int) -> np.ndarray:
    """Return documents equal in one band, as pairs left * D + right: each with its group's first and its neighbour."""
    size = len(signatures)
    key = np.zeros(size, np.uint64)
    for column in range(first, first + _ROWS):
        key = (key ^ signatures[:, column].astype(np.uint64)) * _PRIME
        key ^= key >> np.uint64(29)
    order = np.argsort(key, kind="stable")
    same = np.append(False, key[order][1:] == key[order][:-1])[:size]
    begins = np.maximum.accumulate(np.where(same, 0, np.arange(size)))
    at = np.flatnonzero(same)
    return np.concatenate([order[begins[at]] * size + order[at], order[at - 1] * size + order[at]])


def _signatures(documents: DocumentBuffer) -> np.ndarray:
    """Return MinHash signatures on disk: uint32 (D, H)."""
    path: Path = documents.folder / "signatures.bin"
    with path.open("wb") as f:
        for _, text, ends in documents.chunks():
            hashes, rows = _shingles(np.frombuffer(text, np.uint8), ends)
            matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(hashes, rows, _HASHES, _SEED)
            f.write(np.array(matrix.to_rows(), np.uint32).data)
    if not len(documents):
        return np.zeros((0, _HASHES), np.uint32)
    return np.memmap(path, np.uint32, "r").reshape(-1, _HASHES)


def _word_hashes(buffer: np.ndarray, starts: np.ndarray, first: int) -> np.ndarray:
    """Return the hashes of the words from number `first` on, a few thousand at once: uint64."""
    own = starts[first : first + _AT_ONCE]
    begin = own[0]
    end = starts[first + _AT_ONCE] if first + _AT_ONCE < len(starts) else len(buffer)
    text = buffer[begin:end].astype(np.uint64) + np.uint64(1)
    own = own - begin
    # a polynomial in the word's bytes, whatever its place in the buffer
    room = 1 << len(text).bit_length()
    text *= _powers(_PRIME, room)[: len(text)]
    words = np.add.reduceat(text, own) * _powers(_INVERSE, room)[own]
    words = (words ^ (words >> np.uint64(31))) * _MIX
    mixed: np.ndarray = words ^ (words >> np.uint64(29))
    return mixed


@lru_cache(4)
def _powers(base: np.uint64, count: int) -> np.ndarray:
    """Return base to the power of 0, 1, … modulo 2**64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers, out=powers)


def _shingles(buffer: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return hashes of every five words in a row of each document, and where each document's begin (D + 1,), uint64.

    A document of fewer words has one shingle: all of them.
    """
    starts = word_starts(buffer, ends)
    words = np.empty(len(starts), np.uint64)
    for first in range(0, len(starts), _AT_ONCE):
        words[first : first + _AT_ONCE] = _word_hashes(buffer, starts, first)
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
