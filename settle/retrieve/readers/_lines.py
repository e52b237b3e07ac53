"""The lines of a text file, whatever its encoding, none of them endless."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from settle.retrieve.document import Unreadable
from settle.retrieve.readers import Note

LONGEST_LINE = 1 << 20  # characters of a line that is no text for people
_PIECE = 1 << 16  # bytes read at a time
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def text_lines(path: Path, note: Note) -> Iterator[str]:
    """Lines without their ends, decoded by the byte order mark, as UTF-8, or else as Windows' Western one.

    Raises Unreadable for what is not text: zero bytes, or a line above a million characters.
    """
    encoding = _encoding(path)
    if encoding == "cp1252":
        note("not UTF-8: read as Windows-1252")
    with path.open(encoding=encoding, errors="replace", newline=None) as file:
        rest = ""
        while piece := file.read(_PIECE):
            rest += piece
            *lines, rest = rest.split("\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                raise Unreadable("one of its lines is longer than a million characters: data, not text")
        if rest:
            yield rest


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_PIECE)
        for mark, name in _MARKS:
            if head.startswith(mark):
                return name
        if b"\0" in head:
            raise Unreadable("not text: it has zero bytes")
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while head:
                decoder.decode(head)
                head = file.read(_PIECE)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return "cp1252"
    return "utf-8"
