"""E-mail: a message, or a mailbox of them as one document."""

import codecs
import email
from collections.abc import Iterable, Iterator
from dataclasses import replace
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable, joined_text
from settle.documents.readers import Reader
from settle.documents.readers.text.text import paragraphs
from settle.documents.rows import Row, text_rows
from settle.documents.web_page import page_blocks

_SHOWN = ("From", "To", "Cc", "Date")
_MOST = 64 << 20  # bytes of one message that are read: what is longer has attachments
_NAMED = 5  # attachments


class Mail(Reader):
    """A place in a mailbox is the line where the message begins; its part says which message that is."""

    suffixes: ClassVar[tuple[str, ...]] = (".eml", ".mbox")
    packages: ClassVar[tuple[str, ...]] = ("lxml",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        attached: list[str] = []
        if path.suffix.lower() == ".eml":
            with path.open("rb") as file:
                message = email.message_from_bytes(file.read(_MOST))
            if not message.keys():
                raise Unreadable("no e-mail, whatever its name says")
            yield from _blocks(message, Place(), attached)
        else:
            for number, (line, data) in enumerate(_messages(path), 1):
                place = Place(line=line, part=f"message {number}")
                yield from _blocks(email.message_from_bytes(data), place, attached)
        if attached:
            names = ", ".join(attached[:_NAMED]) + (", …" if len(attached) > _NAMED else "")
            note(f"{len(attached)} attachment{'s' if len(attached) > 1 else ''} left out: {names}")

    def rows_of(self, blocks: Iterable[Block]) -> Iterator[Row]:
        """Yield a document for each message."""
        for number, (_, message) in enumerate(groupby(blocks, lambda block: block.place), 1):
            yield from text_rows(joined_text(message), number)


def _messages(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (line, bytes) of each message of a mailbox, the line being that of the `From ` above it."""
    lines: list[bytes] = []
    first, size, empty = 0, 0, True
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_MOST):
            number += 1
            if empty and line.startswith(b"From "):
                if lines:
                    yield first, b"".join(lines)
                lines, first, size = [], number, 0
            elif not first:
                raise Unreadable("no mailbox, whatever its name says")
            elif size < _MOST:
                lines.append(line[1:] if line.startswith(b">From ") else line)
                size += len(line)
            empty = not line.strip()
    if lines:
        yield first, b"".join(lines)


def _blocks(message: Message, place: Place, attached: list[str]) -> Iterator[Block]:
    yield Block("heading", _header(message, "Subject") or "No subject", place, level=1)
    headers = [f"{name}: {value}" for name in _SHOWN if (value := _header(message, name))]
    if headers:
        yield Block("text", "\n".join(headers), place)
    texts: dict[str, list[str]] = {"text/plain": [], "text/html": []}
    for part in message.walk():
        kind = part.get_content_type()
        if part.get_filename() or (not part.is_multipart() and kind not in texts):
            attached.append(_decoded(part.get_filename() or kind))
        elif not part.is_multipart():
            texts[kind].append(_content(part))
    if plain := "\n\n".join(texts["text/plain"]).strip():
        for _, lines in paragraphs(plain.splitlines()):
            yield Block("text", "\n".join(lines), place)
        return
    for page in texts["text/html"]:
        for block in page_blocks(codecs.BOM_UTF8 + page.encode("utf-8", "replace"), lambda _: None):
            level = block.level + 1 if block.level is not None else None
            yield replace(block, place=place, level=level)


def _header(message: Message, name: str) -> str:
    return " ".join(_decoded(str(message.get(name, ""))).split())


def _decoded(text: str) -> str:
    try:
        return str(make_header(decode_header(text)))
    except (MessageError, LookupError, ValueError):
        return text


def _content(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    for encoding in (part.get_content_charset() or "utf-8", "utf-8"):
        try:
            return payload.decode(encoding)
        except (LookupError, UnicodeError):
            continue
    return payload.decode("cp1252", "replace")
