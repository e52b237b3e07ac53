"""The user's examples, made ready for a fair choice: repeats removed, and a test set that nothing else is made of.

Legend: n rows.
"""

import collections
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.files import parse_json
from settle.data.layouts import Example
from settle.data.similarity import Similarity
from settle.data.split import HELD_OUT, NEAR_DUPLICATE, buffered, prompt_hash, split_rows, words
from settle.evaluate.compare.against_base import rows_of
from settle.evaluate.compare.cases import Case, cases
from settle.evaluate.tasks import plain

MOST_LABELS = 50  # more different answers are no closed set
LABEL_ROWS = 3.0  # rows of each answer on average, from which on the answers are a closed set
LABEL_LETTERS = 80  # of the longest label
_NUMBER = (re.compile(r"-?\d+(\.\d+)?"), "a number", 'root ::= "-"? [0-9]+ ("." [0-9]+)?')
_DATE = (
    re.compile(r"\d{4}-\d\d-\d\d"),
    "a date",
    'root ::= [0-9] [0-9] [0-9] [0-9] "-" [0-9] [0-9] "-" [0-9] [0-9]',
)
_VALUE = r"""
value ::= string | number | "true" | "false" | "null"
number ::= "-"? [0-9]+ ("." [0-9]+)?
string ::= "\"" ([^"\\\x00-\x1F] | "\\" ["\\/bfnrtu])* "\""
"""


@dataclass(frozen=True)
class AnswerForm:
    """The form of answers. title: for the user. grammar: of a whole answer, in GBNF."""

    title: str
    grammar: str


@dataclass(frozen=True)
class ExampleSet:
    """Examples, split for a choice.

    Attributes:
        labels: the answers of the training examples where they come again and again, most frequent first; empty where
            answers are free text.
    """

    train: Sequence[Example]  # examples to build from
    test: Sequence[Case]  # questions that only judge
    families: Sequence[int]  # of the test questions, the same number for those that belong together
    removed: Mapping[str, int] = field(default_factory=dict)  # how many rows were left out, by the reason
    labels: Sequence[str] = ()

    @property
    def train_cases(self) -> list[Case]:
        """The training examples as questions, numbered from 1."""
        return cases(self.train)

    @property
    def form(self) -> AnswerForm | None:
        """The form of all wanted answers of the training examples, where they have one."""
        return form_of([case.reference for case in self.train_cases], self.labels)

    def without(self, test: Sequence[Case]) -> "ExampleSet":
        """Leave out test questions, which the documents hold."""
        gone = {case.number for case in test}
        left = [i for i, case in enumerate(self.test) if case.number not in gone]
        removed = {**self.removed, "are in the documents word for word": len(gone)}
        tests, families = [self.test[i] for i in left], [self.families[i] for i in left]
        return replace(self, test=tests, families=families, removed=removed)


def read_examples(path: Path, docs: Path | None, test_share: float, events: Events) -> ExampleSet:
    """Read and split the examples of a file or folder. Raises DataError for what cannot be chosen on."""
    if not path.expanduser().exists():
        raise DataError(f"there is no file or folder {path}", "check the path of the examples")
    if docs is not None and not docs.expanduser().exists():
        raise DataError(f"there is no folder {docs}", "check the path of --docs")
    if docs is not None and _is_within(path, docs):
        raise UsageError(
            f"{path} lies among the documents, which would then hold the answers", "move it out of that folder"
        )
    rows = list(rows_of(path, events))
    if any(row.kind != "chat" for row in rows):
        raise DataError(f"{path} holds no questions with one wanted answer each", "give rows of a prompt and an answer")
    kept, removed = distinct(rows)
    if len({plain(case.reference) for case in cases(kept)}) < 2:
        raise DataError(
            f"all {len(kept)} different examples want the same answer, which any way of answering can learn",
            "give examples with different answers",
        )
    sides, families = _split(kept, test_share)
    test = [i for i, is_test in enumerate(sides) if is_test]
    train = [row for row, is_test in zip(kept, sides, strict=True) if not is_test]
    if not test or not train:
        raise DataError(
            f"{len(kept)} different examples are too alike to keep some of them apart as a test", "give more, that vary"
        )
    return ExampleSet(
        train=train,
        test=[case for i, case in enumerate(cases(kept)) if sides[i]],
        families=[int(families[i]) for i in test],
        removed=removed,
        labels=closed_set([case.reference for case in cases(train)]),
    )


