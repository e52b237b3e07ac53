"""Comma- or tab-separated tables."""

import csv
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from settle.documents.blocks import Block, Place, Unreadable
from settle.documents.readers import Note, Reader
from settle.documents.readers._lines import LONGEST_LINE, text_lines
from settle.documents.readers._tables import table_rows


class Csv(Reader):
    """A row is a block below the header, at its line."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        lines = text_lines(path, note)
        head = next(lines, "")
        csv.field_size_limit(LONGEST_LINE)
        # a cell may go over several lines, so they keep their ends
        rows = csv.reader((line + "\n" for line in chain([head], lines)), _dialect(head))
        try:
            yield from table_rows(_placed(rows))
        except csv.Error as e:
            raise Unreadable(f"no readable table: line {rows.line_num}: {e}") from None


def _placed(rows: Any) -> Iterator[tuple[Place, list[str]]]:
    """Rows of a csv reader, which counts the lines that it has read."""
    line = 1
    for cells in rows:
        yield Place(line=line), cells
        line = rows.line_num + 1


def _dialect(head: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(head, delimiters=",;\t|")
    except csv.Error:
        return csv.excel_tab if "\t" in head else csv.excel
