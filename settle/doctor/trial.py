"""An A/B of one setting: two sides that differ in it alone, what they are measured on, and how much counts."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from settle.doctor.findings import Fix

Item = str | Mapping[str, object]  # a prompt, or whatever a side measures; JSON holds it
FEWEST_ITEMS = 6  # all changing the same way are a proof; five could be chance
LEAST_RATIO = 0.1  # of a time, that counts as an effect


class Side(ABC):
    """A set-up that is measured. name: to show, with what it changes. num_bytes: of memory while it is open."""

    name: str
    num_bytes: int = 0

    def open(self) -> None:  # noqa: B027 - some need not
        """Makes it ready to be measured. Raises SettleError."""

    @abstractmethod
    def measure(self, item: Item) -> float:
        """What the trial compares, of one item. Raises SettleError."""

    def guard(self, item: Item) -> float:
        """What must not get worse: less is better. Raises SettleError."""
        raise NotImplementedError

    def close(self) -> None:  # noqa: B027 - some need not
        """Ends it; `open` makes it ready again. Calling it twice is harmless."""


@dataclass(frozen=True)
class Trial:
    """before: as it is. after: with one thing changed. knob: that thing, in words. measure, unit: what is compared.
    items: the proof is made on them, at least six; none of them raised the suspicion. others: the fix is tested
    again on them; none is an item. least: the smallest mean change that counts, in `unit`; of a time, the smallest
    ratio less one. timed: the measure is a time or a speed, compared as ratios of pairs in turns. lower: less is
    better. guards: items of `Side.guard`, which may not get worse by `harm` or more on average. seconds: that one
    measurement is expected to take; preparing: that it takes to make both sides ready, once. fix: what mends it, where
    the trial itself found the change that helps; else the check knows it. apart: a side is closed before the other is
    opened, since one would change what the other measures."""

    knob: str
    before: Side
    after: Side
    measure: str
    unit: str
    items: Sequence[Item]
    others: Sequence[Item]
    least: float
    lower: bool = True
    timed: bool = False
    guards: Sequence[Item] = ()
    harm: float = 0.0
    seconds: float = 1.0
    fix: Fix | None = None
    preparing: float = 0.0
    apart: bool = False

    def __post_init__(self) -> None:
        assert len(self.items) >= FEWEST_ITEMS, f"{self.knob}: a proof needs {FEWEST_ITEMS} items"
        assert len(self.others) >= FEWEST_ITEMS, f"{self.knob}: a re-test needs {FEWEST_ITEMS} items"
