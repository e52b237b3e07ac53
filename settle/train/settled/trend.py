"""What a further stretch of training would bring, from noisy losses.

It is a posterior over curves that bend and noise that lasts. Losses of one window are a mean, of a curve that falls as
tokens^-κ, plus noise. Neither is known, so many pairs of both are fitted by generalized least squares and weighed by
how well each explains the losses:

* κ from -1 (the fall gets faster) over 0 (straight in the logarithm) to 2 (it is nearly over);
* noise that is independent from one evaluation to the next, or a first-order autoregression with a correlation of up to
  0.98, or a mixture of both;
* with a small prior, a smooth departure from the curve in the logarithm of the tokens (a Gaussian process with Matérn's
  kernel of order 3/2): a wave, a step, a bend that no κ has. It belongs to the curve, so it counts as gain.

Level and gain have a flat prior, the noise's variance a log-uniform one, under which each pair's gain is Student's t
around its best linear unbiased prediction, and its weight is the restricted likelihood (Harville 1974; Rasmussen &
Williams 2006, section 2.7). Noise that might last is thus never estimated away: it keeps a weight.

Legend: C curves, n evaluations, G noises, K curves, M pairs of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from settle.base.statistics import Interval

NOISE_STDERRS = 2.0  # a fall of the loss by less than so many standard errors is no learning


def is_noise(before: Sequence[float], after: Sequence[float], stderrs: float = NOISE_STDERRS) -> bool:
    """Return whether losses of the same blocks fell by no more than their noise.

    stderrs: standard errors of their mean difference. False of fewer than two blocks.
    """
    if len(before) < 2:
        return False
    falls = [b - a for b, a in zip(before, after, strict=True)]
    mean = sum(falls) / len(falls)
    stderr = math.sqrt(sum((f - mean) ** 2 for f in falls) / (len(falls) - 1) / len(falls))
    return mean <= stderrs * stderr


MORE = 0.10  # the gain is for so many more tokens
NEXT = math.log1p(MORE)
MOST_POINTS = 40  # means of neighbouring evaluations are taken where a window has more
# prior weights; between two κ the gain lies between theirs, which widens each pair's error
KAPPAS = {
    -1.0: 0.03, -0.6: 0.04, -0.3: 0.06, -0.1: 0.10, 0.05: 0.12, 0.2: 0.14, 0.4: 0.14, 0.6: 0.12, 0.9: 0.10, 1.3: 0.08,
    2.0: 0.07,
}  # fmt: skip
SMOOTH_KAPPAS = {0.0: 0.5, 0.5: 0.5}
SMOOTH_WEIGHT = 0.03  # prior weight of all smooth departures
# (correlation of neighbours, share of independent noise)
NOISES = [(0.0, 0.0), *((r, share) for r in (0.3, 0.6, 0.8, 0.9, 0.95, 0.98) for share in (0.0, 0.4, 0.8))]
SMOOTH_NOISES = [(0.0, 0.0), (0.6, 0.0), (0.9, 0.0)]
SMOOTHS = [
    (length, ratio) for length in (0.25, 0.6, 1.2) for ratio in (3.0, 30.0, 300.0)
]  # e-folds; variance ÷ noise's


@dataclass(frozen=True)
class Posterior:
    """M Student distributions of the gain, in nats, with their weights, for each of C windows, all (C, M).

    loss: (C,) the curve at the window's end. noise: (C,) standard deviation of one point. correlation: (C,) of
    neighbouring points, both in the mean. response: (C, n) what the gain changes by with each loss.
    """

    gains: np.ndarray
    scales: np.ndarray
    weights: np.ndarray
    loss: np.ndarray
    noise: np.ndarray
    correlation: np.ndarray
    response: np.ndarray
    freedom: int

    def widened(self, stderr: np.ndarray) -> "Posterior":
        """With a further independent error (C,) of every gain, in nats."""
        scales = np.hypot(self.scales, stderr[:, None])
        return Posterior(**{**vars(self), "scales": scales})

    def above(self, level: np.ndarray) -> np.ndarray:
        """(C,) the probability that the gain is more than `level` (C,)."""
        t = (self.gains - level[:, None]) / self.scales
        return np.asarray((self.weights * _student_cdf(t, self.freedom)).sum(1))

    def quantile(self, probability: float) -> np.ndarray:
        """(C,) the gain that is not exceeded with that probability, by bisection."""
        low, high = (self.gains - 12 * self.scales).min(1), (self.gains + 12 * self.scales).max(1)
        for _ in range(30):
            middle = (low + high) / 2
            is_low = self.above(middle) > 1 - probability
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        return np.asarray((low + high) / 2)

    def interval(self, level: float, whole: float) -> Interval:
        """Return the median and the central interval of the first curve's gain, as fractions of `whole`."""
        value, low, high = (float(self.quantile(p)[0]) / whole for p in (0.5, (1 - level) / 2, (1 + level) / 2))
        return Interval(value, low, high, level)


