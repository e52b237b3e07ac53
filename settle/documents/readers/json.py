"""JSON: each record of a list, or each value of an object, as lines of `key: value`."""

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, ClassVar

from settle.documents.blocks import Block, Place
from settle.documents.readers import Note, Reader
from settle.documents.readers._lines import whole_text
from settle.documents.readers._records import record_text
from settle.documents.readers.text import paragraphs

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder(strict=False).raw_decode


class Json(Reader):
    """A place is the line where a record begins. What is no JSON, such as a configuration with comments, is text."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".geojson", ".jsonld")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        text = whole_text(path, note).removeprefix("\ufeff")
        try:
            values = list(_values(text))
        except (ValueError, IndexError):
            note("no valid JSON: read as text")
            for first, lines in paragraphs(text.split("\n")):
                yield Block("code", "\n".join(lines), Place(line=first), lined=True)
            return
        line, counted = 1, 0
        for start, key, value in values:
            line, counted = line + text.count("\n", counted, start), start
            yield Block("text", record_text(value, key), Place(line=line))


def _values(text: str) -> Iterator[tuple[int, str, Any]]:
    """(offset, key, value) of the members of the outermost list or object, and of each list of objects in that."""
    at = _skip(text, 0)
    if text[at : at + 1] in ("[", "{"):
        end = yield from _members(text, at, "")
    else:
        value, end = _decode(text, at)
        yield at, "", value
    if _skip(text, end) != len(text):
        raise ValueError("more than one value")


def _members(text: str, at: int, key: str) -> Generator[tuple[int, str, Any], None, int]:
    """Those of the list or object that begins at `at`; returns where it ends."""
    keyed = text[at] == "{"
    closing = "}" if keyed else "]"
    at = _skip(text, at + 1)
    while text[at] != closing:
        start = at
        if keyed:
            key, at = _decode(text, at)
            at = _skip(text, _expect(text, _skip(text, at), ":"))
        if keyed and text[at] == "[" and text[_skip(text, at + 1)] == "{":
            at = yield from _members(text, at, key)
        else:
            value, at = _decode(text, at)
            yield start, key, value
        at = _skip(text, at)
        if text[at] != closing:
            at = _skip(text, _expect(text, at, ","))
    return at + 1


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _expect(text: str, at: int, mark: str) -> int:
    if text[at] != mark:
        raise ValueError(mark)
    return at + 1
