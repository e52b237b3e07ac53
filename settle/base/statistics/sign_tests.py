"""Exact tests of two systems on the same rows: by the rows on which they differ, and by flipping signs.

numpy is imported by the functions that need it, so that this module loads in milliseconds.
"""

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

MOST_ENUMERATED = 14  # differing rows up to which every assignment of signs is enumerated
MOST_RESAMPLED = 1 << 22  # resampled rows in memory at once
NUISANCE = 200  # shares of differing rows at which the chance is computed
MOST_EXACT = 1000  # rows up to which the exact unconditional test is computed; beyond it hardly differs from McNemar's


@functools.lru_cache(maxsize=4096)
def unconditional_p(wins: int, losses: int, rows: int) -> float:
    """Return the two-sided p-value of answers that are right or wrong on independent rows.

    One side alone was right on `wins`, the other on `losses`: the chance of so large a
    z = (wins - losses) / √(wins + losses), or a larger one, were both equally good, for the share of rows that differ
    which makes it largest (Suissa and Shuster 1991). It is exact as McNemar's test is, which takes the number of rows
    that differ for given, and sees more.
    """
    import numpy as np

    unequal = wins + losses
    if wins == losses:
        return 1.0
    if rows > MOST_EXACT:
        return min(1.0, 2 * sign_tail(unequal, max(wins, losses)))
    z = abs(wins - losses) / math.sqrt(unequal)
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, rows + 1)))])  # of factorials
    tails = np.zeros(rows + 1)  # of z and more, by how many rows differ
    for m in range(1, rows + 1):
        more = np.arange(math.ceil((m + z * math.sqrt(m)) / 2 - 1e-9), m + 1)
        tails[m] = np.exp(logs[m] - logs[more] - logs[m - more] - m * math.log(2)).sum()
    shares = np.linspace(0, 1, NUISANCE + 1)[1:-1, None] ** 2  # closer where few rows differ
    differ = np.arange(rows + 1)
    chances = np.exp(
        logs[rows] - logs[differ] - logs[::-1] + differ * np.log(shares) + (rows - differ) * np.log1p(-shares)
    )
    return float(min(1.0, 2 * max(tails[rows], (chances @ tails).max())))


def sign_tail(tosses: int, heads: int) -> float:
    """Return the chance that a fair coin shows so many heads or more."""
    return sum(math.comb(tosses, k) for k in range(max(0, heads), tosses + 1)) / (1 << tosses)


def sign_flip(sums: "np.ndarray", random: "np.random.Generator", resamples: int) -> float:
    """Return the chance of so large a total of `sums` (G,), in either direction, were every sign a coin's."""
    import numpy as np

    sizes = np.abs(sums[sums != 0])
    if not len(sizes):
        return 1.0
    observed = abs(float(sums.sum())) - 1e-9 * float(sizes.sum())
    if np.ptp(sizes) <= 1e-12 * sizes.max():
        chance = sign_tail(len(sizes), math.ceil((observed / float(sizes[0]) + len(sizes)) / 2))
    elif len(sizes) <= MOST_ENUMERATED:
        signs = np.arange(1 << len(sizes))[:, None] >> np.arange(len(sizes)) & 1
        chance = float((((2 * signs - 1) @ sizes) >= observed).mean())
    else:
        hits, each = 1, max(1, MOST_RESAMPLED // len(sizes))  # the data as it is counts as one assignment of signs
        for begin in range(0, resamples, each):
            signs = 2 * random.integers(0, 2, (min(each, resamples - begin), len(sizes)), dtype=np.int8) - 1
            hits += int(((signs @ sizes) >= observed).sum())
        chance = hits / (resamples + 1)
    return min(1.0, 2 * chance)
