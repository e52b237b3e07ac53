"""Pruners: each takes a model and hands back a smaller ordinary one of the same architecture.

What is removed is removed whole (blocks, heads, channels, rows of the token table), so the result is quicker wherever
it runs. Which parts go is decided by what a text makes of them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from settle.base.errors import UsageError
from settle.base.registry import Part
from settle.shrink.subject import Subject

__all__ = ["Pruned", "Pruner", "Subject", "kept_number"]


@dataclass(frozen=True)
class Pruned:
    """subject: the smaller model. report: what was removed, why, and what was measured on the way; plain values, so
    that it can go into a card."""

    subject: Subject
    report: dict[str, Any] = field(default_factory=dict)


class Pruner(Part):
    """The contract. Settings are fields."""

    @abstractmethod
    def prune(self, subject: Subject, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> Pruned:
        """A smaller model. windows: token ids of the person's text, to see what each part does there; texts: the same
        kind of text as it was written.

        Raises UsageError for an amount that cannot be removed, or a shape that llama.cpp does not load, naming the
        nearest one that it does.
        """


def kept_number(there: int, share: float, step: int = 1) -> int:
    """How many of `there` are left when `share` of them goes: a multiple of `step` if the sizes allow it, else of the
    largest power of two in it that does; at least one, and fewer than there were when anything shall go."""
    wanted = there * (1 - share)
    while step > 1 and (there % step or there <= step):
        step //= 2
    kept = max(step, round(wanted / step) * step)
    if kept >= there > step and share > 0:
        kept = there - step
    if kept < 1 or kept > there:
        raise UsageError(f"{share:.0%} of {there} cannot be removed", "choose a share between 0 and 1")
    return kept
