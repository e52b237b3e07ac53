"""JSON Lines: a line is a record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Place, Unreadable
from settle.documents.readers import Note, Reader
from settle.documents.readers._lines import text_lines
from settle.documents.readers._records import record_text


class Jsonl(Reader):
    """A record is a block, at its line."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".jsonlines")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        read = damaged = 0
        for number, line in enumerate(text_lines(path, note), 1):
            if not line.strip():
                continue
            try:
                text = record_text(json.loads(line))
            except ValueError:
                damaged += 1
                continue
            read += 1
            yield Block("text", text, Place(line=number))
        if damaged and not read:
            raise Unreadable("no valid JSON in any of its lines")
        if damaged:
            note(f"{damaged:,} of its lines are no valid JSON")
