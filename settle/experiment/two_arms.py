"""A change proven or ruled out by two arms that differ in it alone: interim analyses, a re-test on other items, guards.

The proof stops as soon as it shows the change: after six items where all agree, else after more, and never after more
than there are. Each analysis may err, so they share the error of one test (Bonferroni).
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from settle.base.statistics import VERDICT_P, PairedTest, paired_test
from settle.experiment.arm import Arm

Measured = str | Mapping[str, object]  # an item: a prompt, or whatever a side measures; JSON holds it
State = Literal["likely", "proven", "ruled out"]

FEWEST_ITEMS = 6  # all changing the same way are a proof; five could be chance
LEAST_RATIO = 0.1  # of a time, that counts as an effect
RETESTED = 0.5  # of the effect that counts, that the fix must still show on other items
ERROR = 0.05  # of all analyses together, in both directions
FIRST_ERROR = 2 / 2**FEWEST_ITEMS  # of the first: as much as six that all agree need
FEW, MANY = 9, 18  # items: of fewer than so many one analysis is made, of fewer than that two, else three


class GuardedArm(Arm[Measured, float]):
    """An arm that is measured by a number, and may have another one that must not get worse."""

    def guard(self, item: Measured) -> float:
        """Measure what must not get worse: less is better. Raises SettleError."""
        raise NotImplementedError

    @abstractmethod
    def measure(self, item: Measured) -> float:
        """Measure what is compared. Raises SettleError."""


@dataclass(frozen=True)
class TwoArms:
    """An A/B of one setting: two arms that differ in it alone."""

    knob: str  # what is changed, in words
    before: GuardedArm  # the set-up as it is
    after: GuardedArm  # with one thing changed
    measure: str  # what is compared, in `unit`
    unit: str
    items: Sequence[Measured]  # the proof is made on them, at least six; none of them raised the suspicion
    others: Sequence[Measured]  # the change is tested again on them; none is an item
    least: float  # smallest mean change that counts, in `unit`; of a time, the smallest ratio less one
    lower: bool = True  # less is better
    timed: bool = False  # the measure is a time or a speed, compared as ratios of pairs in turns
    guards: Sequence[Measured] = ()  # items of `GuardedArm.guard`, which may not get worse by `harm` or more on average
    harm: float = 0.0
    seconds: float = 1.0  # expected time of one measurement
    preparing: float = 0.0  # of making both arms ready, once
    apart: bool = False  # an arm is closed before the other is opened, since one would change what the other measures

    def __post_init__(self) -> None:
        if len(self.items) < FEWEST_ITEMS or len(self.others) < FEWEST_ITEMS:
            raise ValueError(f"{self.knob}: a proof and a re-test need {FEWEST_ITEMS} items each")

    @property
    def fewest(self) -> int:
        """Items until the first analysis of the proof and of the re-test, and the guards."""
        return analyses(len(self.items))[0][0] + analyses(len(self.others))[0][0] + len(self.guards)

    @property
    def expected_seconds(self) -> float:
        """Time of proof and re-test together where the first analysis of each shows the change."""
        return self.preparing + self.seconds * 2 * self.fewest

    @property
    def most_seconds(self) -> float:
        """Time of proof and re-test together where it takes all items to show it."""
        return self.preparing + self.seconds * 2 * (len(self.items) + len(self.others) + len(self.guards))

    @property
    def least_effect(self) -> float:
        """Smallest effect that counts, as tests measure it: of a time, the logarithm of the ratio."""
        return math.log1p(self.least) if self.timed else self.least

    def compared(self, before: Sequence[float], after: Sequence[float]) -> PairedTest:
        """Test the change; more is better."""
        sign = -1.0 if self.lower else 1.0
        if self.timed:
            before, after = [math.log(max(v, 1e-9)) for v in before], [math.log(max(v, 1e-9)) for v in after]
        return paired_test([sign * v for v in before], [sign * v for v in after])

    def analysed(self, before: Sequence[float], after: Sequence[float], enough: float) -> PairedTest:
        """Test the change at an interim analysis. enough: its p-value, see `analyses`.

        The test's p-value is corrected so that the verdict's limit is right whenever the analyses stopped.
        """
        test = self.compared(before, after)
        return replace(test, adjusted_p=min(1.0, test.p_value / enough * test.limit))

    def state(self, effect: PairedTest) -> State:
        """Return what the proof says of the change."""
        if is_shown(effect, self.least_effect):
            return "proven"
        return "ruled out" if effect.difference.high < self.least_effect else "likely"

    def is_harm(self, guards: PairedTest) -> bool:
        """Return whether what must not get worse did, by as much as counts."""
        return guards.verdict == "worse" and guards.difference.value <= -self.harm


@dataclass(frozen=True)
class Proof:
    """The result of an A/B."""

    state: State
    effect: PairedTest | None  # of the change, better is more; of a time, in natural logarithms of the ratio
    retest: PairedTest | None  # on other items, None where the proof did not hold
    guards: PairedTest | None  # what must not get worse, or None
    holds: bool  # it shows the change there too
    harms: bool  # it did
    seconds: float
    failed: Mapping[str, str]  # why an arm could not be measured, by its name

    @property
    def verified(self) -> bool:
        """Return whether the fix helps on other items, and nothing else got worse with it."""
        return self.holds and not self.harms

    def to_json(self) -> dict[str, object]:
        return {
            "state": self.state,
            "verified": self.verified,
            "effect": self.effect and self.effect.to_json(),
            "retest": self.retest and self.retest.to_json(),
            "guards": self.guards and self.guards.to_json(),
            "seconds": round(self.seconds, 3),
            "failed": dict(self.failed),
        }


def analyses(number: int) -> list[tuple[int, float]]:
    """Return the interim analyses of `number` items: pairs of (items seen, p-value that shows a change then)."""
    if number < FEW:
        return [(number, VERDICT_P)]
    later = [number] if number < MANY else [2 * FEWEST_ITEMS, number]
    return [(FEWEST_ITEMS, FIRST_ERROR), *((n, (ERROR - FIRST_ERROR) / len(later)) for n in later)]


def is_shown(test: PairedTest, least: float) -> bool:
    """Return whether a change is real, and large enough to count."""
    return test.verdict == "better" and test.difference.value >= least


def guard_test(before: Sequence[float], after: Sequence[float]) -> PairedTest:
    """Test what must not get worse; less is better."""
    return paired_test([-v for v in before], [-v for v in after])
