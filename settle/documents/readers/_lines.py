"""The text of a file, whatever its encoding: its lines, none of them endless, or the whole of a bounded one."""

import codecs
from collections.abc import Iterator
from pathlib import Path

from settle.documents.blocks import Unreadable
from settle.documents.readers import Note

LONGEST_LINE = 1 << 20  # characters of a line that is no text for people
LARGEST = 256 << 20  # bytes of a file that has to be held whole
_PIECE = 1 << 16  # bytes read at a time
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def text_lines(path: Path, note: Note) -> Iterator[str]:
    """Lines without their ends, decoded by the byte order mark, as UTF-8, or else as Windows' Western one.

    Raises Unreadable for what is not text: zero bytes, or a line above a million characters.
    """
    with path.open(encoding=_told_encoding(path, note), errors="replace", newline=None) as file:
        rest = ""
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split("\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                raise Unreadable("one of its lines is longer than a million characters: data, not text")
        if rest:
            yield rest


def whole_text(path: Path, note: Note) -> str:
    """All of it, decoded in the same way, however long its lines. Raises Unreadable above LARGEST."""
    encoding = _told_encoding(path, note)
    return whole_bytes(path).decode(encoding, "replace").replace("\r\n", "\n")


def whole_bytes(path: Path) -> bytes:
    """Raises Unreadable above LARGEST."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise Unreadable(f"it is larger than {LARGEST >> 20} MiB, too much to be read as one piece")
    return data


def marked_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark tells."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def _told_encoding(path: Path, note: Note) -> str:
    encoding = _encoding(path)
    if encoding == "cp1252":
        note("not UTF-8: read as Windows-1252")
    return encoding


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_PIECE)
        if marked := marked_encoding(head):
            return marked
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
