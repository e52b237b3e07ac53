"""What the ranks of a run send each other in a step, and how a forecast has it measured."""

import contextlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Talk:
    """What ranks send each other in one step. sums, gathers, scatters: numbers of each message. half: the numbers of
    gathers take two bytes. device: "cpu" or "cuda"."""

    sums: tuple[int, ...]
    gathers: tuple[int, ...]
    scatters: tuple[int, ...]
    half: bool
    device: str


class Ranks:
    """The processes that a run is shared among; here one alone."""

    @property
    def size(self) -> int:
        return 1

    def busy(self) -> contextlib.AbstractContextManager[None]:
        """While entered, the other ranks keep their cores busy, as they do in a step."""
        return contextlib.nullcontext()

    def talk(self, talk: Talk) -> float:
        """Seconds that the ranks send each other what a step needs."""
        return 0.0


ONE = Ranks()
