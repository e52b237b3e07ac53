"""The records of a catalogue: documents, passages, and where each passage occurs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from settle.documents.blocks import Chunk, Place, with_headings


@dataclass(frozen=True)
class DocumentRecord:
    """A document as it was when it was indexed.

    size: bytes. changed: the file's modification time in nanoseconds. sha256: of its bytes, empty where they changed
    while it was read. notes: what was left out of it. error: why nothing could be read, or "".
    """

    path: str
    size: int
    changed: int
    sha256: bytes
    title: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""


class Passage(NamedTuple):
    """A passage, stored and embedded once however often it occurs.

    tokens: as the embedder counts them.
    """

    id: int
    text: str
    headings: tuple[str, ...]
    tokens: int

    @property
    def embedded(self) -> str:
        """The text that the embedder reads."""
        return with_headings(self.headings, self.text)


class DocumentSize(NamedTuple):
    """A document with its number of chunks."""

    id: int
    path: str
    chunks: int


class Occurrence(NamedTuple):
    """One place of a passage: the document, and which of its chunks the passage is."""

    document: int
    path: str
    ordinal: int
    place: Place


@dataclass
class DocumentChange:
    """A document's new state: its record, its chunks in order, and the id of each chunk's passage."""

    record: DocumentRecord
    chunks: Sequence[Chunk] = ()
    ids: list[int] = field(default_factory=list)


def digest(chunk: Chunk) -> bytes:
    """Return the hash of a chunk: two chunks with the same one are the same passage."""
    return hashlib.sha256(json.dumps([chunk.headings, chunk.text]).encode()).digest()
