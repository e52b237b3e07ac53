"""Two models on the same rows: the difference of their mean scores, how sure it is, and what it amounts to.

n rows, B resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000
EXACT = 14  # differing rows up to which every way of flipping them is gone through
_CHUNK = 1 << 22  # resampled rows held at once


@dataclass(frozen=True)
class Paired:
    """base, tuned: mean scores; difference: tuned minus base, `low` to `high` its 95 % interval; certainty: that a
    difference of this direction is no chance, 0.5 to 1; wins, losses: rows where tuned scored more, or less.
    """

    base: float
    tuned: float
    difference: float
    low: float
    high: float
    certainty: float
    rows: int
    wins: int
    losses: int

    @property
    def verdict(self) -> str:
        """better, worse or no different: a difference counts when both the interval and the certainty say so."""
        sure = self.certainty >= (1 + CONFIDENCE) / 2
        if sure and self.low > 0:
            return "better"
        return "worse" if sure and self.high < 0 else "no different"

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"verdict": self.verdict}


def paired(base: Sequence[float], tuned: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> Paired:
    """Compare scores (n,) of two models on the same rows. More is better.

    The interval is the bootstrap's of the mean difference, its percentiles widened for few rows (Hesterberg 2015,
    section 5.3). The certainty comes from flipping the sign of differences, which is exact for any number of rows
    (Fisher 1935): an interval from a handful of rows that happen to agree would claim too much.
    """
    before, after = np.asarray(base, float), np.asarray(tuned, float)
    differences = after - before
    rng = np.random.default_rng(seed)
    mean = float(differences.mean())
    low, high = _interval(differences, rng, resamples)
    return Paired(
        base=float(before.mean()),
        tuned=float(after.mean()),
        difference=mean,
        low=low,
        high=high,
        certainty=_certainty(differences, rng, resamples),
        rows=len(differences),
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
    )


def _interval(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> tuple[float, float]:
    """Bootstrap interval of the mean of differences (n,)."""
    n = len(differences)
    if np.ptp(differences) == 0:
        # Every row says the same, and resampling knows no other. But had more than this share of all rows said
        # something else, one would have been seen (rule of three); at worst it says the opposite, of a size of 1.
        mean = float(differences[0])
        unseen, most = 1 - (1 - CONFIDENCE) ** (1 / n), max(1.0, abs(mean))
        return mean - unseen * (most + mean), mean + unseen * (most - mean)
    each = max(1, _CHUNK // n)
    sizes = [each] * (resamples // each) + [resamples % each] * (resamples % each > 0)
    means = np.concatenate([differences[rng.integers(0, n, (size, n))].mean(1) for size in sizes])
    low, high = np.quantile(means, tails(n))
    return float(low), float(high)


def tails(n: int) -> tuple[float, float]:
    """Which quantiles of the bootstrap's means end the interval: wider for few rows, n ≥ 2."""
    normal = NormalDist()
    lower = normal.cdf(-math.sqrt(n / (n - 1)) * _student(normal.inv_cdf((1 + CONFIDENCE) / 2), n - 1))
    return lower, 1 - lower


def _student(z: float, freedom: int) -> float:
    """Student's quantile from the normal's (Abramowitz and Stegun, 26.7.5)."""
    terms = (z, (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return sum(term / freedom**power for power, term in enumerate(terms))


def _certainty(differences: np.ndarray, rng: np.random.Generator, resamples: int) -> float:
    """1 minus the chance of so large a mean, or a larger one, in its direction, were every sign a coin's."""
    moved = np.abs(differences[differences != 0])
    if not len(moved):
        return 0.5
    seen = abs(float(differences.sum())) - 1e-9 * float(moved.sum())
    if len(moved) <= EXACT:
        ways = np.arange(1 << len(moved))[:, None] >> np.arange(len(moved)) & 1
        chance = float((((2 * ways - 1) @ moved) >= seen).mean())
    else:
        # the counted +1 is the data as it is, which is one of the ways too
        hits, each = 0, max(1, _CHUNK // len(moved))
        for begin in range(0, resamples, each):
            signs = 2 * rng.integers(0, 2, (min(each, resamples - begin), len(moved)), dtype=np.int8) - 1
            hits += int(((signs @ moved) >= seen).sum())
        chance = (hits + 1) / (resamples + 1)
    return max(0.5, 1 - chance)
