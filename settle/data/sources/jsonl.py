"""JSON Lines: a line is a record."""

import json
from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from pydantic import Field

from settle.data.records import record_text
from settle.data.sources import Record, Row, Source, documents, lines


class Jsonl(Source):
    """One JSON value a line."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".jsonlines")
    field: str | None = Field(None, description="the key that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for record in self.records(stream):
            if "problem" in record:
                yield {"row": record["row"], "problem": record["problem"]}
            else:
                yield from documents(record_text(record["value"], self.field), record["row"])

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for number, line in enumerate(lines(stream), 1):
            if line is None:
                yield {"row": number, "problem": "a line too long to be a record"}
                continue
            if not line.strip():
                continue
            try:
                yield {"row": number, "value": json.loads(line)}
            except (ValueError, RecursionError):
                yield {"row": number, "problem": "a line that is no JSON"}
