"""Files of examples → all examples on disk, checked, each once, and each on its side.

The layout of each file is found from its rows, and rows that do not keep to it are refused. Legend: R examples.
"""

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.registry import parts
from settle.data.cleaning.secrets import secrets_of
from settle.data.corpus import Ledger, Sources
from settle.data.decisions.rows import unread_labels
from settle.data.document_buffer import BufferWriter, DocumentBuffer
from settle.data.layouts import Broken, Example, Kind, RowLayout
from settle.data.settings import ColumnSettings, RowSettings
from settle.data.split import (
    DROPPED,
    SELECTION_SHARE,
    SIDES,
    TRAIN,
    are_few,
    judging_share,
    prompt_hash,
    row_clusters,
    split_given,
    split_rows,
    split_sections,
    without_kin_of,
    words,
)
from settle.documents.blocks import Unreadable
from settle.documents.decode import damage_error
from settle.documents.reader_pool import RowReader
from settle.documents.readers import Reader
from settle.documents.rows import Record, Values, problem_of
from settle.documents.walk import FoundFile

_SAMPLED_ROWS = 100  # rows that tell a file's layout
_NAMED = 10  # rows that an error names
_REPORT_EVERY = 512  # rows between two progress events


@dataclass
class RefusedRows:
    """Rows that cannot be used, by reason: how many, and the first of them, with what exactly is wrong there."""

    rows: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        if reason not in self.rows and detail:
            self.details[reason] = detail
        self.rows.setdefault(reason, []).append(where)

    @property
    def count(self) -> int:
        return sum(map(len, self.rows.values()))

    def __str__(self) -> str:
        reasons = []
        for reason, rows in self.rows.items():
            more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
            detail = self.details.get(reason, "")
            of_first = f" ({'the first: ' if len(rows) > 1 else ''}{detail})" if detail else ""
            reasons.append(f"{reason}: {', '.join(rows[:_NAMED])}{more}{of_first}")
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
        """Yield the file number, the row and the example.

        Raises DataError when rows are mixed, or in no layout that is known.
        """
        done, total = 0, sum(f.size for f in self._files)
        with RowReader(self._files, self._ledger.note_omission) as reader:
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
        if first and not rows:
            what = f"line {first[0]['row']}: {problem_of(first[0])}"
            raise DataError(f"{file.name} holds no rows that can be read: {what}", "give an example on each line")
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
                self.refused.add(str(e), where, record.get("detail", ""))
                continue
            if example.mended:
                self._ledger.mend(example.mended, where, "")
            yield number, record["row"], example

    def _example(self, layout: RowLayout, record: Record) -> Example:
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
        if other := self._name_of(row):
            raise Broken(f"written as {other}, unlike the rows before")
        raise Broken(f"a row that has only {', '.join(map(repr, list(row)[:8]))}" if row else "an empty row")

    def _recognise(self, file: FoundFile, rows: list[object]) -> tuple[RowLayout, str, dict[str, str]]:
        """Return the layout that most of the first rows are in, and the columns it reads."""
        if not rows:
            raise DataError(f"{file.name} holds no rows", "give a file of examples")
        records = [row for row in rows if isinstance(row, Mapping)]
        present = list(dict.fromkeys(name for row in records for name in row))
        names = Counter(name for row in records if (name := self._name_of(row)))
        if not names:
            if not set(self._named.values()) <= set(present):
                raise self._no_column(present, f"the rows of {file.name} have")
            shown = ", ".join(map(repr, present[:12])) or type(rows[0]).__name__
            raise DataError(
                f"{file.name} is in no layout that is known: its rows have {shown}",
                "name its columns: --rows.columns.prompt and --rows.columns.completion, or .messages, or .text",
            )
        self._present |= dict.fromkeys(present)
        name = names.most_common(1)[0][0]
        layout = self._known[name]
        columns = {what: column for row in records for what, column in (layout.columns(row) or {}).items()}
        return layout, name, columns

    def _no_column(self, present: list[str], where: str) -> DataError:
        """Return the error of a column that was asked for and is nowhere."""
        what, column = next((w, c) for w, c in self._named.items() if c not in present)
        near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
        return DataError(
            f"there is no column {column!r}: {where} {', '.join(map(repr, present[:12]))}",
            f"did you mean --rows.columns.{what} {near[0]}?" if near else f"give one of them to --rows.columns.{what}",
        )

    def _name_of(self, row: Values) -> str | None:
        return next((name for name, layout in self._known.items() if layout.columns(row)), None)


def _layouts(columns: dict[str, str]) -> dict[str, RowLayout]:
    """Return the layouts that know all of the columns asked for, in the order in which they are tried."""
    every: list[tuple[str, type[RowLayout]]] = list(parts("data/layouts").items())  # type: ignore[arg-type]
    fitting = [(name, layout) for name, layout in every if set(columns) <= set(layout.model_fields)]
    if not fitting:
        names = ", ".join(columns)
        raise DataError(f"no layout has all of the columns {names}", "name those of one: prompt and completion, say")
    return {name: layout(**columns) for name, layout in sorted(fitting, key=lambda pair: pair[1].rank)}


