"""Cuts UTF-8 into the words of GPT-2's pattern, many documents at once and without a regular expression.

`character_classes.pattern()` says the same thing as a regular expression; the tests hold the two together.
Legend: B bytes, W words, D documents.
"""

from functools import cache

import numpy as np

from settle.data.tokenizer.character_classes import LETTER, OTHER, SPACE, table

END = 4  # the class of the one byte that follows each document
_QUOTE, _BLANK = ord("'"), ord(" ")


def word_starts(buffer: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Where the words of the documents in `buffer` begin: int32 (W,), ascending, the first is 0.

    `buffer` is uint8 (B,), B < 2**31: UTF-8 documents, each followed by one byte of any value, which becomes a
    word of its own. `ends` is int64 (D,): the positions of those bytes.
    """
    classes = _classes(buffer)
    classes[ends] = END
    starts = np.empty(len(buffer), bool)
    starts[0] = True
    np.not_equal(classes[1:], classes[:-1], out=starts[1:])
    starts[ends] = True  # empty documents: two closing bytes side by side
    _give_last_space_away(buffer, classes, starts)
    _split_contractions(buffer, classes, starts)
    return np.flatnonzero(starts).astype(np.int32)


@cache
def _ascii_classes() -> np.ndarray:
    classes = np.full(256, OTHER, np.uint8)
    classes[:128] = table()[:128]
    return classes


def _classes(buffer: np.ndarray) -> np.ndarray:
    """The class of every byte's character: uint8 (B,)."""
    classes: np.ndarray = _ascii_classes()[buffer]
    lead = np.flatnonzero(buffer >= 0xC0)
    if not len(lead):
        return classes
    first = buffer[lead].astype(np.uint32)
    width = 2 + (first >= 0xE0) + (first >= 0xF0)
    last = len(buffer) - 1
    b, c, d = (buffer[np.minimum(lead + k, last)].astype(np.uint32) & 0x3F for k in (1, 2, 3))
    code = np.where(
        width == 2,
        (first & 0x1F) << 6 | b,
        np.where(width == 3, (first & 0x0F) << 12 | b << 6 | c, (first & 0x07) << 18 | b << 12 | c << 6 | d),
    )
    kind = table()[code]
    classes[lead] = kind
    for k in (1, 2, 3):
        reaches = width > k
        classes[lead[reaches] + k] = kind[reaches]
    return classes


def _give_last_space_away(buffer: np.ndarray, classes: np.ndarray, starts: np.ndarray) -> None:
    """`\\s+(?!\\S)`: before a word, the last space of a run stands alone, and a blank joins the word."""
    after = starts[1:] & (classes[:-1] == SPACE) & (classes[1:] != END)
    joins = after & (buffer[:-1] == _BLANK)
    starts[1:] ^= joins
    starts[:-1] |= joins
    alone = np.flatnonzero(after & ~joins)
    while len(alone):  # back to the first byte of the last space
        inside = (buffer[alone] & 0xC0) == 0x80
        starts[alone[~inside]] = True
        alone = alone[inside] - 1


def _split_contractions(buffer: np.ndarray, classes: np.ndarray, starts: np.ndarray) -> None:
    """`'s|'t|'re|'ve|'m|'ll|'d` where a word begins with its quote."""
    size = len(buffer)
    quote = np.flatnonzero((buffer == _QUOTE) & starts)
    quote = quote[quote + 1 < size]
    quote = quote[classes[quote + 1] == LETTER]
    second = buffer[quote + 1]
    third = buffer[np.minimum(quote + 2, size - 1)]
    one = np.isin(second, np.frombuffer(b"stmd", np.uint8))
    two = np.zeros(len(quote), bool)
    for pair in (b"re", b"ve", b"ll"):
        two |= (second == pair[0]) & (third == pair[1]) & (classes[np.minimum(quote + 2, size - 1)] == LETTER)
    for quotes, length in ((quote[one], 2), (quote[two], 3)):
        starts[quotes + 1] = False
        after = quotes + length
        starts[after[after < size]] = True
