"""The rows that training reads from a file: text, or records with named values. A long text is cut at its borders."""

import re
from collections.abc import Iterable, Iterator
from typing import NotRequired, TypedDict

# a longer text is cut at a paragraph's border, so that no file, whatever its size, is held in memory whole
MAX_DOCUMENT = 2 << 20
_BORDERS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?。！？;]\s*"), re.compile(r"\s"))


class Row(TypedDict):
    """One document: its text, and which row of the file it is (from 1; of lines of text the line at which it begins);
    or the problem that kept a row from being read.
    """

    text: NotRequired[str]
    problem: NotRequired[str]
    row: int


class Record(TypedDict):
    """One row with its named values, and which row of the file it is; or the problem that kept it from being read."""

    value: NotRequired[object]
    problem: NotRequired[str]
    row: int


def text_rows(text: str, row: int) -> Iterator[Row]:
    """The rows of one record: its text, in several where it is very long."""
    if not text:
        yield {"row": row, "problem": "a record without text"}
    for piece in cut([text]):
        yield {"text": piece, "row": row}


def cut(chunks: Iterable[str], limit: int = MAX_DOCUMENT) -> Iterator[str]:
    """Joins chunks to texts of at most `limit` characters, cut after a paragraph, a line, a sentence or a space."""
    text = ""
    for chunk in chunks:
        text += chunk
        while len(text) > limit:
            at = _border(text, limit)
            yield text[:at]
            text = text[at:]
    if text:
        yield text


def _border(text: str, limit: int) -> int:
    """Where to cut: after the last border in the second half of the first `limit` characters."""
    for border in _BORDERS:
        low = limit - limit // 8 if border is not _BORDERS[0] else limit // 2
        last = None
        for last in border.finditer(text, low, limit):  # noqa: B007 - the last match is what is wanted
            pass
        if last is not None:
            return last.end()
    return limit
