"""Pruners: each takes a model and hands back a smaller ordinary one of the same architecture.

What is removed is removed whole (blocks, heads, channels, rows of the token table), so the result is quicker wherever
it runs. Which parts go is decided by what a text makes of them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.registry import Part
from settle.shrink.prunable_model import Subject

__all__ = ["Pruned", "Pruner", "Subject", "kept_number"]


@dataclass(frozen=True)
class Pruned:
    """subject: the smaller model. report: what was removed, why, and what was measured on the way; plain values, so
    that it can go into a card."""

    subject: Subject
    report: dict[str, Any] = field(default_factory=dict)


class Pruner(Part):
    """The contract. Settings are fields."""

    step: bool = Field(False, description="one step of several: llama.cpp need not load what comes of it")

    @abstractmethod
    def prune(self, subject: Subject, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> Pruned:
        """A smaller model. windows: token ids of the person's text, to see what each part does there; texts: the same
        kind of text as it was written.

        Raises UsageError for an amount that cannot be removed, or a shape that llama.cpp does not load, naming the
        nearest one that it does.
        """


def kept_number(there: int, share: float, step: int = 1) -> int:
    """How many of `there` are left when about `share` of them goes: a multiple of `step` where the sizes allow it, else
    of the largest power of two in it that does; fewer than there were. Raises UsageError when that leaves none."""
    while step > 1 and (there % step or step > there * share):
        step //= 2
    kept = min(max(round(there * (1 - share) / step) * step, step), there - step)
    if kept < 1:
        raise UsageError(f"{share:.0%} of {there} cannot be removed", "choose another share, or prune something else")
    return kept
