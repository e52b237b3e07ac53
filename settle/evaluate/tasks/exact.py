"""Exact match."""

from collections.abc import Sequence
from typing import ClassVar, Self

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import MOST_OF, Task, same, share
from settle.evaluate.tasks.f1 import F1

SHORT = 6  # words
LABELS = 20


class Exact(Task):
    """1 when the answer is the one that is wanted: case, spaces and a last full stop aside, numbers by their value."""

    title: ClassVar[str] = "exact match"
    rank: ClassVar[int] = 4

    def score(self, answer: str, case: Case) -> float:
        return float(same(answer, case.reference))

    def beside(self) -> Sequence[Task]:
        return (F1(),)

    @classmethod
    def suited(cls, cases: Sequence[Case]) -> Self | None:
        """Answers of a few words, or a few labels that come again and again."""
        short = share([len(c.reference.split()) <= SHORT and len(c.reference) <= 20 * SHORT for c in cases])
        labels = len({c.reference for c in cases})
        return cls() if short >= MOST_OF or (labels <= LABELS and labels * 5 <= len(cases)) else None