def distinct(rows: Sequence[Example]) -> tuple[list[Example], dict[str, int]]:
    """Return the rows without repeats, and how many were left out for which reason.

    Of rows that are nearly the same the first one stays; questions to which different answers are wanted go altogether,
    since no answer could be right.
    """
    wanted: dict[str, set[str]] = {}
    for row in rows:
        wanted.setdefault(_asked(row), set()).add(plain(_answer(row)))
    contradictory = [len(wanted[_asked(row)]) > 1 for row in rows]
    left = [row for row, is_out in zip(rows, contradictory, strict=True) if not is_out]
    firsts: dict[tuple[str, str], Example] = {}
    for row in left:
        firsts.setdefault((_asked(row), plain(_answer(row))), row)
    unique = list(firsts.values())
    similar = _clusters(unique)
    kept = [row for i, row in enumerate(unique) if similar[i] == i]
    removed = {
        "ask the same and want different answers": sum(contradictory),
        "are the same as another": len(left) - len(unique),
        "are nearly the same as another": len(unique) - len(kept),
    }
    return kept, {reason: number for reason, number in removed.items() if number}


def closed_set(answers: Sequence[str]) -> list[str]:
    """Return the different answers, most frequent first, where they are few and come again and again; else []."""
    counts = collections.Counter(answer.strip() for answer in answers)
    is_closed = len(counts) <= MOST_LABELS and len(answers) >= LABEL_ROWS * len(counts)
    is_short = max(map(len, counts), default=0) <= LABEL_LETTERS
    return [label for label, _ in counts.most_common()] if is_closed and is_short and "" not in counts else []


def _split(rows: Sequence[Example], test_share: float) -> tuple[list[bool], np.ndarray]:
    """Return which rows judge, bool (n,), and the families (n,): those of one family are on one side."""
    prompts = np.array([prompt_hash(words(row)[0]) for row in rows], np.uint64)
    with buffered(rows) as texts:
        split = split_rows(texts, prompts, np.ones(len(rows), bool), test_share)
        return (split.sides == HELD_OUT).tolist(), split.families


def _clusters(rows: Sequence[Example]) -> list[int]:
    """Return for each row the first that is nearly the same."""
    with buffered(rows) as texts:
        clusters: list[int] = Similarity(texts).clusters(NEAR_DUPLICATE).tolist()
        return clusters


def _asked(row: Example) -> str:
    return "\n".join(f"{m['role']}: {plain(str(m['content']))}" for m in row.messages[:-1])


def _answer(row: Example) -> str:
    return str(row.messages[-1]["content"])


def _is_within(path: Path, folder: Path) -> bool:
    return path.expanduser().resolve().is_relative_to(folder.expanduser().resolve())


# --- the form that all wanted answers have ---


def form_of(answers: Sequence[str], labels: Sequence[str]) -> AnswerForm | None:
    """Return the form of all these answers. labels: they are a closed set of these, if any are given."""
    if labels:
        return AnswerForm("one of the known answers", only(labels))
    texts = [answer.strip() for answer in answers]
    for pattern, title, grammar in (_NUMBER, _DATE):
        if texts and all(pattern.fullmatch(text) for text in texts):
            return AnswerForm(title, grammar)
    keys = {_keys(text) for text in texts}
    (same,) = keys if len(keys) == 1 else ((),)
    if not same:
        return None
    pairs = ' "," " "? '.join(f'{_quoted(json.dumps(key) + ":")} " "? value' for key in same)
    return AnswerForm(f"JSON with {', '.join(same)}", f'root ::= "{{" {pairs} "}}"{_VALUE}')


def only(labels: Sequence[str]) -> str:
    """Return the grammar of an answer that is one of the labels."""
    return "root ::= " + " | ".join(map(_quoted, labels))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _keys(text: str) -> tuple[str, ...]:
    """Return the keys of a JSON object without others in it; () for anything else."""
    try:
        value = parse_json(text)
    except ValueError:
        return ()
    is_flat = isinstance(value, dict) and not any(isinstance(v, dict | list) for v in value.values())
    return tuple(value) if is_flat else ()
