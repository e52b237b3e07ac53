"""The processes that train one model together: one, or many under torchrun. The loop reads the same in both cases.

What ends, decays, evaluates, rolls back, saves or stops a run is decided once, by rank 0, and agreed.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Shards:
    """Which rows of a sharded model belong to which rank.

    rank: of the `size` ranks that hold all rows together. copy: which of the `copies` such groups this rank is in; the
    first one writes checkpoints.
    """

    rank: int
    size: int
    copy: int = 0
    copies: int = 1


class World:
    """One process alone; `ProcessGroup` is of many.

    rank: 0 leads. size: number of processes. host_size: of each host, whose ranks follow each other. is_hybrid: whether
    each host holds the whole of a sharded model.
    """

    rank: int = 0
    size: int = 1
    host_size: int = 1
    is_hybrid: bool = False

    @property
    def shards(self) -> Shards:
        """How the ranks share out a model."""
        if not self.is_hybrid:
            return Shards(self.rank, self.size)
        copy, rank = divmod(self.rank, self.host_size)
        return Shards(rank, self.host_size, copy, self.size // self.host_size)

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor with its sum over all ranks, in place; all ranks get the same bits."""

    def copy(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor with that of rank 0, in place."""

    def agree(self, number: float) -> float:
        """Rank 0's number: of its clock, or a decision."""
        return number

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set at any rank, such as by a signal that reached only that one."""
        return flag

    def lead(self, work: Callable[[], T]) -> T:
        """Return what `work` returns at rank 0, which alone does it; the others wait, however long it takes.

        The value is one that JSON knows. Raises what rank 0 raises, at every rank.
        """
        return work()

    def each(self, work: Callable[[], T]) -> list[T]:
        """Return what `work` returns at each rank, in their order, once all are done, however long that takes.

        The value is one that JSON knows. `work` raises nothing.
        """
        return [work()]

    def together(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Around work in which the ranks need each other. what: its name, for what is said of a rank that hangs."""
        return contextlib.nullcontext()

    def at_step(self, step: int) -> None:
        """Note that a step begins, which is reported of a rank that hangs."""

    def spending(self, own: Callable[[], dict[str, float]]) -> Callable[[], dict[str, float]]:
        """Return what this rank has used; at rank 0 with the joules of all ranks, as far as they have reported them.

        own: seconds, joules and peak bytes of this rank.
        """
        return own


ALONE = World()


def single() -> World:
    """Return the world of one process."""
    return ALONE
