"""The rows that training reads from a file: text, or records with named values; and the text of a record.

A long text is cut at its borders.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NotRequired, TypedDict

from settle.base.errors import DataError

# a longer text is cut at a paragraph's border, so that no file, whatever its size, is held in memory whole
MAX_DOCUMENT = 2 << 20
_BORDERS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?。！？;]\s*"), re.compile(r"\s"))
# in this order; the first that is there and holds text
_TEXT_KEYS = ("text", "content", "body", "document", "article", "passage", "code", "story", "raw_content")
_TURN_KEYS = ("messages", "conversations", "conversation", "turns")


Values = Mapping[str, object]
"""The named values of a row, as they were read."""


class Row(TypedDict):
    """One document with its row, or the problem that kept a row from being read."""

    text: NotRequired[str]
    problem: NotRequired[str]
    row: int  # of the file, from 1; of lines of text the line at which it begins


class Record(TypedDict):
    """One row with its named values, and which row of the file it is; or the problem that kept it from being read.

    detail: what exactly the problem is, where rows of one problem differ in that.
    """

    value: NotRequired[object]
    problem: NotRequired[str]
    detail: NotRequired[str]
    row: int


def problem_of(record: Record) -> str:
    """Return why a record has no named values, with its detail."""
    problem = record.get("problem", "a row without named values")
    return f"{problem} ({detail})" if (detail := record.get("detail")) else problem


def text_rows(text: str, row: int) -> Iterator[Row]:
    """Yield the rows of one record: its text, in several where it is very long."""
    if not text:
        yield {"row": row, "problem": "a record without text"}
    for piece in cut([text]):
        yield {"text": piece, "row": row}


def cut(chunks: Iterable[str], limit: int = MAX_DOCUMENT) -> Iterator[str]:
    """Join chunks to texts of at most `limit` characters, cut after a paragraph, a line, a sentence or a space."""
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
    """Return where to cut: after the last border in the second half of the first `limit` characters."""
    for border in _BORDERS:
        low = limit - limit // 8 if border is not _BORDERS[0] else limit // 2
        last = None
        for last in border.finditer(text, low, limit):  # noqa: B007 - the last match is what is wanted
            pass
        if last is not None:
            return last.end()
    return limit


def record_lines(value: object, key: str = "") -> str:
    """Return a line `key: value` for each value that is not empty, nested keys joined by dots.

    A text of several lines keeps them.
    """
    lines: list[str] = []
    waiting: list[tuple[str, object]] = [(key, value)]
    while waiting:
        name, current = waiting.pop()
        match current:
            case dict():
                waiting += [(f"{name}.{k}" if name else str(k), v) for k, v in reversed(current.items())]
            case list() if any(isinstance(v, dict | list) for v in current):
                waiting += [(name, v) for v in reversed(current)]
            case _ if current not in (None, "", []):
                lines.append(f"{name}: {_shown(current)}" if name else _shown(current))
    return "\n".join(lines)


def _shown(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return ", ".join(map(_shown, value))
    return str(value)


def record_document(record: object, field: str | None) -> str:
    """Return the document in one record; "" when it holds none.

    With `field` that value. Otherwise a value under a usual name for text, a conversation's turns, or, when there is
    neither, every text in the record, in order, with a blank line between. Raises DataError when `field` is not there.
    """
    match record:
        case str():
            return record
        case list():
            return _joined(record_document(one, None) for one in record)
        case dict() if field is None:
            lowered = {str(key).lower(): value for key, value in record.items()}
            for text in map(lowered.get, _TEXT_KEYS):
                if isinstance(text, str) and text.strip():
                    return text
            for turns in map(lowered.get, _TURN_KEYS):
                if isinstance(turns, list):
                    return _joined(map(_turn_text, turns))
            return _joined(record_document(value, None) for value in record.values())
        case dict():
            if field not in record:
                known = ", ".join(map(repr, list(record)[:20]))
                raise DataError(f"there is no field {field!r} in the data", f"use one of {known}")
            return record_document(record[field], None)
    return ""


def _turn_text(turn: object) -> str:
    match turn:
        case str():
            return turn
        case dict():
            return next((v for k in ("content", "value", "text") if isinstance(v := turn.get(k), str)), "")
    return ""


def _joined(texts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, texts))
