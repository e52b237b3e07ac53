"""Rows of decisions, read from records with named values.

A record is either {"state", "questions", "targets"}, where questions and targets are objects with the same names, or a
row of a table with a label column. That column is the one with a usual name, or else the only one whose few values keep
repeating. Its values make a noul where they are yes and no, a score where they are neighbouring whole numbers, and
otherwise a choice.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from settle.base.errors import DataError
from settle.data.decisions.questions import MOST_LEVELS, MOST_OPTIONS, TRUTH, Option, Question, state_text
from settle.documents.rows import Values

USUAL = (
    "label", "labels", "class", "category", "target", "topic", "intent", "queue", "tag", "section", "department",
    "sentiment", "priority", "type", "kind", "decision", "answer", "completion", "output", "response",
)  # fmt: skip
TEXTS = ("text", "state", "input", "prompt", "message", "question", "body", "content", "description")
_TRUE, _FALSE = ("true", "yes", "y", "1"), ("false", "no", "n", "0")
NUMBERS = ("", "id", "index", "row", "uuid")  # columns that only number the rows
REPEATS = 2.0  # rows for each value, at least, of a column that is taken for labels without a usual name
SURE_REPEATS = 5.0  # the same of answers, before it is said that they could be labels
LONGEST = 60  # characters of a label
_SHOWN = 8
STATE, QUESTIONS, TARGETS = "state", "questions", "targets"
_FIX = 'write each row as {"state": …, "questions": {"name": {…}}, "targets": {"name": …}}'
Placed = tuple[str, Values]  # where a record is, as `file:row`, and its named values


@dataclass(frozen=True)
class LabelColumn:
    """The label column of a table.

    name: of the column. question: what is asked of every row. others: the columns that make the state.
    """

    name: str
    question: Question
    others: tuple[str, ...]

    @classmethod
    def find(cls, records: Sequence[Values], asked: str | None = None, instructions: str = "") -> "LabelColumn":
        """Return the label column of some records. Raises DataError when no column, or more than one, can be it."""
        columns = list(dict.fromkeys(str(key) for values in records for key in values))
        if asked and asked not in columns:
            raise DataError(f"there is no column {asked!r}", f"name one of {', '.join(columns[:_SHOWN])}")
        name = asked or _found(records, columns)
        labels = Counter(filter(None, (_label(values.get(name)) for values in records)))
        if len(labels) < 2:
            only = f"only {next(iter(labels))!r:.60}" if labels else "no value"
            raise DataError(f"the label column {name!r} holds {only}", "give rows of at least two classes")
        if len(labels) > MOST_OPTIONS:
            raise DataError(
                f"the label column {name!r} has {len(labels)} different values, and {MOST_OPTIONS} is the most",
                "group them, or name another column with --rows.columns.label",
            )
        rest = tuple(column for column in columns if column != name)
        others = tuple(column for column in rest if column.lower() not in NUMBERS) or rest
        if not others:
            raise DataError(f"{name!r} is the only column", "give rows with a text beside the label")
        return cls(name, _question(labels, re.sub(r"[_-]+", " ", name), instructions), others)

    def row(self, values: Values, where: str) -> "DecisionRow | None":
        """Return a row of the table; None where it has no label or no text. where: it is, as `file:row`."""
        label, state = _label(values.get(self.name)), self.state(values)
        if not label or not state.strip():
            return None
        if self.question.type == "score":
            label = str(int(label) - int(self.question.options[0].description or 0))
        target = self.question.target(label, f"{where}: {self.name}")
        return DecisionRow(state, self.name, self.question, target, where)

    def state(self, values: Values) -> str:
        """Return a row's text: its one other column, or each other column on a line of its own with its name."""
        texts = {column: _text(values.get(column)) for column in self.others}
        if len(self.others) == 1:
            return texts[self.others[0]]
        return "\n".join(f"{column}: {text}" for column, text in texts.items() if text)


