"""Exact match."""

from collections.abc import Sequence
from typing import ClassVar, Self

from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import PARTS, Task, same, share
from settle.evaluate.tasks.f1 import F1, are_short, num_parts

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
        """Suit a few labels that come again and again, or short answers: a name, a number, a word."""
        labels = len({c.reference for c in cases})
        if labels <= LABELS and labels * 5 <= len(cases):
            return cls()
        is_whole = share([num_parts(c.reference) < PARTS for c in cases]) > 0.5
        return cls() if is_whole and are_short(cases) else None
