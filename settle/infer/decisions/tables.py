"""Tables of states to decide about, and with the answers to them: CSV stays CSV, everything else is JSON lines."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText
from settle.data.decisions.label_column import LabelColumn
from settle.data.decisions.questions import Question
from settle.documents.blocks import Unreadable
from settle.documents.readers import Reader
from settle.documents.row_reader import RowReader
from settle.documents.rows import Record
from settle.documents.walk import Walk

Row = Mapping[str, object]
Write = Callable[[Row, Row], None]  # a row, and the cells that it gets
STDIN, STATE = Path("-"), "state"
_ANY = Question("noul", "", ())


@dataclass(frozen=True)
class Table:
    """rows: named values, or why a row has none. is_csv: whether the answers are written as CSV."""

    rows: Sequence[Row | str]
    is_csv: bool

    @property
    def columns(self) -> list[str]:
        """The names of all columns, in their order."""
        return list(dict.fromkeys(str(name) for row in self.rows if isinstance(row, Mapping) for name in row))

    def states(self, columns: Sequence[str]) -> Iterator[object]:
        """What is decided about in each row: its `state`, or those columns that the model was tuned on, or its only
        one; None for a row that has no values. Raises DataError for a table that lacks columns."""
        present = self.columns
        wanted = [STATE] if STATE in present else list(columns) or present
        missing = [name for name in wanted if name not in present]
        if missing and len(present) > 1:
            raise DataError(
                f"the model was tuned on the column {missing[0]!r}, and the rows have {', '.join(present[:8])}",
                "rename the columns, or give each row its text as `state`",
            )
        wanted = present if missing else wanted
        if len(wanted) > 1 and not columns:
            raise DataError(
                f"the model does not say which of the columns {', '.join(present[:8])} it reads",
                "give each row its text as `state`, or one column alone",
            )
        reading = LabelColumn("", _ANY, tuple(wanted))
        for row in self.rows:
            if isinstance(row, str):
                yield None
            else:
                yield row.get(STATE) if wanted == [STATE] else reading.state(row)

    @contextmanager
    def writer(self, out: Path | None, added: Sequence[str], events: Events) -> Iterator[Write]:
        """What writes a row with its answers to the file, which is there once everything is, or to stdout. added: the
        columns of the answers; one that the table has already gets another name."""
        own = self.columns
        names = {name: name if name not in own else f"{name}_decided" for name in added}
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


def read_table(path: Path, stdin: BinaryIO) -> Table:
    """The rows of a file, or of stdin for `-`. Raises UsageError, DataError."""
    if path == STDIN:
        data = stdin.read()
        name = "jsonl" if data.lstrip()[:1] == b"{" else "csv"
        return _table(list(Reader.part(name)().records(io.BytesIO(data))), name == "csv", "stdin")
    if not path.is_file():
        raise UsageError(f"there is no file {path}", "give a .csv, .jsonl or .parquet file")
    files = list(Walk(looks_inside=True).files([path]))
    try:
        with RowReader(files, {}, lambda file, note: None) as reader:
            records = [record for file in files for record in reader.records(file)]
    except Unreadable as e:
        raise DataError(f"{path.name} cannot be read: {e.what}", "give a .csv, .jsonl or .parquet file") from None
    return _table(records, bool(files) and files[0].reader == "csv", path.name)


def _table(records: Sequence[Record], is_csv: bool, name: str) -> Table:
    rows: list[Row | str] = []
    for record in records:
        value = record.get("value")
        problem = record.get("problem", "a row without named values")
        rows.append(value if isinstance(value, Mapping) else f"line {record['row']}: {problem}")
    if not any(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{name} holds no rows", "give a table with a header, or JSON lines")
    return Table(rows, is_csv)
