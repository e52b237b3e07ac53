"""Files → examples: the layout of each file is found from its rows, and rows that do not keep to it are refused."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.registry import parts
from settle.data.decisions.label_column import unread_labels
from settle.data.layouts import Broken, Example, Kind, Layout
from settle.data.ledger import Ledger
from settle.data.settings import ColumnSettings
from settle.documents.blocks import Unreadable
from settle.documents.compression import damage_error
from settle.documents.row_reader import RowReader
from settle.documents.rows import Record
from settle.documents.walk import FoundFile

_SAMPLED_ROWS = 100  # rows that tell a file's layout
_NAMED = 10  # rows that an error names
_REPORT_EVERY = 512  # rows between two progress events


@dataclass
class RefusedRows:
    """Rows that cannot be used, by reason: how many, and the first of them."""

    rows: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.rows.setdefault(reason, []).append(where)

    @property
    def count(self) -> int:
        return sum(map(len, self.rows.values()))

    def __str__(self) -> str:
        reasons = []
        for reason, rows in self.rows.items():
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            reasons.append(f"{reason}: {', '.join(rows[:_NAMED])}{more}")
        return "; ".join(reasons)


class ExampleReader:
    """Reads files of examples, all of one kind; `layouts` tells per file how its rows were understood."""

    def __init__(self, files: list[FoundFile], columns: ColumnSettings, ledger: Ledger, events: Events) -> None:
        self._files, self._ledger, self._events = files, ledger, events
        named = {name: column for name, column in columns.model_dump().items() if column is not None}
        self._known = _layouts(named)
        self._named = named
        self._unseen = set(named.values())
        self._present: dict[str, None] = {}  # names of columns, in their order
        self.refused = RefusedRows()
        self.layouts: dict[str, dict[str, object]] = {}
        self.kind: Kind | None = None

    def examples(self) -> Iterator[tuple[int, int, Example]]:
        """File number, row and example. Raises DataError when rows are mixed, or in no layout that is known."""
        done, total = 0, sum(f.size for f in self._files)
        with RowReader(self._files, {}, self._ledger.note_omission) as reader:
            for number, file in enumerate(self._files):
                try:
                    yield from self._of(number, file, reader.records(file))
                except Unreadable as e:
                    self._ledger.skip(e.what, file.name)
                except (EOFError, damage_error(file.compression)):
                    raise DataError(f"{file.name} is damaged", "get the file again") from None
                done += file.size
                self._events.emit(Progress(what="read", done=done, total=total, unit="bytes"))
        if self._unseen:
            raise self._no_column(list(self._present), "the rows have")

    def _of(self, number: int, file: FoundFile, records: Iterator[Record]) -> Iterator[tuple[int, int, Example]]:
        first = list(islice(records, _SAMPLED_ROWS))
        rows = [r["value"] for r in first if "value" in r]
        layout, name, columns = self._recognise(file, rows)
        if self.kind not in (None, layout.kind):
            raise DataError(
                f"{file.name} holds {layout.kind} rows, the files before it {self.kind} rows",
                "tune on one kind at a time",
            )
        self.kind = layout.kind
        self.layouts[file.name] = {"layout": name, "columns": columns}
        labels = unread_labels([row for row in rows if isinstance(row, Mapping)], columns.values())
        if layout.kind == "text" and labels:
            self.layouts[file.name]["labels"] = labels
        for record in chain(first, records):
            self._ledger.read += 1
            where = f"{file.name}:{record['row']}"
            try:
                example = self._example(layout, record)
            except Broken as e:
                self.refused.add(str(e), where)
                continue
            if example.mended:
                self._ledger.mend(example.mended, where, "")
            yield number, record["row"], example

    def _example(self, layout: Layout, record: Record) -> Example:
        if "value" not in record:
            raise Broken(record["problem"])
        row = record["value"]
        if not isinstance(row, Mapping):
            raise Broken("a row without named values")
        if self._unseen:
            self._unseen -= row.keys()
        columns = layout.columns(row)
        if columns is not None:
            return layout.example(row, columns)
        other = next((name for name, known in self._known.items() if known.columns(row)), None)
        if other:
            raise Broken(f"written as {other}, unlike the rows before")
        raise Broken(f"a row that has only {', '.join(map(repr, list(row)[:8]))}" if row else "an empty row")

    def _recognise(self, file: FoundFile, rows: list[object]) -> tuple[Layout, str, dict[str, str]]:
        """The layout that most of the first rows are in, and the columns it reads."""
        names = Counter(self._name_of(row) for row in rows)
        del names[""]
        if not names:
            if not rows:
                raise DataError(f"{file.name} holds no rows", "give a file of examples")
            present = list(dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row))
            if not set(self._named.values()) <= set(present):
                raise self._no_column(present, f"the rows of {file.name} have")
            shown = ", ".join(map(repr, present[:12])) or type(rows[0]).__name__
            raise DataError(
                f"{file.name} is in no layout that is known: its rows have {shown}",
                "name its columns: --rows.columns.prompt and --rows.columns.completion, or .messages, or .text",
            )
        self._present |= dict.fromkeys(name for row in rows if isinstance(row, Mapping) for name in row)
        name = names.most_common(1)[0][0]
        layout = self._known[name]
        matches = (layout.columns(row) for row in rows if isinstance(row, Mapping))
        columns = {what: column for one in matches if one for what, column in one.items()}
        return layout, name, columns

    def _no_column(self, present: list[str], where: str) -> DataError:
        """A column that was asked for and is nowhere."""
        what, column = next((w, c) for w, c in self._named.items() if c not in present)
        near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
        return DataError(
            f"there is no column {column!r}: {where} {', '.join(map(repr, present[:12]))}",
            f"did you mean --rows.columns.{what} {near[0]}?" if near else f"give one of them to --rows.columns.{what}",
        )

    def _name_of(self, row: object) -> str:
        if not isinstance(row, Mapping):
            return ""
        return next((name for name, layout in self._known.items() if layout.columns(row)), "")


def _layouts(columns: dict[str, str]) -> dict[str, Layout]:
    """The layouts that know all of the columns asked for, in the order in which they are tried."""
    every: list[tuple[str, type[Layout]]] = list(parts("data/layouts").items())  # type: ignore[arg-type]
    fitting = [(name, layout) for name, layout in every if set(columns) <= set(layout.model_fields)]
    if not fitting:
        names = ", ".join(columns)
        raise DataError(f"no layout has all of the columns {names}", "name those of one: prompt and completion, say")
    return {name: layout(**columns) for name, layout in sorted(fitting, key=lambda pair: pair[1].rank)}
