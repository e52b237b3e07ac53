"""Decision models on the user's own labelled rows: how often the likeliest option is the right one."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from settle.base.errors import DataError
from settle.data.corpus import find_files, workspace
from settle.data.decisions.rows import DecisionRow, Placed, decision_rows
from settle.data.layouts import Example
from settle.data.ledger import Ledger
from settle.data.split import row_families
from settle.documents.reader_pool import RowReader
from settle.evaluate.compare.in_time import spread
from settle.evaluate.footprint import Measured, peak_bytes
from settle.infer.decider import Decider
from settle.jobs.pick.exam import Exam, Taken
from settle.jobs.pick.needs import Needs
from settle.library.reference import ModelRef

TIMED = 8  # rows of a round, one after the other


@dataclass(frozen=True)
class Decisions(Exam):
    """Rows of a question about a state each, with the share of every option."""

    title: ClassVar[str] = "accuracy"
    noun: ClassVar[str] = "rows"
    unit: ClassVar[str] = "decisions"
    columns: ClassVar[dict[str, str]] = {
        "prompts": "rows", "first token, s": "a decision, s", "tokens/s": "decisions/s",
    }  # fmt: skip
    tokens: ClassVar[int] = 2048

    rows: Sequence[DecisionRow]
    families: Sequence[int]
    given: int

    @property
    def beside(self) -> str:
        return f"{' or '.join(map(str, sorted({len(row.target) for row in self.rows})))} options"

    def needs(self, context: int, must_take_it: bool, languages: frozenset[str], commercial: bool) -> Needs:
        letters = int(statistics.median(len(row.state) for row in self.rows))
        return Needs(context, must_take_it, languages, letters=letters, decides=True, commercial=commercial)

    def takes(self, ref: ModelRef, tokens: int) -> Taken:
        with Decider(ref.weights, tokens, slots=1) as decider:
            timed = spread(list(self.rows), TIMED)
            decider.decide(timed[0].state, [timed[0].question])  # the first look at a mapped file reads it
            seconds = [_seconds(decider, row) for row in timed]
            letters = sum(len(row.state) for row in timed)
            return Taken(
                first_token=Measured.of(seconds),
                speed=Measured.of([len(timed) / sum(seconds)]),
                reading=Measured.of([letters / sum(seconds)]),
                peak_bytes=peak_bytes(decider.pid or 0),
                context=tokens,
                tokens=0,
                longest_answer=1,
            )

    def scores(self, ref: ModelRef, tokens: int) -> list[float]:
        """Return by row the share that the target gives to the option that is likeliest to the model."""
        with Decider(ref.weights, tokens) as decider:
            return [row.target[decider.decide(row.state, [row.question])[0].best] for row in self.rows]


def read_decisions(path: Path, limit: int) -> Decisions:
    """Read the labelled rows of a file or folder, at most `limit`, evenly spread. Raises DataError."""
    if not path.expanduser().exists():
        raise DataError(f"there is no file or folder {path}", "check the path given to --prompts")
    with workspace() as work:
        files = find_files([str(path.expanduser())], work, Ledger())
        records: list[Placed] = []
        with RowReader(files, lambda file, note: None) as reader:
            for file in files:
                for record in reader.records(file):
                    if isinstance(values := record.get("value"), Mapping):
                        records.append((f"{file.name}:{record['row']}", values))
    rows = decision_rows(records)
    asked = spread(rows, limit)
    examples = [
        Example("chat", [{"role": "user", "content": row.state}, {"role": "assistant", "content": ""}], single=True)
        for row in asked
    ]
    return Decisions(asked, row_families(examples), len(rows))


def _seconds(decider: Decider, row: DecisionRow) -> float:
    begin = time.perf_counter()
    decider.decide(row.state, [row.question])
    return time.perf_counter() - begin
