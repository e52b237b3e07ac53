"""JSON: a list of records, or one record; read piece by piece, however long the list."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar

from pydantic import Field

from settle.data.records import record_text
from settle.data.sources import MAX_RECORD, Record, Row, Skip, Source, decoded, documents

_SPACE = " \t\r\n"
_WRAPPERS = ("data", "rows", "records", "examples", "items", "train", "documents")


class Json(Source):
    """A list of records (or a record that holds one, under a key such as `data`)."""

    suffixes: ClassVar[tuple[str, ...]] = (".json",)
    field: str | None = Field(None, description="the key that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for record in self.records(stream):
            yield from documents(record_text(record["value"], self.field), record["row"])

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for number, value in enumerate(_records(decoded(stream)), 1):
            yield {"row": number, "value": value}


def _records(chunks: Iterator[str]) -> Iterator[Any]:
    reader = _Reader(chunks)
    if reader.peek() != "[":
        value = reader.value()
        if isinstance(value, dict):
            inner = next((value[k] for k in _WRAPPERS if isinstance(value.get(k), list)), None)
            if inner is not None:
                yield from inner
                return
        yield value
        return
    reader.take()
    while (mark := reader.peek()) != "]":
        if mark == ",":
            reader.take()
        elif not mark:
            raise Skip("JSON that ends in the middle")
        else:
            yield reader.value()


class _Reader:
    """Decodes one value after the other from text that arrives in chunks."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self._chunks = chunks
        self._text = ""
        self._at = 0
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not space, '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more(1):
                return ""

    def take(self) -> None:
        self._at += 1

    def value(self) -> Any:
        self.peek()
        wanted = 1
        while True:
            try:
                value, at = self._decoder.raw_decode(self._text, self._at)
                # a number at the edge of what was read may go on
                if at < len(self._text) or not self._more(1):
                    self._at = at
                    return value
            except RecursionError:
                raise Skip("JSON nested too deep") from None
            except ValueError:
                if len(self._text) - self._at > MAX_RECORD:
                    raise Skip("a JSON value too long to be a record") from None
                # twice as much each time, so that a long record is not parsed over and over
                if not self._more(wanted):
                    raise Skip("not valid JSON") from None
                wanted *= 2

    def _more(self, chunks: int) -> bool:
        new = [c for c in (next(self._chunks, "") for _ in range(chunks)) if c]
        self._text = self._text[self._at :] + "".join(new)
        self._at = 0
        return bool(new)
