"""Evidence that may be looked at after every row: bets on the differences of two candidates, and their intervals.

Whoever stops a test of fixed size as soon as it shows something claims too much. Wealth that is won by bets at fair
odds under the null hypothesis may be looked at any time: the chance that it ever grows by a factor of 1/α is α at most
(Ville 1939; Waudby-Smith and Ramdas 2024).

Legend: n rows in the order in which they were asked, L stakes, M means.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np

from settle.base.statistics import LEVEL, Interval

STAKES = 32  # shares of the wealth that are bet, evenly spread from 0 to 1; each has as much of it at the start
STEPS = 10  # halvings of the range in which an end of an interval is looked for


def evidence(differences: "Sequence[float] | np.ndarray", mean: float = 0.0) -> float:
    """The most that a unit of wealth ever grew to by betting that differences (n,), each from -1 to 1, are above
    `mean` on average. At 1/α it is shown with an error of α, however often it was looked at before."""
    values = np.asarray(differences, float)
    if not len(values):
        return 1.0
    # at worst a difference is -1 - mean below: a stake of 1 then loses everything and no more
    gains = np.log1p(_stakes()[:, None] * ((values - mean) / (1 + mean))[None, :])  # (L, n)
    wealth = np.logaddexp.reduce(np.cumsum(gains, axis=1), axis=0) - math.log(STAKES)
    return float(np.exp(min(700.0, max(0.0, wealth.max()))))


def anytime_interval(differences: "Sequence[float] | np.ndarray", level: float = LEVEL) -> Interval:
    """The mean of differences (n,), each from -1 to 1, with the interval that no bets at error 1 - `level` exclude. It
    holds whenever the asking was stopped, and for whatever reason."""
    values = np.asarray(differences, float)
    if not len(values):
        return Interval(0.0, -1.0, 1.0, level)
    enough = 2 / (1 - level)
    return Interval(float(values.mean()), _lower_end(values, enough), -_lower_end(-values, enough), level)


def _lower_end(values: np.ndarray, enough: float) -> float:
    """The largest mean that is shown to be exceeded, by halving: evidence falls as the mean rises."""
    low, high = -1.0, float(values.mean())
    if evidence(values, low + 2**-STEPS) < enough:
        return low
    for _ in range(STEPS):
        middle = (low + high) / 2
        if evidence(values, middle) >= enough:
            low = middle
        else:
            high = middle
    return low


@functools.cache
def _stakes() -> np.ndarray:
    return (np.arange(STAKES) + 0.5) / STAKES
