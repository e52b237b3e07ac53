"""Pruners: each takes a model and returns a smaller ordinary one of the same architecture.

What is removed is removed whole (blocks, heads, channels, rows of the token table), so the result is quicker wherever
it runs. Which parts go is decided by what a text makes of them.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from pydantic import Field

from settle.base.errors import UsageError
from settle.base.files import JsonObject
from settle.base.registry import Part
from settle.shrink.prunable_model import PrunableModel

OnProgress = Callable[[int, int], bool]
FEWEST_WINDOWS, PASSES = 4, 4  # windows of a pruner at least; how often it computes each layer
SEARCH_FLOPS = 2e13  # of a search by loss, where no time is given: minutes on a few cores


def always(done: int, total: int) -> bool:
    """There is time for more."""
    return True


@dataclass(frozen=True)
class Pruned:
    """What a pruner made.

    subject: the smaller model. report: what was removed, why, and what was measured on the way; plain values, so that
    it can go into a card.
    """

    subject: PrunableModel
    report: JsonObject = field(default_factory=dict)


class Pruner(Part):
    """The contract. Settings are fields.

    shrinks: the fields of the architecture that it makes smaller. order: of pruners that one shape needs, the lower
    goes first.
    """

    shrinks: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[int] = 0

    step: bool = Field(False, description="one step of several: llama.cpp need not load the result")

    @abstractmethod
    def prune(
        self,
        subject: PrunableModel,
        windows: Sequence[Sequence[int]],
        texts: Sequence[str],
        on_progress: OnProgress = always,
    ) -> Pruned:
        """Make a smaller model.

        windows: token ids of the user's text, to see what each part does there; texts: that kind of text as it was
        written; on_progress: called with (layers that were computed, of how many), says whether there is time for more;
        a search that may end early does then.

        Raises UsageError for an amount that cannot be removed, or a shape that llama.cpp does not load, naming the
        nearest one that it does.
        """

    @classmethod
    def to_shape(cls, subject: PrunableModel, shape: Mapping[str, int]) -> Self:
        """Return the pruner whose result has that shape. shape: values of some of `shrinks`."""
        raise NotImplementedError(f"{cls.__name__} shrinks no field")

    def affordable(
        self, subject: PrunableModel, windows: Sequence[Sequence[int]], flops: float | None = None
    ) -> tuple[Self, Sequence[Sequence[int]]]:
        """Return the pruner and the windows that there is time for, in floating-point operations; None: as usual."""
        if flops is None or not windows:
            return self, windows
        tokens = flops / (2 * PASSES * subject.part.num_non_embedding_parameters)
        return self, windows[: max(FEWEST_WINDOWS, round(tokens * len(windows) / sum(map(len, windows))))]


def num_kept(before: int, keep: int | None, share: float, step: int = 256) -> int:
    """How many of `before` stay: `keep`, or what is left of a share. Raises UsageError unless that is fewer.

    step: block of llama.cpp's finer types; rows should be a multiple of it.
    """
    number = keep or kept_number(before, share, step)
    if number >= before:
        raise UsageError(f"{number} channels of {before} cannot be kept", f"keep at most {before - 1}")
    return number


def kept_number(before: int, share: float, step: int = 1) -> int:
    """Return how many of `before` are left when about `share` of them goes; fewer than before.

    A multiple of `step` where the sizes allow it, else of the largest power of two in it that does. Raises UsageError
    when that leaves none.
    """
    while step > 1 and (before % step or step > before * share):
        step //= 2
    number = min(max(round(before * (1 - share) / step) * step, step), before - step)
    if number < 1:
        raise UsageError(f"{share:.0%} of {before} cannot be removed", "choose another share, or prune something else")
    return number