@dataclass(frozen=True)
class CollectedRows:
    """Examples on disk, each on its side.

    examples: of plain text the text, of other kinds JSON. sides: int8 (R,); families: int64 (R,), as in `Split`. names:
    of the files, by number.
    """

    examples: DocumentBuffer
    sides: np.ndarray
    families: np.ndarray
    kind: Kind
    names: list[str]

    def example(self, number: int) -> Example:
        """Return one example."""
        written = self.examples.read(number)
        return Example("text", text=written) if self.kind == "text" else Example(**json.loads(written))

    def line(self, number: int) -> str:
        """Return one example as JSON."""
        written = self.examples.read(number)
        return json.dumps(vars(Example("text", text=written))) if self.kind == "text" else written

    def place(self, number: int) -> list[int]:
        """Return the file, the row and the family of an example, as a store keeps them."""
        return [*self.examples.origins[number].tolist(), int(self.families[number])]

    def origin(self, number: int) -> str:
        """Return where an example comes from, as `file:row`."""
        file, row = self.examples.origins[number].tolist()
        return f"{self.names[file]}:{row}"


def collect_rows(sources: Sources, settings: RowSettings, ledger: Ledger, events: Events, work: Path) -> CollectedRows:
    """Return every example of the files.

    Raises DataError for mixed or broken rows, and when a side would have none.
    """
    files, held_out_files = (of_one_sort(side, ledger) for side in (sources.train, sources.held_out))
    reading = ExampleReader(files + held_out_files, settings.columns, ledger, events)
    prompts: list[int] = []
    names = [f.name for f in files + held_out_files]
    with BufferWriter(work / "examples") as examples, BufferWriter(work / "texts") as texts:
        for number, row, example in reading.examples():
            prompt, answer = words(example)
            if example.kind != "text":
                examples.append(json.dumps(vars(example), ensure_ascii=False), number, row)
            texts.append(f"{prompt}\n\n{answer}" if answer else prompt, number, row)
            turns = [*example.messages, *example.chosen, *example.rejected]  # all that the model may learn to say
            for secret, _ in secrets_of("\n\n".join([example.text, *(turn["content"] for turn in turns)])):
                ledger.find(secret, 1, f"{names[number]}:{row}")
            prompts.append(prompt_hash(prompt))
    refuse(reading.refused, settings, ledger)
    ledger.notes["layouts"] = reading.layouts
    similar, kind = texts.close(), reading.kind or "chat"
    spool = similar if kind == "text" else examples.close()
    is_held_out, remaining = spool.origins[:, 0] >= len(files), np.ones(len(spool), bool)
    if not settings.repeats:
        remaining = _without_repeats(spool, names, is_held_out, ledger)
    given, share = None, settings.held_out
    if held_out_files:
        given = is_held_out
        remaining = without_kin_of(
            given, similar, remaining, lambda reason, file, row: ledger.drop(reason, f"{names[file]}:{row}", "")
        )
    if kind == "text" and are_few(similar, remaining if given is None else remaining & ~given, share):
        spool, split = split_sections(
            similar, remaining, share, work, given, SELECTION_SHARE * share, in_one_stretch=True
        )
    elif given is None:
        is_usual = kind != "text" and "held_out" not in settings.model_fields_set
        judging = judging_share(int(remaining.sum()), share) if is_usual else share
        split = split_rows(similar, np.array(prompts, np.uint64), remaining, judging, SELECTION_SHARE * share)
    else:
        levels = row_clusters(similar, np.array(prompts, np.uint64))
        split = split_given(similar, levels, remaining, given, SELECTION_SHARE * share, by_rows=True)
    collected = CollectedRows(spool, split.sides, split.families, kind, names)
    _refuse_one_sided(collected, ledger)
    return collected


def of_one_sort(files: list[FoundFile], ledger: Ledger) -> list[FoundFile]:
    """Leave out text files that lie with files of rows: a folder's README is not an example."""
    rows = [file for file in files if Reader.part(file.reader).has_columns]
    for file in files if rows else ():
        if file not in rows:
            ledger.skip("text beside files of rows", file.name)
    return rows or files


def refuse(refused: RefusedRows, settings: RowSettings, ledger: Ledger) -> None:
    """Raise DataError for rows that cannot be used, or leave them out where that is what was asked for."""
    if refused.count and not settings.drop_broken:
        rows = "1 row" if refused.count == 1 else f"{refused.count} rows"
        raise DataError(f"{rows} cannot be used: {refused}", "fix them, or leave them out with --rows.drop-broken")
    for reason, places in refused.rows.items():
        for where in places:
            ledger.drop(reason, where, "")


def _without_repeats(examples: DocumentBuffer, names: list[str], is_held_out: np.ndarray, ledger: Ledger) -> np.ndarray:
    """Return which examples remain, bool (R,): the first of identical ones, and all that the user held out."""
    _, first = np.unique(examples.hashes, return_index=True)
    remaining = is_held_out.copy()
    remaining[first] = True
    for file, row in examples.origins[~remaining].tolist():
        ledger.drop("exact duplicate", f"{names[file]}:{row}", "")
    return remaining


def _refuse_one_sided(collected: CollectedRows, ledger: Ledger) -> None:
    if not len(collected.sides):
        raise DataError(
            f"there are no rows in what was given ({ledger.summary()})",
            "rows are read from .jsonl, .json, .csv and .parquet, one example each",
        )
    for side, name in SIDES.items():
        if not (collected.sides == side).any():
            remaining = int((collected.sides != DROPPED).sum())
            fix = "give more varied examples, or held-out ones of their own with --rows.held-out-from"
            if remaining < len(SIDES):
                rows = "1 row is" if remaining == 1 else f"{remaining} rows are"
                needed = "training, selection and test need rows of their own"
                raise DataError(f"{rows} too few: {needed} ({ledger.summary()})", fix)
            name = "training" if side == TRAIN else name.replace("_", "-")
            raise DataError(
                f"the {remaining} rows are too much alike: nearly the same rows are kept together, and none are left "
                f"for {name} ({ledger.summary()})",
                fix,
            )
