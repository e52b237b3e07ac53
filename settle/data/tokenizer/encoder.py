"""Text to token ids at many times the speed of a tokenizer that walks word by word; the ids are the same.

Each distinct word is merged once by `tokenizers` and remembered; a text is then a matter of looking words up:
the words are found by numpy, made distinct by arrow's hash table, and their ids are collected.
Legend: B bytes, W words, D documents, N tokens.
"""

import threading

import numpy as np
import pyarrow as pa
from tokenizers import models

from settle.data.tokenizer.pretokenize import word_starts

# words remembered before the memory is emptied: with their ids they take about 40 MB
MAX_WORDS = 200_000
# a longer word is hardly ever met twice
MAX_REMEMBERED_BYTES = 64


class Encoder:
    """Encodes documents with one byte-level BPE model. Safe to use from several threads."""

    def __init__(self, model: models.BPE, end_id: int, byte_characters: dict[int, str], dtype: type) -> None:
        self._model = model
        self._end_id = end_id
        self._characters = byte_characters
        self._dtype = dtype
        self._lock = threading.Lock()
        self._forget()

    def encode(self, text: bytes, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) of all documents, each closed by the end token, and the position after each: int64 (D,).

        `text` holds UTF-8 documents, each followed by one byte of any value at `ends` (int64, (D,)).
        """
        starts = word_starts(np.frombuffer(text, np.uint8), ends)
        offsets = np.append(starts, np.int32(len(text)))
        words = pa.Array.from_buffers(
            pa.binary(), len(starts), [None, pa.py_buffer(offsets), pa.py_buffer(text)]
        ).dictionary_encode()
        which = words.indices.to_numpy(zero_copy_only=False)
        first, length, ids = self._look_up(words.dictionary.to_pylist())
        closing = np.searchsorted(starts, ends)
        lengths = length[which]
        lengths[closing] = 1
        stops = np.cumsum(lengths, dtype=np.int32)
        source = np.repeat(first[which] - (stops - lengths), lengths)
        source += np.arange(len(source), dtype=np.int32)
        out = ids[source]
        after = stops[closing].astype(np.int64)
        out[after - 1] = self._end_id
        return out, after

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._first = np.zeros(1 << 12, np.int32)
        self._length = np.zeros(1 << 12, np.int32)
        self._ids: np.ndarray = np.zeros(1 << 14, self._dtype)
        self._places = self._used = 0

    def _look_up(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each word where its ids begin and how many they are, and the array they lie in."""
        with self._lock:
            if self._places > MAX_WORDS:
                self._forget()
            known = self._known
            new = [word for word in words if word not in known]
            if new:
                self._learn(new)
            places = np.fromiter(map(known.__getitem__, words), np.int64, len(words))
            result = self._first[places], self._length[places], self._ids
            for word in new:
                if len(word) > MAX_REMEMBERED_BYTES:
                    del known[word]
            return result

    def _learn(self, words: list[bytes]) -> None:
        characters, tokenize = self._characters, self._model.tokenize
        ids = [[t.id for t in tokenize(w.decode("latin-1").translate(characters))] for w in words]
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        flat: np.ndarray = np.fromiter((i for word in ids for i in word), self._dtype, int(lengths.sum()))
        place, used = self._places, self._used
        self._first = _put(self._first, place, used + np.cumsum(lengths) - lengths)
        self._length = _put(self._length, place, lengths)
        self._ids = _put(self._ids, used, flat)
        self._places, self._used = place + len(words), used + len(flat)
        self._known.update(zip(words, range(place, self._places), strict=True))


def _put(array: np.ndarray, at: int, values: np.ndarray) -> np.ndarray:
    """`array` with `values` written at `at`, grown where needed; readers of the old array keep what they saw."""
    if at + len(values) > len(array):
        grown = np.zeros(max(2 * len(array), at + len(values)), array.dtype)
        grown[:at] = array[:at]
        array = grown
    array[at : at + len(values)] = values
    return array
