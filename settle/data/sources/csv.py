"""Comma- or tab-separated tables with a header."""

import csv
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO, ClassVar

from pydantic import Field

from settle.data.records import record_text
from settle.data.sources import MAX_RECORD, Record, Row, Skip, Source, documents, lines


class Csv(Source):
    """A table: one column holds the text, or all text columns together make a document."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    field: str | None = Field(None, description="the column that holds the text")

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for record in self.records(stream):
            cells = record["value"]
            text = {name: cell for name, cell in cells.items() if name == self.field or not _is_number(cell)}
            yield from documents(record_text(text, self.field), record["row"])

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        csv.field_size_limit(MAX_RECORD)
        text = (line for line in lines(stream) if line is not None)
        head = list(islice(text, 20))
        reader = csv.reader(chain(head, text), dialect=_dialect("".join(head)))
        try:
            header = next(reader, None)
            if header is None:
                return
            for number, cells in enumerate(reader, 2):
                cells += [""] * (len(header) - len(cells))
                yield {"row": number, "value": dict(zip(header, cells, strict=False))}
        except csv.Error as e:
            raise Skip(f"not a readable table: {e}") from None


def _dialect(head: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(head.splitlines()[0] if head else ",", delimiters=",;\t|")
    except csv.Error:
        return csv.excel


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
