"""Sources: one file a kind of input. A source turns one open file into rows, streaming."""

import codecs
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, ClassVar, NotRequired, TypedDict

from settle.base.registry import Part

# a longer text is cut at a paragraph's border, so that no file, whatever its size, is held in memory whole
MAX_DOCUMENT = 2 << 20
# a record of a table or of JSON is read whole, and none is this long
MAX_RECORD = 64 << 20
_CHUNK = 1 << 20
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_BORDERS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), re.compile(r"[.!?。！？;]\s*"), re.compile(r"\s"))


class Row(TypedDict):
    """One document: its text, and which row of the file it is (from 1); or what kept a row from being read."""

    text: NotRequired[str]
    problem: NotRequired[str]
    row: int


class Record(TypedDict):
    """One row as it stands: its named values, and which row of the file it is; or what kept it from being read."""

    value: NotRequired[Any]
    problem: NotRequired[str]
    row: int


class Skip(Exception):
    """This file holds nothing that can be read; the reason goes to the ledger and the others go on."""


class Source(Part):
    """Reads one kind of file. suffixes: the file names it is for, lower case, without .gz or .zst."""

    suffixes: ClassVar[tuple[str, ...]] = ()

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        """The documents of a file opened for reading bytes. Raises Skip with the reason when it has none to give."""
        raise NotImplementedError

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        """The rows with their named values; those of a file of text have one, `text`."""
        for row in self.rows(stream):
            if "problem" in row:
                yield {"row": row["row"], "problem": row["problem"]}
            else:
                yield {"row": row["row"], "value": {"text": row["text"]}}


def decoded(stream: BinaryIO) -> Iterator[str]:
    """A file's text in pieces of about a megabyte. Raises Skip for binary data.

    UTF-8, or UTF-16/32 by their byte-order mark; a file whose first megabyte has bytes above 127 and none of them
    valid UTF-8 is read as Windows-1252. Bytes that cannot be read become U+FFFD, for the cleaning to count.
    """
    head = stream.read(_CHUNK)
    decoder = codecs.getincrementaldecoder(_encoding(head))("replace")
    while head:
        yield decoder.decode(head)
        head = stream.read(_CHUNK)
    yield decoder.decode(b"", final=True)


def lines(stream: BinaryIO) -> Iterator[str | None]:
    """A file's lines with their ends; None in place of one longer than MAX_RECORD characters, which is passed over."""
    held: list[str] = []
    size = 0
    for chunk in decoded(stream):
        for line in _LINE.findall(chunk):
            size += len(line)
            if size <= MAX_RECORD:
                held.append(line)
            else:
                held.clear()
            if line.endswith("\n"):
                yield "".join(held) if size <= MAX_RECORD else None
                held.clear()
                size = 0
    if size:
        yield "".join(held) if size <= MAX_RECORD else None


def _encoding(head: bytes) -> str:
    for mark, name in (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return name
    if is_binary(head):
        raise Skip("binary data")
    text = head.decode("utf-8", "ignore")
    if not head.isascii() and text.isascii() and len(head) - len(text) > 3:
        return "cp1252"
    return "utf-8"


def is_binary(head: bytes) -> bool:
    """Whether the beginning of a file looks like no text in any encoding: NUL bytes, or mostly control bytes."""
    if b"\0" in head[:8192]:
        return True
    start = head[:8192]
    control = len(start) - len(start.translate(None, bytes([*range(8), *range(14, 27), *range(28, 32), 127])))
    return control * 10 > len(start)


def documents(text: str, row: int) -> Iterator[Row]:
    """The rows of one record: its text, in several where it is very long."""
    if not text:
        yield {"row": row, "problem": "a record without text"}
    for piece in cut([text]):
        yield {"text": piece, "row": row}


def cut(chunks: Iterable[str], limit: int = MAX_DOCUMENT) -> Iterator[str]:
    """Joins chunks to texts of at most `limit` characters, cut after a paragraph, a line, a sentence or a space."""
    held = ""
    for chunk in chunks:
        held += chunk
        while len(held) > limit:
            at = _border(held, limit)
            yield held[:at]
            held = held[at:]
    if held:
        yield held


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
