"""Rows of decisions, from records with named values.

A record is either {"state", "questions", "targets"}, where questions and targets are objects with the same names, or a
row of a table with a label column (see `label_column`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from settle.base.errors import DataError
from settle.data.decisions.label_column import LabelColumn
from settle.data.decisions.prompt import state_text
from settle.data.decisions.questions import Question

STATE, QUESTIONS, TARGETS = "state", "questions", "targets"
_FIX = 'write each row as {"state": …, "questions": {"name": {…}}, "targets": {"name": …}}'
Placed = tuple[str, Mapping[str, object]]  # where a record is, as `file:row`, and its named values


@dataclass(frozen=True)
class DecisionRow:
    """One question about one state. target: the share of each option, in the question's own order; they add up to 1.

    name: of the question. origin: where it comes from, as `file:row`.
    """

    state: str
    name: str
    question: Question
    target: tuple[float, ...]
    origin: str

    @property
    def best(self) -> int:
        """The index of the option with the largest share."""
        return max(range(len(self.target)), key=self.target.__getitem__)


def decision_rows(records: Sequence[Placed], label: str | None = None, instructions: str = "") -> list[DecisionRow]:
    """The rows that records spell. label: the label column of a table, found when not given; instructions: the
    question that is asked about each row of a table. Raises DataError, naming the row."""
    if not records:
        raise DataError("there are no rows in what was given", "give .csv, .jsonl or .parquet files with labelled rows")
    if label is None and all(is_decision(values) for _, values in records):
        return [row for where, values in records for row in _spelled(where, values)]
    column = LabelColumn.find([values for _, values in records], label, instructions)
    rows = []
    for where, values in records:
        named = column.row(values, where)
        rows += [DecisionRow(named.state, column.name, column.question, named.target, where)] if named else []
    return rows


def state_columns(records: Sequence[Placed], label: str | None = None) -> tuple[str, ...]:
    """The columns of a table that make a row's state; none for rows that spell theirs out. Raises DataError."""
    if label is None and all(is_decision(values) for _, values in records):
        return ()
    return LabelColumn.find([values for _, values in records], label).others


def is_decision(values: Mapping[str, object]) -> bool:
    """Whether a record has a state, questions and targets."""
    return {STATE, QUESTIONS, TARGETS} <= set(values)


def _spelled(where: str, values: Mapping[str, object]) -> Iterator[DecisionRow]:
    questions, targets = values[QUESTIONS], values[TARGETS]
    if not isinstance(questions, Mapping) or not isinstance(targets, Mapping):
        raise DataError(f"{where}: `questions` and `targets` have to be objects", _FIX)
    state = state_text(values[STATE])
    if not state.strip():
        raise DataError(f"{where}: the state is empty", "give the text that is decided about")
    unknown = [name for name in targets if name not in questions]
    if unknown or not targets:
        what = f"has a target for {unknown[0]!r}, and no such question" if unknown else "has no targets"
        raise DataError(f"{where} {what}", _FIX)
    for name, target in targets.items():
        question = Question.from_json(questions[name], f"{where}: the question {name!r}")
        yield DecisionRow(state, str(name), question, question.target(target, f"{where}: the target {name!r}"), where)
