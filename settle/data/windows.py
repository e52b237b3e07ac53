"""Texts as windows of ids in which every byte is predicted just once, for measurements."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from settle.base.tokenizer import Tokenizer


@dataclass(frozen=True)
class Windows:
    """Windows, each opened by a token that is given and not predicted.

    ids: of each window. texts: which text each is of, counted from 0. num_bytes: UTF-8 bytes of each text.
    """

    ids: list[list[int]]
    texts: np.ndarray
    num_bytes: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted."""
        return sum(len(ids) - 1 for ids in self.ids)

    @property
    def total_bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.num_bytes.sum())


def first_texts(tokenizer: Tokenizer, texts: Iterable[str], most_tokens: int) -> list[str]:
    """Return texts from the first on, about `most_tokens` of them in all: the last one is cut at a character."""
    chosen: list[str] = []
    left = most_tokens
    for text in texts:
        number = len(tokenizer.encode(text))
        if number > left:
            text = text[: len(text) * left // number]
        left -= number
        chosen += [text] if text else []
        if left <= 0:
            break
    return chosen


def text_windows(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> Windows:
    """Return windows of at most `length` ids (2 at least), a text after the other.

    Two models with different vocabularies are given different ids for the same texts, and bits per byte over these are
    comparable all the same.
    """
    first = opening_id(tokenizer)
    windows: list[list[int]] = []
    origins: list[int] = []
    num_bytes: list[int] = []
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        for at in range(0, len(ids), length - 1):
            windows.append([first, *ids[at : at + length - 1]])
            origins.append(len(num_bytes))
        num_bytes.append(len(text.encode("utf-8", "replace")))
    return Windows(windows, np.array(origins, int), np.array(num_bytes, int))


def opening_id(tokenizer: Tokenizer) -> int:
    """Return the token that opens a text: the one made for it, or the one that ended the text before."""
    return int(tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id)
