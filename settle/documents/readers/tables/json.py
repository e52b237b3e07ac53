"""JSON: each record of a list, or each value of an object, as lines of `key: value`."""

import json
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.decode import MAX_RECORD, decoded, whole_text
from settle.documents.readers.tables import Start, TableReader
from settle.documents.readers.text.text import paragraphs
from settle.documents.rows import Record, record_lines

_SPACE = re.compile(r"[ \t\r\n]*")
_WRAPPERS = ("data", "rows", "records", "examples", "items", "train", "documents")
_decode = json.JSONDecoder(strict=False).raw_decode


class Json(TableReader):
    """A place is the line where a record begins. What is no JSON, such as a configuration with comments, is text."""

    suffixes: ClassVar[tuple[str, ...]] = (".json", ".geojson", ".jsonld")

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        text = whole_text(path, note).removeprefix("\ufeff")
        try:
            values = list(_members_of(text))
        except (ValueError, IndexError) as e:
            note(f"no valid JSON in {Start().fault(text, e)}: read as text")
            for first, lines in paragraphs(text.split("\n")):
                yield Block("code", "\n".join(lines), Place(line=first), lined=True)
            return
        line, counted = 1, 0
        for start, key, value in values:
            line, counted = line + text.count("\n", counted, start), start
            yield Block("text", record_lines(value, key), Place(line=line))

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for number, value in enumerate(_records(decoded(stream)), 1):
            yield {"row": number, "value": value}


def _members_of(text: str) -> Iterator[tuple[int, str, object]]:
    """Yield (offset, key, value) of the members of the outermost list or object, and of lists of objects in it."""
    at = _skip(text, 0)
    if text[at : at + 1] in ("[", "{"):
        end = yield from _members(text, at, "")
    else:
        value, end = _decode(text, at)
        yield at, "", value
    if (rest := _skip(text, end)) != len(text):
        raise json.JSONDecodeError("more than one value", text, rest)


def _members(text: str, at: int, key: str) -> Generator[tuple[int, str, object], None, int]:
    """Yield the members of the list or object that begins at `at`; return where it ends."""
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
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expect(text: str, at: int, mark: str) -> int:
    if text[at] != mark:
        raise json.JSONDecodeError(f"expecting '{mark}' delimiter", text, at)
    return at + 1


def _records(chunks: Iterator[str]) -> Iterator[object]:
    values = _Values(chunks)
    if values.peek() != "[":
        match values.value():
            case dict() as value:
                wrapped = (value[key] for key in _WRAPPERS if isinstance(value.get(key), list))
                yield from next(wrapped, [value])
            case value:
                yield value
        return
    values.take()
    while (mark := values.peek()) != "]":
        if mark == ",":
            values.take()
        elif not mark:
            raise Unreadable("JSON that ends in the middle: its list has no end")
        else:
            yield values.value()


class _Values:
    """Decodes one value after the other from text that arrives in chunks."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text = ""
        self._at = 0
        self._start = Start()  # of `_text` in the file
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """Return the next character that is not space, "" at the end."""
        while True:
            self._at = _skip(self._text, self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def take(self) -> None:
        self._at += 1

    def value(self) -> object:
        self.peek()
        num_chunks = 1
        while True:
            try:
                value, at = self._decoder.raw_decode(self._text, self._at)
                # a number at the edge of what was read may go on
                if at < len(self._text) or not self._more(1):
                    self._at = at
                    return value
            except RecursionError:
                raise Unreadable("JSON nested too deep") from None
            except ValueError as e:
                where = self._start.fault(self._text, e)
                if len(self._text) - self._at > MAX_RECORD:
                    raise Unreadable(f"no valid JSON in {where}, or a value too long to be a record") from None
                # twice as much each time, so that a long record is not parsed over and over
                if not self._more(num_chunks):
                    raise Unreadable(f"no valid JSON in {where}") from None
                num_chunks *= 2

    def _more(self, chunks: int) -> bool:
        new = [c for c in (next(self._chunks, "") for _ in range(chunks)) if c]
        self._start = self._start.after(self._text, self._at)
        self._text = self._text[self._at :] + "".join(new)
        self._at = 0
        return bool(new)
