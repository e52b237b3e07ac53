"""Two recipes by runs that differ in their seed alone, and a stream of changes to one recipe by pairs of runs.

A pair is two runs with one seed, on the same documents in the same order; its gain is the logarithm of the ratio of
their losses. Seeds are the unit of replication, and none serves two changes: whoever picks a change by what earlier
runs showed gains nothing from their luck.

Evidence is the wealth of a bet against "no gain". It may be looked at after every pair: the chance that it ever
reaches 1/α without a gain is α at most (Ville 1939). Each change has its own α, and those of all changes that may ever
be tried add up to ERROR. The spread of a pair is not known: the bet averages over it, by what earlier pairs showed of
it, counted as `MOST_FREEDOM` pairs at most, so that a change whose pairs vary more is judged by its own spread (a Bayes
factor of the t-test: Rouder et al. 2009; Grünwald, de Heide and Koolen 2024).

Legend: n seeds of a recipe, or pairs; K effects.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from settle.base.files import JsonObject
from settle.base.statistics import LEVEL, Interval, student_cdf, student_quantile

VERDICT_ERROR = 0.01  # of "better" for a recipe: whoever tries many recipes finds one in twenty that looks better
POWER = 0.8
FREEDOM_OF_POWER = 0.625  # of each seed but two, by which the power of 3 to 10 seeds a recipe is right within 9 %

State = Literal["kept", "discarded", "undecided"]

ERROR = 0.05  # chance that a session ever keeps a change that gains nothing, however many it tries
HALF_SPENT = 200  # changes that spend half of it
MISSED = 0.1  # chance to discard a change that gains as much as matters
FEWEST_PAIRS = 3  # of a change that is kept: two agree by chance too easily
EFFECTS = (1.0, 2.0, 4.0)  # gains that are bet on, in standard deviations of a pair, each with as much wealth
MOST_FREEDOM = 6  # pairs that earlier runs count for
LEAST_STD = 5e-4  # of a pair's gain: what agrees better agrees by chance
SPREADS = np.linspace(0.1, 120.0, 1200)  # inverse spreads, in units of the data, over which a bet is averaged
STEPS = 24  # halvings by which an end of an interval is found


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


# --- a stream of changes ---


@dataclass(frozen=True)
class Noise:
    """What is known of the spread of a pair's gain: a sum of squared deviations, and its degrees of freedom."""

    squares: float = 0.0
    freedom: int = 0

    @classmethod
    def of_equals(cls, gains: Sequence[float]) -> "Noise":
        """Return the noise by pairs (n,) whose runs differ by nothing that matters: their mean gain is 0."""
        return cls(sum(gain * gain for gain in gains), len(gains))

    @property
    def std(self) -> float:
        return max(LEAST_STD, math.sqrt(self.squares / self.freedom)) if self.freedom else LEAST_STD

    def with_pairs(self, gains: Sequence[float]) -> "Noise":
        """Return the noise with the pairs of one more change, whatever that gained."""
        if len(gains) < 2:
            return self
        return Noise(self.squares + float(np.var(gains)) * len(gains), self.freedom + len(gains) - 1)


def error_of(number: int) -> float:
    """Return the α of change `number`, from 0: the first HALF_SPENT share half of ERROR, all later ones the rest."""
    return ERROR * HALF_SPENT / ((number + HALF_SPENT) * (number + HALF_SPENT + 1))


def state(gains: Sequence[float], noise: Noise, error: float, least: float) -> State | None:
    """Return whether pairs (n,) show that a change gains, or that it gains less than `least`; None: neither."""
    if len(gains) >= FEWEST_PAIRS and evidence(gains, noise) >= 1 / error:
        return "kept"
    return "discarded" if evidence([-gain for gain in gains], noise, -least) >= 1 / MISSED else None


def evidence(gains: Sequence[float], noise: Noise, above: float = 0.0) -> float:
    """Return the wealth that a unit grew to by betting that gains (n,) are more than `above` on average."""
    values, freedom = np.asarray(gains, float) - above, min(noise.freedom, MOST_FREEDOM)
    n = len(values)
    if not n:
        return 1.0
    size = math.sqrt(float((values**2).sum()) + max(freedom, 1) * noise.std**2)
    without = (n + freedom - 1) * np.log(SPREADS) - SPREADS**2 / 2
    effects = np.array(EFFECTS)[:, None]
    bets = without + effects * (float(values.sum()) / size) * SPREADS - n * effects**2 / 2  # (K, spreads)
    return math.exp(min(700.0, _log_sum(bets) - _log_sum(without) - math.log(len(EFFECTS))))


def gain_interval(gains: Sequence[float], noise: Noise) -> Interval:
    """Return the mean gain of pairs (n,) with a 95 % interval that holds whenever one stops."""
    mean, enough = float(np.mean(gains)), 2 / (1 - LEVEL)
    reach = 100 * (float(np.std(gains)) + noise.std)
    low = _end(lambda end: evidence(gains, noise, end), mean, -reach, enough)
    high = _end(lambda end: evidence([-gain for gain in gains], noise, -end), mean, reach, enough)
    return Interval(mean, low, high)


def _end(against: Callable[[float], float], mean: float, reach: float, enough: float) -> float:
    """Return the value next to `mean`, towards `reach` from it, that is ruled out; infinite where none is."""
    near, far = 0.0, reach
    if against(mean + far) < enough:
        return math.copysign(math.inf, reach)
    for _ in range(STEPS):
        middle = (near + far) / 2
        near, far = (near, middle) if against(mean + middle) >= enough else (middle, far)
    return mean + far


def _log_sum(values: np.ndarray) -> float:
    most = float(values.max())
    return most + math.log(float(np.exp(values - most).sum()))