class Window:
    """Evaluations at `tokens` (n,), and what their losses say about the gain that MORE tokens would bring."""

    def __init__(self, tokens: Sequence[int]) -> None:
        each = math.ceil(len(tokens) / MOST_POINTS)
        kept = len(tokens) // each
        self._mean = np.kron(np.eye(kept), np.full(each, 1 / each))  # neighbours' means, the oldest few left out
        self._skipped = len(tokens) - kept * each
        x = np.log(np.asarray(tokens, float)[self._skipped :] / tokens[-1])
        self._x, self.points = self._mean @ x, kept

    @cached_property
    def _pairs(self) -> "_Pairs":
        return _Pairs(self._x)

    def posterior(self, losses: np.ndarray) -> Posterior:
        """losses: (C, n), nats."""
        pairs, y = self._pairs, losses[:, self._skipped :] @ self._mean.T
        last = y[:, -1:]
        y = y - last
        freedom = self.points - 2
        total = np.stack([np.sum(y @ inverse * y, 1) for inverse in pairs.inverses], 1)
        fitted = np.square(np.tensordot(y, pairs.projections, axes=(1, 1))).sum(-1)
        rest = np.maximum(total[:, pairs.noise_of] - fitted, 1e-14)
        evidence = pairs.evidence - freedom / 2 * np.log(rest)
        weights = np.exp(evidence - evidence.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        response = np.zeros((len(losses), losses.shape[1]))
        response[:, self._skipped :] = weights @ pairs.gains @ self._mean
        gains, plain = y @ pairs.gains.T, len(NOISES) * len(KAPPAS)
        between = np.zeros_like(gains)
        between[:, :plain] = np.gradient(gains[:, :plain].reshape(len(y), -1, len(KAPPAS)), axis=-1).reshape(len(y), -1)
        return Posterior(
            gains=gains,
            scales=np.sqrt(rest / freedom * pairs.variances + between**2 / 12),
            weights=weights,
            loss=(weights * (y @ pairs.levels.T)).sum(1) + last[:, 0],
            noise=np.sqrt((weights * rest).sum(1) / freedom),
            correlation=weights @ pairs.correlations,
            response=response,
            freedom=freedom,
        )


class _Pairs:
    """The linear maps of every pair of curve and noise; they depend on where the evaluations lie and not on losses.

    inverses: (G, n, n) of the covariances. noise_of: (M,) which of them. projections: (M, n, 2), whose squared products
    are what the curve explains. gains, levels: (M, n). variances: (M,) of the gain, in units of the noise's. evidence:
    (M,) the log restricted likelihood without what the residuals add, and the prior.
    """

    def __init__(self, x: np.ndarray) -> None:
        n = len(x)
        lag = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
        lasting = {(r, share): (1 - share) * r**lag + share * np.eye(n) for r, share in NOISES}
        none = np.zeros((len(NOISES), n)), np.zeros((len(NOISES), n)), np.zeros(len(NOISES))
        plain = _curves(x, KAPPAS, np.array([lasting[noise] for noise in NOISES]), *none)
        smooths = np.array([_matern(np.subtract.outer(x, x), smooth) for smooth in SMOOTHS])
        at_end = np.array([_matern(x, smooth) for smooth in SMOOTHS])  # covariances with the losses
        ahead = at_end - np.array([_matern(x - NEXT, smooth) for smooth in SMOOTHS])
        prior = 2 * np.array([smooth[1] - _matern(np.array(NEXT), smooth) for smooth in SMOOTHS])
        repeated = (np.repeat(part, len(SMOOTH_NOISES), 0) for part in (ahead, at_end, prior))
        both = (smooths[:, None] + np.array([lasting[noise] for noise in SMOOTH_NOISES])).reshape(-1, n, n)
        bent = _curves(x, SMOOTH_KAPPAS, both, *repeated)
        self.inverses = np.concatenate([plain[0], bent[0]])
        self.projections, self.gains, self.levels, self.variances, evidence = (
            np.concatenate([one, other]) for one, other in zip(plain[1:], bent[1:], strict=True)
        )
        sizes = (len(KAPPAS), len(NOISES)), (len(SMOOTH_KAPPAS), len(both))
        self.noise_of = np.concatenate(
            [np.repeat(np.arange(sizes[0][1]), sizes[0][0]), sizes[0][1] + np.repeat(np.arange(len(both)), sizes[1][0])]
        )
        self.evidence = evidence + np.log(
            np.repeat([(1 - SMOOTH_WEIGHT) / len(NOISES), SMOOTH_WEIGHT / len(both)], [k * g for k, g in sizes])
        )
        neighbours = [r * (1 - share) for r, share in NOISES] + [r for r, _ in SMOOTH_NOISES] * len(SMOOTHS)
        self.correlations = np.array(neighbours)[self.noise_of]


def _curves(
    x: np.ndarray,
    kappas: dict[float, float],
    covariances: np.ndarray,
    ahead: np.ndarray,
    at_end: np.ndarray,
    prior: np.ndarray,
) -> tuple[np.ndarray, ...]:
    """Return the inverses of the covariances (G, n, n), and the fits of each noise with each of K curves.

    For G·K pairs: projections, gains, levels, variances, evidence, as in `_Pairs`. ahead, at_end (G, n), prior (G,):
    covariances of the smooth departure's gain and level with the losses, and the variance of its gain.
    """
    inverse, log_determinant = np.linalg.inv(covariances), np.linalg.slogdet(covariances)[1]
    design = np.array([np.stack([np.ones(len(x)), -_fall(kappa, x)], 1) for kappa in kappas])  # (K, n, 2)
    weighed = np.matmul(inverse[:, None], design)  # (G, K, n, 2)
    information = np.matmul(design.transpose(0, 2, 1), weighed)
    spread = np.linalg.inv(information)
    coefficients = np.matmul(spread, weighed.transpose(0, 1, 3, 2))  # (G, K, 2, n)
    smooth, level = (np.matmul(part[:, None], inverse)[:, None] for part in (ahead, at_end))  # (G, 1, 1, n)
    gain_left = np.array([[0.0, 1.0]]) - np.matmul(smooth, design)  # (G, K, 1, 2): what the curve's part answers for
    level_left = np.array([[1.0, 0.0]]) - np.matmul(level, design)
    explained = np.sum(smooth[:, 0, 0] * ahead, -1)
    variances = np.sum(np.matmul(gain_left, spread) * gain_left, (-2, -1)) + (prior - explained)[:, None]
    evidence = np.log(list(kappas.values())) - (log_determinant[:, None] + np.linalg.slogdet(information)[1]) / 2
    parts = (
        np.matmul(weighed, np.linalg.cholesky(spread)),
        (np.matmul(gain_left, coefficients) + smooth)[:, :, 0],
        (np.matmul(level_left, coefficients) + level)[:, :, 0],
        variances,
        evidence,
    )
    return inverse, *(part.reshape(-1, *part.shape[2:]) for part in parts)


def _fall(kappa: float, x: np.ndarray) -> np.ndarray:
    """Return the fall of a curve in tokens^-κ from the end of the window to x, in units of its fall for MORE tokens."""
    if kappa == 0:
        return x / NEXT
    return np.asarray(np.expm1(-kappa * x) / math.expm1(-kappa * NEXT))


def _matern(apart: np.ndarray, departure: tuple[float, float]) -> np.ndarray:
    length, ratio = departure
    scaled = math.sqrt(3) * np.abs(apart) / length
    return np.asarray(ratio * (1 + scaled) * np.exp(-scaled))


def _student_cdf(t: np.ndarray, freedom: int) -> np.ndarray:
    """Return the distribution function of Student's t, by the normal deviate with its tail (Wallace 1959).

    It has three digits from four degrees of freedom on.
    """
    factor = (8 * freedom + 1) / (8 * freedom + 3)
    z = np.sign(t) * factor * np.sqrt(freedom * np.log1p(t * t / freedom))
    return np.asarray(torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(z))).numpy())