def _found(records: Sequence[Values], columns: Sequence[str]) -> str:
    lowered = {column.lower(): column for column in reversed(columns)}
    for usual in USUAL:
        if usual in lowered and _may_label(records, lowered[usual], 1.0):
            return lowered[usual]
    likely = [c for c in columns if c.lower() not in TEXTS and _may_label(records, c, REPEATS)]
    if len(likely) == 1:
        return likely[0]
    which = f"several columns may hold it: {', '.join(likely[:_SHOWN])}" if likely else (
        f"the columns are {', '.join(columns[:_SHOWN])}"
    )  # fmt: skip
    raise DataError(f"no label column was found; {which}", "name it with --rows.columns.label")


def unread_labels(records: Sequence[Values], read: Collection[str]) -> str | None:
    """Return the one column other than those `read` that surely holds labels, or None."""
    columns = dict.fromkeys(str(key) for values in records for key in values)
    found = [
        name
        for name in columns
        if name not in read and are_labels([label for values in records if (label := _label(values.get(name)))])
    ]
    return found[0] if len(found) == 1 else None


def are_labels(values: Sequence[str]) -> bool:
    """Return whether texts are few short ones that repeat, each a few times on average."""
    different = set(values)
    few = 2 <= len(different) <= MOST_OPTIONS and len(values) >= SURE_REPEATS * len(different)
    return few and max(map(len, different)) <= LONGEST


def _may_label(records: Sequence[Values], column: str, repeats: float) -> bool:
    """Return whether a column has few short values, `repeats` rows for each of them on average."""
    labels = [label for values in records if (label := _label(values.get(column)))]
    if not labels or any(isinstance(values.get(column), list | dict) for values in records):
        return False
    different = set(labels)
    short = max(map(len, different)) <= LONGEST
    return short and len(different) > (1 if repeats > 1 else 0) and len(labels) >= repeats * len(different)


def _question(labels: Mapping[str, int], name: str, instructions: str) -> Question:
    """Return the question that the labels answer. instructions: empty for a question made of the column's name."""
    words = {label.lower() for label in labels}
    if len(words) == 2 and words <= {*_TRUE, *_FALSE} and words & {*_TRUE} and words & {*_FALSE}:
        return Question("noul", instructions or f"Is this true: {name}?", tuple(Option(key) for key in TRUTH))
    numbers = sorted({int(label) for label in labels if re.fullmatch(r"-?\d{1,3}", label)})
    if len(numbers) == len(labels) and 3 <= len(numbers) <= MOST_LEVELS and numbers[-1] - numbers[0] < len(numbers):
        levels = tuple(Option(str(i), str(number)) for i, number in enumerate(numbers))
        return Question("score", instructions or f"Which level: {name}?", levels)
    return Question("choice", instructions or f"Which {name} fits?", tuple(Option(label) for label in sorted(labels)))


def _label(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == value and value.is_integer():
        return str(int(value))
    return _text(value)


def _text(value: object) -> str:
    return "" if value is None or (isinstance(value, float) and value != value) else str(value).strip()


@dataclass(frozen=True)
class DecisionRow:
    """One question about one state.

    target: the share of each option, in the question's own order; they add up to 1. name: of the question. origin:
    where it comes from, as `file:row`.
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
    """Return the rows that records spell.

    label: the label column of a table, found when not given. instructions: the question that is asked about each row of
    a table. Raises DataError, naming the row.
    """
    if not records:
        raise DataError("there are no rows in what was given", "give .csv, .jsonl or .parquet files with labelled rows")
    if label is None and all(is_decision(values) for _, values in records):
        return [row for where, values in records for row in _spelled(where, values)]
    column = LabelColumn.find([values for _, values in records], label, instructions)
    return [row for where, values in records if (row := column.row(values, where))]


def state_columns(records: Sequence[Placed], label: str | None = None) -> tuple[str, ...]:
    """Return the columns of a table that make a row's state; none for rows that spell theirs out. Raises DataError."""
    if label is None and all(is_decision(values) for _, values in records):
        return ()
    return LabelColumn.find([values for _, values in records], label).others


def is_decision(values: Values) -> bool:
    """Return whether a record has a state, questions and targets."""
    return {STATE, QUESTIONS, TARGETS} <= set(values)


def _spelled(where: str, values: Values) -> Iterator[DecisionRow]:
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
