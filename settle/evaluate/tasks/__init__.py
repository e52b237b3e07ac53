"""Tasks: one file a way to score an answer against the one that is wanted."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from pydantic import ValidationError

from settle.base.errors import UsageError
from settle.base.registry import Part
from settle.evaluate.compare.cases import Case

MOST_OF = 0.9  # a task is chosen when this share of the wanted answers is made for it
# of a usual wanted answer, from which on the share of them that is right decides: all or nothing hardly moves before
# every part is right, and shows less
PARTS = 4
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*\.?\d*%?")


class Task(Part):
    """A scorer of answers.

    title: its name for people. rank: where several suit the data, the lowest is taken; 0 is never chosen by itself.
    is_share: scores are from 0 to 1.
    """

    title: ClassVar[str]
    rank: ClassVar[int] = 0
    is_share: ClassVar[bool] = True

    def score(self, answer: str, case: Case) -> float:
        """How right an answer is, 1 for all right."""
        raise NotImplementedError

    def beside(self) -> Sequence["Task"]:
        """Return further tasks worth knowing where this one is chosen; reported, but no verdict depends on them."""
        return ()

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self | None:
        """Return the task with the settings that these cases ask for, or None where they are not made for it."""
        return None

    @classmethod
    def from_value(cls, value: str) -> Self:
        """Return the task with the value after the colon in `--score NAME:VALUE`; most tasks take none."""
        if value:
            raise UsageError(f"this score takes no value, and {value!r} was given", "leave out the colon and the rest")
        return cls()


def best_suited(cases: Sequence[Case]) -> Task:
    """Return the most particular task that suits the data."""
    ranked = sorted((rank, kind) for kind in Task.parts().values() if (rank := kind.rank))
    return next(task for _, kind in ranked if (task := kind.suited(cases)) is not None)


def named(score: str) -> Task:
    """Return the task that `--score` asks for: `NAME`, `NAME:VALUE`, or the path of a Python file.

    Raises UsageError naming the nearest one.
    """
    name, _, value = ("python", "", score) if score.endswith(".py") else score.partition(":")
    if name not in Task.part_names():
        known = ", ".join(Task.part_names())
        raise UsageError(f"there is no score {name!r}", f"one of: {known}; or the path of a Python file")
    try:
        return Task.part(name).from_value(value)
    except ValidationError as e:
        raise UsageError(f"--score {score}: {e.errors()[0]['msg']}", "see docs/eval.md") from None


def share(hits: Sequence[bool]) -> float:
    """How many of them are true, from 0 to 1."""
    return sum(hits) / len(hits) if hits else 0.0


def plain(text: str) -> str:
    """Strip a text of what does not matter: case, spaces at the ends and between, and a full stop at the end."""
    return " ".join(text.casefold().split()).rstrip(".").rstrip()


def same(answer: str, wanted: str) -> bool:
    """Return whether two short answers agree: the same plain text, or the same number however it is written."""
    if plain(answer) == plain(wanted):
        return True
    ours, theirs = _number(answer), _number(wanted)
    return ours is not None and theirs is not None and math.isclose(ours, theirs, rel_tol=1e-9)


def is_number(text: str) -> bool:
    """Return whether a text is a number and nothing else."""
    return _number(text) is not None


def _number(text: str) -> float | None:
    text = plain(text)
    if not _NUMBER.fullmatch(text):
        return None
    return float(text.replace(",", "").replace("$", "").rstrip("%"))


def existing(path: str) -> Path:
    """Return a file that the user named. Raises UsageError when it is not there."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise UsageError(f"there is no file {path}", "check the path given to --score")
    return found
