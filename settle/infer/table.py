"""A user's table: its rows as named values, and the same rows written again with the answers that each gets."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText
from settle.documents.blocks import Unreadable
from settle.documents.reader_pool import RowReader
from settle.documents.readers import Reader
from settle.documents.rows import Record, problem_of
from settle.documents.walk import Walk
from settle.infer.child_process import Body

Row = Body
Write = Callable[[Row, Row], None]  # a row, and the cells that it gets
STDIN = Path("-")


class TableRow(NamedTuple):
    """Named values, or why a row has none."""

    values: Row
    problem: str = ""


@dataclass(frozen=True)
class Table:
    """Rows that are answered. is_csv: whether the answers are written as CSV."""

    rows: Sequence[TableRow]
    is_csv: bool

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in their order."""
        return list(dict.fromkeys(str(name) for row in self.rows for name in row.values))

    @contextmanager
    def writer(self, out: Path | None, added: Sequence[str], suffix: str, events: Events) -> Iterator[Write]:
        """Open what writes a row with its answers to stdout, or to the file, which is there once everything is.

        added: the columns of the answers; one that the table has already gets a suffix.
        """
        own = self.columns
        names = {name: name if name not in own else f"{name}_{suffix}" for name in added}
        header = [*own, *names.values()]
        if out is None:
            yield self._lines(header, names, lambda text: events.emit(AnswerText(text=text)))
            return
        beside = out.with_name(f".{out.name}.{os.getpid()}.part")
        try:
            with beside.open("w", encoding="utf-8", newline="") as file:
                yield self._lines(header, names, file.write)
            beside.replace(out)
        except OSError as e:
            raise UsageError(f"cannot write {out}: {e.strerror}", "give another --out") from None
        finally:
            beside.unlink(missing_ok=True)

    def _lines(self, header: list[str], names: Mapping[str, str], put: Callable[[str], object]) -> Write:
        def line(cells: Sequence[object]) -> str:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerow(cells)
            return text.getvalue()

        def write(row: Row, cells: Row) -> None:
            values = {**row, **{names[name]: value for name, value in cells.items()}}
            if self.is_csv:
                put(line(["" if values.get(name) is None else values[name] for name in header]))
            else:
                put(json.dumps(values, ensure_ascii=False, default=str) + "\n")

        if self.is_csv:
            put(line(header))
        return write


def read_table(path: Path) -> Table:
    """Read the rows of a file, or of stdin for `-`. Raises UsageError, DataError."""
    if path == STDIN:
        data = sys.stdin.buffer.read()
        name = "jsonl" if data.lstrip()[:1] == b"{" else "csv"
        return _table(list(Reader.part(name)().records(io.BytesIO(data))), name == "csv", "stdin")
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "give a .csv, .jsonl or .parquet file")
    files = list(Walk(looks_inside=True).files([path]))
    try:
        with RowReader(files, lambda file, note: None) as reader:
            records = [record for file in files for record in reader.records(file)]
    except Unreadable as e:
        raise DataError(f"{path.name} cannot be read: {e.what}", "give a .csv, .jsonl or .parquet file") from None
    return _table(records, bool(files) and files[0].reader == "csv", path.name)


def _table(records: Sequence[Record], is_csv: bool, name: str) -> Table:
    rows = []
    for record in records:
        value, problem = record.get("value"), f"line {record['row']}: {problem_of(record)}"
        rows.append(TableRow(value) if isinstance(value, Mapping) else TableRow({}, problem))
    if all(row.problem for row in rows):
        first = f" that can be read: {rows[0].problem}" if rows else ""
        raise DataError(f"{name} holds no rows{first}", "give a table with a header, or JSON lines")
    return Table(rows, is_csv)
