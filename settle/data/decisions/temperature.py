"""The temperature at which the scores of a few options mean what they say.

Legend: n rows, K options.
"""

import math

import numpy as np

# Of log T before any row is seen: a model that was tuned on few rows is surer than it may be, and 20 rows say little.
# Chosen on three tables of bench/decision_tables.py. The tails are Cauchy's: a model that is right on nearly all rows
# and stopped early says 0.4, and a normal prior of this width would hold it there.
PRIOR_MEDIAN, PRIOR_SCALE = 0.2, 0.35
LOWEST, HIGHEST = 0.02, 50.0  # temperatures that are searched
GRID = 40  # of them that are tried before the best one is refined: the cost may have two valleys
_LEAST = 1e-12  # probability that is taken for 0


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(scores / temperature) (n, K); options of score -inf get 0."""
    scaled = np.asarray(scores, float) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: np.ndarray = scaled / scaled.sum(-1, keepdims=True)
    return shares


def cross_entropy(shares: np.ndarray, targets: np.ndarray) -> float:
    """Mean -Σ target · log share, in nats. shares, targets (n, K)."""
    return float(-(targets * np.log(np.maximum(shares, _LEAST))).sum(-1).mean())


def divergences(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(n,) KL of the probabilities (n, K) from the targets (n, K), in nats."""
    gaps: np.ndarray = targets * (np.log(np.maximum(targets, _LEAST)) - np.log(np.maximum(shares, _LEAST)))
    return np.asarray(gaps.sum(-1))


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """The temperature whose probabilities are nearest to the targets (Guo et al. 2017, arXiv:1706.04599).

    scores, targets (n, K). Few rows say little, so log T has a Cauchy prior (PRIOR_MEDIAN, PRIOR_SCALE) that rows which
    agree outweigh. The best of a grid over log T is refined by golden-section search.
    """
    if not len(scores):
        return 1.0

    def cost(log_t: float) -> float:
        fit = len(scores) * cross_entropy(probabilities(scores, math.exp(log_t)), targets)
        return fit + math.log1p(((log_t - PRIOR_MEDIAN) / PRIOR_SCALE) ** 2)

    grid = np.linspace(math.log(LOWEST), math.log(HIGHEST), GRID).tolist()
    best = min(range(GRID), key=lambda place: cost(grid[place]))
    low, high, ratio = grid[max(0, best - 1)], grid[min(GRID - 1, best + 1)], (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:
        first, second = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, second) if cost(first) <= cost(second) else (first, high)
    return math.exp((low + high) / 2)
