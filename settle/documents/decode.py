"""Bytes → text, whatever the compression and encoding: a stream of pieces or lines, or the whole of a file."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from settle.documents.blocks import Note, Unreadable

COMPRESSIONS = (".gz", ".zst")
MAX_RECORD = 64 << 20  # a record of a table or of JSON is read whole, and none is this long
_CHUNK = 1 << 20
# text with the marks of a program that sets it: what it begins with, its name, and what makes plain text of it
_MARKUP = (
    (re.compile(rb"\s*\{\\rtf"), "rich text (RTF)", "pandoc FILE -o FILE.md"),
    (
        re.compile(rb"(?:[.']\\\"[^\n]*\n|[ \t\r]*\n)*\.(?:TH|Dd|so) "),
        "a man page (roff)",
        "mandoc -T markdown FILE > FILE.md",
    ),
    (re.compile(rb"(?:%[^\n]*\n|\s)*\\document(?:class|style)\b"), "LaTeX", "pandoc FILE -o FILE.md"),
    (re.compile(rb"(?i)\s*(?:<!--.*?-->\s*)?<(?:!doctype html|html)\b", re.S), "HTML", "name it FILE.html"),
)
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
LONGEST_LINE = 1 << 20  # characters; a longer line is data, not text for people
LARGEST = 256 << 20  # bytes of a file that has to be held whole
_PIECE = 1 << 16  # bytes read at a time
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip


def open_unpacked(path: Path, compression: str) -> BinaryIO:
    """Return the bytes of a file, unpacked where `compression` is one of COMPRESSIONS. Raises OSError."""
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == ".zst":
        import zstandard

        unpacked = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True, read_across_frames=True)
        return cast(BinaryIO, unpacked)
    return path.open("rb")


def damage_error(compression: str) -> type[Exception]:
    """Return the exception, other than EOFError, that reading damaged packed bytes raises."""
    if compression == ".zst":
        import zstandard

        return zstandard.ZstdError
    return zlib.error


def decoded(stream: BinaryIO) -> Iterator[str]:
    """Yield a file's text in pieces of about a megabyte. Raises Unreadable for binary data.

    UTF-8, or UTF-16/32 by their byte-order mark; a file whose first megabyte has bytes above 127 and none of them valid
    UTF-8 is read as Windows-1252. Bytes that cannot be read become U+FFFD, for the cleaning to count.
    """
    head = stream.read(_CHUNK)
    decoder = codecs.getincrementaldecoder(_stream_encoding(head))("replace")
    while head:
        yield decoder.decode(head)
        head = stream.read(_CHUNK)
    yield decoder.decode(b"", final=True)


def lines(stream: BinaryIO) -> Iterator[str | None]:
    """Yield a file's lines with their ends; None in place of one longer than MAX_RECORD characters."""
    pieces: list[str] = []
    size = 0
    for chunk in decoded(stream):
        for line in _LINE.findall(chunk):
            size += len(line)
            if size <= MAX_RECORD:
                pieces.append(line)
            else:
                pieces.clear()
            if line.endswith("\n"):
                yield "".join(pieces) if size <= MAX_RECORD else None
                pieces.clear()
                size = 0
    if size:
        yield "".join(pieces) if size <= MAX_RECORD else None


def _stream_encoding(head: bytes) -> str:
    """Return the encoding, judged by the beginning alone: a stream cannot be read twice."""
    if marked := marked_encoding(head):
        return marked
    if is_binary(head):
        raise Unreadable("binary data")
    # where the file goes on, the head may end inside a character, which the decoder leaves for later
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(head, final=len(head) < _CHUNK)
    return "cp1252" if "\ufffd" in text and text.replace("\ufffd", "").isascii() else "utf-8"


def is_binary(head: bytes) -> bool:
    """Return whether the beginning of a file is no text in any encoding: NUL bytes, or mostly control bytes."""
    if b"\0" in head[:8192]:
        return True
    start = head[:8192]
    control = len(start) - len(start.translate(None, bytes([*range(8), *range(14, 27), *range(28, 32), 127])))
    return control * 10 > len(start)


def markup(head: bytes) -> tuple[str, str] | None:
    """Return what marks the beginning of a text has, and how to convert it; None for plain text."""
    return next(((name, how) for pattern, name, how in _MARKUP if pattern.match(head)), None)


def text_lines(path: Path, note: Note) -> Iterator[str]:
    """Yield lines without their ends, decoded by the byte order mark, as UTF-8, or else as Windows' Western one.

    Raises Unreadable for what is not text: zero bytes, or a line above a million characters.
    """
    with path.open(encoding=_noted_encoding(path, note), errors="replace", newline=None) as file:
        rest = ""
        while piece := file.read(_PIECE):
            *lines, rest = (rest + piece).split("\n")
            yield from lines
            if len(rest) > LONGEST_LINE:
                raise Unreadable("one of its lines is longer than a million characters: data, not text")
        if rest:
            yield rest


def whole_text(path: Path, note: Note) -> str:
    """Return all of a file, decoded in the same way, however long its lines. Raises Unreadable above LARGEST."""
    encoding = _noted_encoding(path, note)
    return whole_bytes(path).decode(encoding, "replace").replace("\r\n", "\n")


def whole_bytes(path: Path) -> bytes:
    """Return the bytes of a file. Raises Unreadable above LARGEST."""
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise Unreadable(f"it is larger than {LARGEST >> 20} MiB, too much to be read as one piece")
    return data


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding that a byte order mark announces."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), None)


def _noted_encoding(path: Path, note: Note) -> str:
    """Return the encoding, judged by the whole file."""
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
            note("not UTF-8: read as Windows-1252")
            return "cp1252"
    return "utf-8"
