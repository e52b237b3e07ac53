"""Tables as lines of text: cells between commas, semicolons, tabs or bars, quoted as RFC 4180 says.

Only the delimiter is guessed; a quoted cell always doubles its quotes. A row that does not fit below the header is
reported with its line, because cutting it to fit would lose text unseen.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO, ClassVar

from settle.base.errors import DataError
from settle.documents.blocks import Block, Note, Place, Unreadable, is_number, table_rows
from settle.documents.decode import LONGEST_LINE, MAX_RECORD, lines, text_lines
from settle.documents.readers.tables import TableReader
from settle.documents.rows import Record, Row, record_document, text_rows

# of two that fit equally well the first: a comma is also in numbers and in prose, a tab hardly anywhere
_DELIMITERS = "\t;|,"
_NONE = "\ufdd0"  # in no text: a table of one column has no delimiter, and its commas are text
_SAMPLE = 1 << 16  # characters that the delimiter is found from
_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_NAMED_DELIMITER = re.compile(r"sep=(.)[\r\n]*")  # a first line that Excel writes and reads


_Line = tuple[int, list[str], str]  # where a row begins, from 1; its cells; the problem that ends the reading there


class Csv(TableReader):
    """A row is a block below the header, at its line; for training the columns of numbers are no text."""

    suffixes: ClassVar[tuple[str, ...]] = (".csv", ".tsv")
    row_format: ClassVar[str] = "csv 2"

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        csv.field_size_limit(LONGEST_LINE)
        yield from table_rows(self._noted(_parsed(line + "\n" for line in text_lines(path, note)), note))

    @staticmethod
    def _noted(rows: Iterable[_Line], note: Note) -> Iterator[tuple[Place, list[str]]]:
        for line, cells, problem in rows:
            if problem:
                note(f"line {line}: {problem}")
            else:
                yield Place(line=line), cells

    def rows(self, stream: BinaryIO) -> Iterator[Row]:
        for line, value, problem in self._named(stream):
            if not problem and self.field is not None and self.field not in value:
                problem = f"a row that ends before the column {self.field!r}"
            if problem:
                yield {"row": line, "problem": problem}
            else:
                text = {n: cell for n, cell in value.items() if n == self.field or not is_number(cell)}
                yield from text_rows(record_document(text, self.field), line)

    def records(self, stream: BinaryIO) -> Iterator[Record]:
        for line, value, problem in self._named(stream):
            yield {"row": line, "problem": problem} if problem else {"row": line, "value": value}

    def _named(self, stream: BinaryIO) -> Iterator[tuple[int, dict[str, str], str]]:
        """Yield each row below the header: its line, its cells by column, and why it cannot be read, or \"\"."""
        csv.field_size_limit(MAX_RECORD)
        names: list[str] = []
        for line, cells, problem in _parsed(_kept_lines(stream), headed=True):
            if not names and not problem:
                names = _column_names(cells)
                if self.field is not None and self.field not in names:
                    known = ", ".join(map(repr, names[:20]))
                    raise DataError(f"there is no field {self.field!r} in the data", f"use one of {known}")
                continue
            if any(cells[len(names) :]):
                problem = f"a row of more cells than the {len(names)} columns of the header"
            # a row that ends early lacks its last columns, so that nobody takes them for empty
            yield line, dict(zip(names, cells, strict=False)), problem


def _parsed(lines: Iterable[str], headed: bool = False) -> Iterator[_Line]:
    """Yield each row that is not empty.

    lines: with their ends. headed: the first row names the columns, so where it has one cell there is one column.
    """
    lines = iter(lines)
    sample, complete = _sample(lines)
    named = _NAMED_DELIMITER.fullmatch(sample[0]) if sample else None
    begin = 1
    if named:
        del sample[0]
        begin = 2
    delimiter = named[1] if named else _delimiter(sample, complete)
    if headed and len(next(csv.reader(sample, delimiter=delimiter), [])) == 1:
        delimiter = _NONE
    reader = csv.reader(chain(sample, lines), delimiter=delimiter, strict=True)
    line = begin
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as e:
            yield line, [], f"a row that cannot be split into cells ({e}); nothing below it was read"
            return
        if cells is None:
            return
        if cells:
            yield line, cells, ""
        line = begin + reader.line_num


def _kept_lines(stream: BinaryIO) -> Iterator[str]:
    """Yield lines with the ends they have in the file, which are text inside a quoted cell."""
    for line in lines(stream):
        if line is None:
            raise Unreadable(f"one of its lines is longer than {MAX_RECORD >> 20} million characters: data, not text")
        yield from _LINES.findall(line) if "\r" in line[:-2] else (line,)


def _sample(lines: Iterator[str]) -> tuple[list[str], bool]:
    """Return the first lines, and whether they are all that there are."""
    sample: list[str] = []
    size = 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if size >= _SAMPLE:
            return sample, False
    return sample, True


def _delimiter(sample: list[str], complete: bool) -> str:
    """Return the character between cells: where most rows have one same number of cells, and more than one."""
    best, best_share = _NONE, 0.0
    for delimiter in _DELIMITERS:
        counts = _cell_counts(sample, complete, delimiter)
        if not counts:
            continue
        (usual, times), *_ = Counter(counts).most_common(1)
        share = times / len(counts)
        if usual > 1 and share > best_share and (counts[0] > 1 or share >= 0.5):
            best, best_share = delimiter, share
    return best


def _cell_counts(sample: list[str], complete: bool, delimiter: str) -> list[int]:
    """Return how many cells each row has; 0 for one whose quotes do not fit that delimiter."""
    reader = csv.reader(sample, delimiter=delimiter, strict=True)
    counts: list[int] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error:
            if complete or reader.line_num < len(sample):
                counts.append(0)
            continue
        if cells is None:
            return counts
        if cells:
            counts.append(len(cells))


def _column_names(header: list[str]) -> list[str]:
    """Return a name for each column: one without or with another's name gets a number, so that none hides another."""
    names: list[str] = []
    for number, name in enumerate(header, 1):
        name = name.strip() or f"column {number}"
        while name in names:
            name += f" ({number})"
        names.append(name)
    return names
