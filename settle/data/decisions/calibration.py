"""How far the probabilities of decisions can be trusted: their temperature, and the threshold that holds a risk.

Probabilities may be too high, so a threshold of one minus the risk promises nothing. Here it is chosen by the outcomes
on rows that trained nothing (learn then test, Angelopoulos et al. 2021, arXiv:2110.01052): the surest answers are
tested together, then one more, and one more, while a test rejects that more of them are wrong than asked. The first
test is the one that the stated probabilities, which know no right answer, give the best chance. Of a fixed number of
the surest answers the wrong ones are binomial given the next probability, and the tests end at the first that fails,
so that the threshold is wrong with probability `ERROR` at most, whatever the probabilities are worth.

Rows of one family are no independent tests: k rows count as (Σ size)² / Σ size², as if a family answered as one.
Legend: n rows, K options.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.statistics import incomplete_beta

# Of log T before any row is seen: a model that was tuned on few rows is surer than it may be, and 20 rows say little.
# Chosen on three tables of bench/decision_tables.py. The tails are Cauchy's: a model that is right on nearly all rows
# and stopped early says 0.4, and a normal prior of this width would hold it there.
PRIOR_MEDIAN, PRIOR_SCALE = 0.2, 0.35
LOWEST, HIGHEST = 0.02, 50.0  # temperatures that are searched
GRID = 40  # of them that are tried before the best one is refined: the cost may have two valleys
_LEAST = 1e-12  # probability that is taken for 0
CLAIMED = 0.1  # chance that the true risk is above the one asked for, at most
STARTS = 60  # numbers of answers that are weighed to be tested first
ERROR = 0.08  # that of the tests: the temperature is fitted on the same rows, which adds a little


def probabilities(scores: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return softmax(scores / temperature) (n, K); options of score -inf get 0."""
    scaled = np.asarray(scores, float) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    shares: np.ndarray = scaled / scaled.sum(-1, keepdims=True)
    return shares


def cross_entropy(shares: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean -Σ target · log share, in nats. shares, targets (n, K)."""
    return float(-(targets * np.log(np.maximum(shares, _LEAST))).sum(-1).mean())


def divergences(shares: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the KL divergence (n,) of the probabilities (n, K) from the targets (n, K), in nats."""
    gaps: np.ndarray = targets * (np.log(np.maximum(targets, _LEAST)) - np.log(np.maximum(shares, _LEAST)))
    return np.asarray(gaps.sum(-1))


def fit_temperature(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature whose probabilities are nearest to the targets (Guo et al. 2017, arXiv:1706.04599).

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


@dataclass(frozen=True)
class Refusal:
    """What is refused so that at most `risk` of the answers given are wrong.

    threshold: the lowest probability that is answered; None where nothing can be promised, and all is refused. rows:
    that trained nothing; independent: how many of them count as independent. answered, wrong: how many of them are as
    sure, and how many of these are wrong.
    """

    risk: float
    threshold: float | None
    rows: int
    independent: float
    answered: int = 0
    wrong: int = 0

    @property
    def needed(self) -> int:
        return rows_needed(self.risk)

    def refuses(self, confidence: float) -> bool:
        return self.threshold is None or confidence < self.threshold

    def to_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {**vars(self), "needed": self.needed}


def rows_needed(risk: float) -> int:
    """Return how many independent rows it takes to show a risk, when none of them is wrong."""
    return math.ceil(math.log(ERROR) / math.log1p(-risk))


def least_risk(rows: float) -> float:
    """Return the smallest risk that so many independent rows can show, when none of them is wrong; 1 without rows."""
    return 1 - ERROR ** (1 / rows) if rows else 1.0


def refusal_for(risk: float, confidences: Sequence[float], correct: Sequence[bool], families: Sequence[int]) -> Refusal:
    """Return the lowest threshold at which rows that trained nothing show the risk.

    confidences, correct, families: (n,).
    """
    order = np.argsort(-np.asarray(confidences, float), kind="stable")
    sure = np.asarray(confidences, float)[order]
    wrong = np.cumsum(~np.asarray(correct, bool)[order])
    independent = _independent([families[i] for i in order.tolist()])
    count = np.arange(1, len(sure) + 1)
    whole = float(independent[-1]) if len(sure) else 0.0
    last = -1
    first = _first(risk, sure, independent)
    for k in range(first, len(sure)):
        is_harder = k == first or wrong[k] > wrong[k - 1] or independent[k] < independent[k - 1]
        errors = float(wrong[k] / count[k] * independent[k])
        if is_harder and binomial_tail(errors, float(independent[k]), risk) > ERROR:
            break
        if k + 1 == len(sure) or sure[k + 1] < sure[k]:  # equally sure answers are answered together
            last = k
    if last < 0:
        return Refusal(risk, None, len(sure), whole)
    return Refusal(risk, float(sure[last]), len(sure), whole, last + 1, int(wrong[last]))


def _first(risk: float, sure: np.ndarray, independent: np.ndarray) -> int:
    """Return how many of the surest answers are tested first, less one; len(sure) where no test can succeed.

    Those are the ones whose test would most probably succeed if every probability meant what it says. sure,
    independent: (n,).
    """
    expected = np.cumsum(1 - sure) / np.arange(1, len(sure) + 1)
    best, first, most = 0.0, len(sure), -1
    for k in np.unique(np.geomspace(1, max(1, len(sure)), STARTS).astype(int) - 1).tolist() if len(sure) else ():
        n, share = float(independent[k]), float(expected[k])
        while most >= 0 and binomial_tail(most, n, risk) > ERROR:
            most -= 1
        while binomial_tail(most + 1, n, risk) <= ERROR:
            most += 1
        if most < 0:
            continue
        chance = binomial_tail(most, n, max(share, 1 / (n + 2)))
        if chance >= best:
            best, first = chance, k
    return first


def _independent(families: Sequence[int]) -> np.ndarray:
    """Return how many independent rows the first 1, 2, … n rows count as, (n,), if a family answers as one."""
    sizes: Counter[int] = Counter()
    squares, counted = 0, []
    for number, family in enumerate(families, 1):
        squares += 2 * sizes[family] + 1
        sizes[family] += 1
        counted.append(number * number / squares)
    return np.array(counted)


def binomial_tail(errors: float, n: float, share: float) -> float:
    """Return P(at most `errors` of n), each with probability `share`; errors and n may be fractions (DLMF 8.17.5)."""
    if errors >= n or share <= 0:
        return 1.0
    if share >= 1:
        return 0.0
    a, b, x = n - errors, errors + 1, 1 - share
    if x <= (a + 1) / (a + b + 2):
        return incomplete_beta(x, share, a, b)
    return 1 - incomplete_beta(share, x, b, a)
