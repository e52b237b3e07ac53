"""Comma- or tab-separated tables."""

import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, ClassVar

from settle.documents.blocks import Block, Note, Place, Unreadable
from settle.documents.decode import LONGEST_LINE, MAX_RECORD, lines, text_lines
from settle.documents.readers.tables._table import TableReader
from settle.documents.record_text import record_document
from settle.documents.rows import Record, Row, text_rows
from settle.documents.table_text import is_number, table_rows

if TYPE_CHECKING:
    import _csv


class Csv(TableReader):
    """A row is a block below the header, at its line; for training the columns of numbers are no text."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        lines = text_lines(path, note)
        head = next(lines, "")
        csv.field_size_limit(LONGEST_LINE)
        # a cell may go over several lines, so they keep their ends
        rows = csv.reader((line + "\n" for line in chain([head], lines)), _dialect(head))
        try:
            yield from table_rows(_placed(rows))
        except csv.Error as e:
            raise Unreadable(f"no readable table: line {rows.line_num}: {e}") from None

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for number, cells in self._cells(stream):
            text: dict[str, object] = {n: cell for n, cell in cells.items() if n == self.field or not is_number(cell)}
            yield from text_rows(record_document(text, self.field), number)

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for number, cells in self._cells(stream):
            yield {"row": number, "value": cells}

    def _cells(self, stream: BinaryIO) -> Iterator[tuple[int, dict[str, str]]]:
        csv.field_size_limit(MAX_RECORD)
        text = (line for line in lines(stream) if line is not None)
        head = list(islice(text, 20))
        reader = csv.reader(chain(head, text), _dialect(head[0].rstrip("\r\n") if head else ""))
        try:
            header = next(reader, None)
            if header is None:
                return
            for number, cells in enumerate(reader, 2):
                cells += [""] * (len(header) - len(cells))
                yield number, dict(zip(header, cells, strict=False))
        except csv.Error as e:
            raise Unreadable(f"not a readable table: {e}") from None


def _placed(rows: "_csv.Reader") -> Iterator[tuple[Place, list[str]]]:
    """Rows of a csv reader, which counts the lines that it has read."""
    line = 1
    for cells in rows:
        yield Place(line=line), cells
        line = rows.line_num + 1


def _dialect(first_line: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(first_line or ",", delimiters=",;\t|")
    except csv.Error:
        return csv.excel_tab if "\t" in first_line else csv.excel
