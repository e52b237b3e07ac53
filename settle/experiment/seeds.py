"""Runs of one recipe that differ in their seed alone, and whether two recipes differ by more than these.

Legend: n seeds of a recipe.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.files import JsonObject
from settle.base.statistics import LEVEL, Interval, student_cdf, student_quantile

VERDICT_ERROR = 0.01  # of "better" for a recipe: whoever tries many recipes finds one in twenty that looks better
POWER = 0.8
FREEDOM_OF_POWER = 0.625  # of each seed but two, by which the power of 3 to 10 seeds a recipe is right within 9 %


@dataclass(frozen=True)
class Spread:
    """A figure of n ≥ 2 runs."""

    values: tuple[float, ...]
    mean: Interval  # with the interval that Student's t gives it
    std: float  # between seeds

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        n, mean, std = len(values), statistics.fmean(values), statistics.stdev(values)
        half = student_quantile((1 + LEVEL) / 2, n - 1) * std / math.sqrt(n)
        return cls(tuple(values), Interval(mean, mean - half, mean + half), std)

    @property
    def smallest_visible(self) -> float:
        """The difference from another recipe that would be seen in about four cases of five.

        At the error of a verdict, of as many seeds and the same spread.
        """
        n = len(self.values)
        return _visible(self.std * math.sqrt(2 / n), 2 * n)

    def to_json(self) -> JsonObject:
        return {"values": list(self.values), "mean": self.mean.to_json(), "std": self.std}


@dataclass(frozen=True)
class Difference:
    """Two recipes by one figure."""

    difference: Interval  # of the second minus the first
    p_value: float  # two-sided
    visible: float  # the smallest difference that so many seeds show in four cases of five

    @property
    def is_shown(self) -> bool:
        return self.p_value <= VERDICT_ERROR

    def to_json(self) -> JsonObject:
        difference = self.difference.to_json()
        return {"difference": difference, "p": self.p_value, "shown": self.is_shown, "smallest_visible": self.visible}


def compare(first: Spread, second: Spread) -> Difference:
    """Compare two recipes by Welch's test (1947).

    Each has its own spread, and no seed of one belongs to one of the other.
    """
    parts = [spread.std**2 / len(spread.values) for spread in (first, second)]
    apart, error = second.mean.value - first.mean.value, math.sqrt(sum(parts))
    if not error:
        return Difference(Interval(apart, apart, apart), 1.0 if not apart else 0.0, 0.0)
    freedom = sum(parts) ** 2 / sum(p**2 / (len(s.values) - 1) for p, s in zip(parts, (first, second), strict=True))
    half = student_quantile((1 + LEVEL) / 2, freedom) * error
    p_value = 2 * (1 - student_cdf(abs(apart) / error, freedom))
    visible = _visible(error, sum(len(spread.values) for spread in (first, second)))
    return Difference(Interval(apart, apart - half, apart + half), p_value, visible)


def _visible(error: float, seeds: int) -> float:
    """Return the difference that is seen with POWER, were its standard error that.

    Of so few seeds the spread is hardly known, and the test has fewer degrees of freedom than seeds minus two.
    """
    freedom = FREEDOM_OF_POWER * (seeds - 2)
    return (student_quantile(1 - VERDICT_ERROR / 2, freedom) + student_quantile(POWER, freedom)) * error
