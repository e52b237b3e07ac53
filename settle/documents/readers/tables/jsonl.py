"""JSON Lines: a line is a record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.decode import lines, text_lines
from settle.documents.readers.tables import Start, TableReader
from settle.documents.rows import Record, record_lines


class Jsonl(TableReader):
    """A record is a block, at its line."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".jsonlines")

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        read = damaged = 0
        first = ""
        for number, line in enumerate(text_lines(path, note), 1):
            if not line.strip():
                continue
            try:
                text = record_lines(json.loads(line))
            except ValueError as e:
                damaged += 1
                first = first or Start(number).fault(line, e)
                continue
            read += 1
            yield Block("text", text, Place(line=number))
        if damaged and not read:
            raise Unreadable("no valid JSON in any of its lines")
        if damaged:
            more = f", nor in {damaged - 1:,} other line{'s' * (damaged > 2)}" if damaged > 1 else ""
            note(f"no valid JSON in {first}{more}")

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for number, line in enumerate(lines(stream), 1):
            if line is None:
                yield {"row": number, "problem": "a line too long to be a record"}
                continue
            if not line.strip():
                continue
            try:
                yield {"row": number, "value": json.loads(line)}
            except json.JSONDecodeError as e:
                detail = f"{e.msg[:1].lower()}{e.msg[1:]}, column {e.pos + 1}"
                yield {"row": number, "problem": "a line that is no JSON", "detail": detail}
            except (ValueError, RecursionError):
                yield {"row": number, "problem": "a line that is no JSON"}
