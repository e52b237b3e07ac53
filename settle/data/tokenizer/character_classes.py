"""The classes of characters (letter, number, space, …), and UTF-8 cut into the words of GPT-2's pattern by them.

The classes are frozen in `character_classes.toml` at Unicode 15.1, which is what llama.cpp's own table holds (probed
code point by code point through its tokenizer). A regular-expression engine's `\\p{L}` follows its own Unicode version
instead, and then one text gives two different lists of ids in training and in the exported file: `tokenizers` 0.23
knows Unicode 16 and differs in 4,382 code points. Surrogates are in no class: they cannot occur in UTF-8.

`word_starts` cuts many documents at once and without a regular expression; `pattern()` says the same as one.
Legend: B bytes, W words, D documents.
"""

import tomllib
from functools import cache
from pathlib import Path

import numpy as np

LETTER, NUMBER, SPACE, OTHER = range(4)
_CLASSES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
LETTERS, NUMBERS, SPACES = _CLASSES["letters"], _CLASSES["numbers"], _CLASSES["spaces"]
PUNCTUATION, SYMBOLS, MARKS = _CLASSES["punctuation"], _CLASSES["symbols"], _CLASSES["marks"]
CASED_LETTERS = _CLASSES["cased_letters"]
END = 4  # the class of the one byte that follows each document
_QUOTE, _BLANK = ord("'"), ord(" ")


def ranges(listed: str) -> list[tuple[int, int]]:
    """Return the inclusive ranges of code points written as `41-5a aa …` in hexadecimal."""
    return [(int(first, 16), int(last or first, 16)) for first, _, last in (r.partition("-") for r in listed.split())]


@cache
def table() -> np.ndarray:
    """Return the class of every code point: uint8 (0x110000,)."""
    classes = np.full(0x110000, OTHER, np.uint8)
    for listed, kind in ((LETTERS, LETTER), (NUMBERS, NUMBER), (SPACES, SPACE)):
        for first, last in ranges(listed):
            classes[first : last + 1] = kind
    return classes


def inside_brackets(listed: str) -> str:
    """Return the ranges as the inside of a regular expression's [class], as characters."""
    return "".join(_quoted(a) if a == b else f"{_quoted(a)}-{_quoted(b)}" for a, b in ranges(listed))


def _quoted(code_point: int) -> str:
    character = chr(code_point)
    return f"\\{character}" if character in "\\]^-[&~|" else character


@cache
def pattern() -> str:
    """Return GPT-2's word pattern with the classes written out, so that every engine agrees on it."""
    letters, numbers, spaces = (
        "".join(f"\\x{{{a:X}}}" if a == b else f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges(listed))
        for listed in (LETTERS, NUMBERS, SPACES)
    )
    return (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^{spaces}{letters}{numbers}]+"
        rf"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )


def word_starts(buffer: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return where the words of the documents in `buffer` begin: int32 (W,), ascending, the first is 0.

    `buffer` is uint8 (B,), B < 2**31: UTF-8 documents, each followed by one byte of any value, which becomes a word of
    its own. `ends` is int64 (D,): the positions of those bytes.
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
    """Return the class of every byte's character: uint8 (B,)."""
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
    """Apply `\\s+(?!\\S)`: before a word, the last space of a run is alone, and a blank joins the word."""
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
    """Apply `'s|'t|'re|'ve|'m|'ll|'d` where a word begins with its quote."""
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
