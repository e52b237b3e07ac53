"""The classes of characters (letter, number, space, …) by which text is cut into words before merging bytes.

They are frozen in `character_classes.toml` at Unicode 15.1, which is what llama.cpp's own table holds (probed code
point by code point through its tokenizer). A regular-expression engine's `\\p{L}` follows its own Unicode version
instead, and then one text gives two different lists of ids in training and in the exported file: `tokenizers` 0.23
knows Unicode 16 and differs in 4,382 code points. Surrogates are in no class: they cannot occur in UTF-8.
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


def ranges(listed: str) -> list[tuple[int, int]]:
    """The inclusive ranges of code points written as `41-5a aa …` in hexadecimal."""
    return [(int(first, 16), int(last or first, 16)) for first, _, last in (r.partition("-") for r in listed.split())]


@cache
def table() -> np.ndarray:
    """The class of every code point: uint8 (0x110000,)."""
    classes = np.full(0x110000, OTHER, np.uint8)
    for listed, kind in ((LETTERS, LETTER), (NUMBERS, NUMBER), (SPACES, SPACE)):
        for first, last in ranges(listed):
            classes[first : last + 1] = kind
    return classes


def inside_brackets(listed: str) -> str:
    """The ranges as the inside of a regular expression's [class], as characters."""
    return "".join(_quoted(a) if a == b else f"{_quoted(a)}-{_quoted(b)}" for a, b in ranges(listed))


def _quoted(code_point: int) -> str:
    character = chr(code_point)
    return f"\\{character}" if character in "\\]^-[&~|" else character


@cache
def pattern() -> str:
    """GPT-2's word pattern with the classes written out, so that every engine agrees on it."""
    letters, numbers, spaces = (
        "".join(f"\\x{{{a:X}}}" if a == b else f"\\x{{{a:X}}}-\\x{{{b:X}}}" for a, b in ranges(listed))
        for listed in (LETTERS, NUMBERS, SPACES)
    )
    return (
        rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{letters}]+| ?[{numbers}]+| ?[^{spaces}{letters}{numbers}]+"
        rf"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
    )
