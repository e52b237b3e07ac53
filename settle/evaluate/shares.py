"""Shares and means of a sample, each with its 95 % interval."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from settle.evaluate.compare.paired import CONFIDENCE, RESAMPLES, tails
from settle.evaluate.divergence import Figure


def share(hits: Sequence[bool]) -> Figure:
    """How many of n are true, from 0 to 1, with Wilson's interval (1927), which stays between them for any n. Of none
    nothing is known: 0, between 0 and 1."""
    n = len(hits)
    if not n:
        return Figure(0.0, 0.0, 1.0)
    p, z = sum(hits) / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Figure(p, max(0.0, middle - half), min(1.0, middle + half))


def mean(values: Sequence[float], seed: int = 0) -> Figure:
    """Of n values, with the bootstrap's interval, widened for few of them; None for an interval of fewer than two."""
    sample = np.asarray(values, float)
    if len(sample) < 2:
        return Figure(float(sample.mean()) if len(sample) else 0.0, None, None)
    rng = np.random.default_rng(seed)
    means = sample[rng.integers(0, len(sample), (RESAMPLES, len(sample)))].mean(1)
    low, high = np.quantile(means, tails(len(sample)))
    return Figure(float(sample.mean()), float(low), float(high))
