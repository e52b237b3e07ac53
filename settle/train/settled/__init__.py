"""Has the run settled? Decided from held-out losses, by statistics, in tokens.

At a constant learning rate the held-out loss over the last nine tenths of the tokens is explained by curves that bend
and noise that lasts, weighed against each other (settle/train/settled/trend.py). That gives a posterior of what 10 %
more tokens would still bring. The run has settled when the chance that they bring what matters is below `CHANCE`. The
question is asked again only after 10 % more tokens: each asking is a chance of a false verdict, and bench/settled.py
measures what share of whole runs is stopped falsely.

The held-out sample is finite, too. The same sample is used every time, so most of its error cancels in differences: the
gain is computed for each block of the sample, and the spread between the blocks widens the posterior.

Everything here is a pure function of the history of evaluations, so a resumed run decides exactly as one that
was never interrupted. Losses are nats per token.

Legend: n evaluations in a window, B blocks of the held-out sample, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np

from settle.base.statistics import FORECAST_LEVEL, LEVEL, NO_ESTIMATE, Interval
from settle.train.settled.trend import MORE, Posterior, Window, is_noise

Evidence = dict[str, object]  # the figures behind a verdict, to be shown
State = Literal["improving", "settled", "learned", "overfitting", "broken"]

REACH = 0.1  # the window reaches back to this fraction of the tokens seen
MOST_ABOVE = 2.0  # times the latest loss: evaluations above are left out of the window
MIN_POINTS = 10  # evaluations in a window
FURTHER_KAPPAS = (0.8, 0.4, 0.15)  # curvature of the lower end, the value and the upper end of a further hour
MIN_HISTORY = 16  # evaluations before the first verdict, but for overfitting, which shows by itself
CHANCE = 0.02  # of the gain being at least the tolerance, below which the run has settled
ASK_EVERY = 0.10  # share of more tokens before the verdict is asked for again
PARABOLA_REACH = 0.35  # a rise is judged around a parabola that reaches back to this fraction of the tokens seen

EVALUATION_GROWTH = 0.02  # late in a run: evaluate every 2 % of the tokens seen, 35 times in a doubling
EVALUATION_COST = 0.04  # early in a run: share of the computing time that evaluating may take
LEAST_SAMPLE = 4096  # held-out tokens of an evaluation, at least
FIRST_VERDICT_PER_PARAMETER = 10  # tokens: no model settles much earlier than this
LEAST_REST = 5000  # steps without learning before a run counts as broken; a slow starter needs a few thousand
LONGEST_REST = 4 * LEAST_REST  # steps before a loss above that of counting pairs of tokens counts as the end
LONG_HISTORY = 4 * MIN_HISTORY  # evaluations before one above that of counting triples does
LEAST_LOSS_NATS = 0.01  # per token; floor for the denominator of relative gains
KNOWS_MORE = 0.95  # of the floor: a first loss below this is no chance of the held-out rows
DECAY_FRACTION = 0.25  # length of the final decay as a share of the tokens seen (bench/settled.py measures it)


class Evaluation(Protocol):
    """One evaluation of the held-out sample, which is the same every time."""

    @property
    def step(self) -> int: ...
    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        ...

    @property
    def loss(self) -> float:
        """Nats per token."""
        ...

    @property
    def blocks(self) -> Sequence[float]:
        """(B,) mean loss of each block of the sample, in the same order every time; may be empty."""
        ...


@dataclass(frozen=True)
class Trend:
    """What one window of the history says.

    `gain` is the improvement for 10 % more tokens, as a fraction of the loss, or of `LEAST_LOSS_NATS` where that is
    more; `chance`: the probability that it is at least the tolerance.
    """

    start_tokens: int
    points: int
    gain: Interval
    chance: float
    noise: float  # standard deviation of one evaluation around the curve, nats
    correlation: float  # between neighbouring evaluations, in the mean
    sample_stderr: float  # standard error of the gain from the finite held-out sample alone
    loss: float  # the curve at its end, nats

    def to_json(self) -> dict[str, float]:
        gain, low, high = self.gain.ends
        return {
            "start_tokens": self.start_tokens, "points": self.points, "gain": gain, "low": low, "high": high,
            "chance": self.chance, "noise": self.noise, "correlation": self.correlation,
            "sample_stderr": self.sample_stderr, "loss": self.loss,
        }  # fmt: skip


@dataclass(frozen=True)
class Rise:
    """Where the held-out loss was lowest, by how many nats it has risen since, and the standard error of that."""

    best_step: int
    best_tokens: int
    best_loss: float
    rise: float
    rise_stderr: float


@dataclass(frozen=True)
class Judgement:
    """What the evaluations say.

    gain: expected improvement for 10 % more tokens, as a fraction of the present loss; NaN while there are too few
    evaluations.
    """

    state: State
    why: str
    gain: Interval = NO_ESTIMATE
    evidence: Evidence = field(default_factory=dict)

    def to_json(self) -> Evidence:
        """Return the form of events and checkpoints: the interval's ends next to the other fields, NaN included."""
        gain, low, high = self.gain.ends
        return {
            "state": self.state, "why": self.why, "gain": gain, "low": low, "high": high, "evidence": self.evidence,
        }  # fmt: skip


@dataclass(frozen=True)
class Settled:
    """The stopping rule.

    `tolerance`: the smallest improvement for 10 % more tokens that matters, as a fraction of the loss.
    `since_tokens`: where the constant learning rate began; evaluations before are not part of a line.
    `floor`: the loss of knowing only how often each target occurs (`Objective.frequency_loss`).
    `bigram_loss`, `trigram_loss`: those of counting pairs and triples of tokens; a network rests on such levels, too.
    """

    tolerance: float = 0.005
    since_tokens: int = 0
    floor: float | None = None
    bigram_loss: float | None = None
    trigram_loss: float | None = None

    def asks(self, history: Sequence[Evaluation]) -> bool:
        """Return whether the last evaluation of `history` is one to judge: those between say nothing new."""
        usable = self._usable(history)
        return len(usable) < MIN_HISTORY or _is_asked(usable) or self.rise(history) is not None

    def rise(self, history: Sequence[Evaluation]) -> Rise | None:
        """Return where the loss was lowest and how far above that it is now; None without a significant rise."""
        return rise_of(self._usable(history), self.tolerance)

    def _usable(self, history: Sequence[Evaluation]) -> list[Evaluation]:
        return [e for e in history if e.tokens > self.since_tokens]

    def judge(self, history: Sequence[Evaluation]) -> Judgement:
        """Judge the last evaluation of `history` (all of them, oldest first, the learning rate not yet decaying)."""
        usable = self._usable(history)
        trend = trend_of(usable, self.tolerance)
        too_few = Judgement("improving", f"{len(usable)} of {MIN_HISTORY} evaluations needed for a verdict")
        if trend is None:
            return too_few
        evidence = {"tolerance": self.tolerance, "line": trend.to_json(), "evaluations": len(usable)}
        is_early = len(usable) < MIN_HISTORY
        broken = "" if is_early else self._broken(history, trend)
        if broken:
            return Judgement("broken", broken, trend.gain, evidence)
        rise = self.rise(history)
        if rise and trend.gain.value < 0:  # few rows are memorized long before it could show that nothing is left
            why = f"held-out loss rose from {rise.best_loss:.4f} at step {rise.best_step} by {rise.rise:.4f}"
            return Judgement("overfitting", why, trend.gain, {**evidence, **asdict(rise)})
        if is_early:
            return too_few
        gain = trend.gain
        expected = f"10 % more tokens would bring {gain.value:.2%} ({gain.low:.2%} to {gain.high:.2%})"
        is_learning = self._has_learned(history, trend) and not is_noise(history[0].blocks, history[-1].blocks)
        is_learning = is_learning and not self._may_rest(usable, trend)
        if trend.chance < CHANCE and _is_asked(usable) and is_learning:
            why = f"{expected}; the chance that they bring the {self.tolerance:.2%} that matter is {trend.chance:.1%}"
            return Judgement("settled", why, gain, evidence)
        return Judgement("improving", expected, gain, evidence)

    def _has_learned(self, history: Sequence[Evaluation], now: Trend) -> bool:
        """Return whether the loss lies below the untrained model's and below what frequencies alone give."""
        spread = 4 * now.noise / math.sqrt(now.points)
        first = history[0].loss if history[0].tokens == 0 else math.inf
        return now.loss <= first - spread and (self.floor is None or now.loss <= self.floor - spread)

    def _may_rest(self, usable: Sequence[Evaluation], now: Trend) -> bool:
        """Return whether the loss may lie on the plateau of a slow starter.

        Such a model knows no more than counts of pairs or of triples of tokens do. One that is too small to know more
        is believed once it has rested for long.
        """
        level = now.loss + 4 * now.noise / math.sqrt(now.points)
        if self.bigram_loss is not None and level > self.bigram_loss:
            return usable[-1].step < LONGEST_REST
        return self.trigram_loss is not None and level > self.trigram_loss and len(usable) < LONG_HISTORY

    def _broken(self, history: Sequence[Evaluation], now: Trend) -> str:
        """Which check says that nothing was learned; empty if none does.

        An untrained model's loss may rest for a while before it falls, so resting counts as broken only after
        `LEAST_REST` steps. A pretrained model that knows more than the frequencies of its targets does not rest.
        """
        first = history[0]
        is_pretrained = first.tokens == 0 and self.floor is not None and first.loss < KNOWS_MORE * self.floor
        long_enough = is_pretrained or history[-1].step >= first.step + LEAST_REST
        if self._has_learned(history, now) or not long_enough or now.gain.high >= self.tolerance:
            return ""
        if first.tokens == 0 and now.loss > first.loss - 4 * now.noise / math.sqrt(now.points):
            return f"the loss, {now.loss:.3f}, is not below the untrained model's, {first.loss:.3f}"
        return (
            f"the loss, {now.loss:.3f}, has stayed at what frequencies alone give, {self.floor:.3f}, "
            f"since {now.start_tokens:,} tokens"
        )


def _is_asked(usable: Sequence[Evaluation]) -> bool:
    """Return whether `ASK_EVERY` more tokens were seen at the last evaluation than at the last verdict."""
    asked = usable[MIN_HISTORY - 1].tokens
    for e in usable[MIN_HISTORY:]:
        asked = e.tokens if e.tokens >= asked * (1 + ASK_EVERY) else asked
    return asked == usable[-1].tokens


def recent(usable: Sequence[Evaluation]) -> list[Evaluation]:
    """Return the window: back to `REACH` of the tokens seen, or to where a high loss says nothing about the end."""
    window = [e for e in usable if e.tokens >= REACH * usable[-1].tokens]
    if len(window) < MIN_POINTS:
        return []
    start = int(first_near(np.array([[e.loss for e in window]]))[0])
    return window[min(start, len(window) - MIN_POINTS) :]


def first_near(losses: np.ndarray) -> np.ndarray:
    """Return the index (C,) of the evaluation from which on the losses (C, n) stay near the latest.

    Near: below `MOST_ABOVE` × the latest; both are medians of five.
    """
    medians = np.median(np.lib.stride_tricks.sliding_window_view(losses, 5, axis=1), -1)
    is_far = medians > MOST_ABOVE * medians[:, -1:]
    return np.asarray(np.where(is_far, np.arange(5, losses.shape[1] + 1), 0).max(1))


def trend_of(usable: Sequence[Evaluation], tolerance: float) -> Trend | None:
    """Fit the trend at the last evaluation; None while there are too few."""
    fitted = _fit(usable)
    if fitted is None:
        return None
    window, posterior, sample = fitted
    whole = max(float(posterior.loss[0]), min(e.loss for e in window), LEAST_LOSS_NATS)
    return Trend(
        start_tokens=window[0].tokens,
        points=len(window),
        gain=posterior.interval(LEVEL, whole),
        chance=float(posterior.above(np.array([tolerance * whole]))[0]),
        noise=float(posterior.noise[0]),
        correlation=float(posterior.correlation[0]),
        sample_stderr=sample / whole,
        loss=float(posterior.loss[0]),
    )


def _fit(usable: Sequence[Evaluation]) -> tuple[list[Evaluation], Posterior, float] | None:
    """Return the window at the end, the posterior of the gain, and its standard error in nats.

    The standard error is through the finite sample. None while there are too few evaluations.
    """
    window = recent(usable)
    if len(window) < MIN_POINTS:
        return None
    posterior = Window([e.tokens for e in window]).posterior(np.array([[e.loss for e in window]]))
    sample = 0.0
    if all(len(e.blocks) > 1 for e in window):
        falls = posterior.response[0] @ np.array([e.blocks for e in window])  # (B,)
        sample = float(falls.std(ddof=1)) / math.sqrt(len(falls))
    return window, posterior.widened(np.array([sample])), sample


def rise_of(usable: Sequence[Evaluation], tolerance: float) -> Rise | None:
    """Where the held-out loss began to rise and by how much; None without a significant rise.

    Means of five evaluations are compared. The lowest of them was picked for being low, hence four standard errors;
    and a rise that is smaller than the tolerance is nothing to stop for. Noise is what is left around a parabola:
    around a straight line the bend of a loss that fell and rises would count as noise, the more the further it rises.
    """
    few = 5
    if len(usable) < 2 * few:
        return None
    losses = np.array([e.loss for e in usable])
    means = np.convolve(losses, np.ones(few) / few, mode="valid")
    low = int(means.argmin())
    rise = float(means[-1] - means[low])
    noise, correlation = _around_parabola(usable)
    inflation = (1 + correlation) / (1 - correlation)
    error = noise * math.sqrt(2 / few * min(inflation, few))
    blocks = [e.blocks for e in usable]
    if all(len(b) > 1 for b in blocks):
        shift = np.mean(blocks[-few:], axis=0) - np.mean(blocks[low : low + few], axis=0)
        error = math.hypot(error, float(shift.std(ddof=1)) / math.sqrt(len(shift)))
    if rise < 4 * error or rise < tolerance * float(means[low]):
        return None
    best = usable[low + int(losses[low : low + few].argmin())]
    return Rise(best.step, best.tokens, best.loss, rise, error)


def _around_parabola(usable: Sequence[Evaluation]) -> tuple[float, float]:
    """Return the standard deviation of one evaluation and the lag-1 correlation around a parabola in ln(tokens).

    The parabola goes through the last stretch, which is long enough for the lowest loss and the rise after it.
    """
    now = usable[-1].tokens
    recent = [e for e in usable if e.tokens >= PARABOLA_REACH * now]
    stretch = recent if len(recent) >= MIN_POINTS else usable[-MIN_POINTS:]
    x = np.log([e.tokens / now for e in stretch])
    design = np.stack([np.ones(len(x)), x, x**2], axis=1)
    inverse = np.linalg.pinv(design)
    y = np.array([e.loss for e in stretch])
    correlation, variance = _noise(y - design @ (inverse @ y), design, inverse)
    return math.sqrt(variance), correlation


def _noise(residuals: np.ndarray, design: np.ndarray, inverse: np.ndarray) -> tuple[float, float]:
    """(lag-1 correlation, variance of one point) from the residuals (n,) of a fit.

    In a short series with a trend the plain estimate of the correlation ρ is too low by about (2 + 4ρ)/n
    (Kendall 1954, Marriott & Pope 1954); that is put right. The variance is scaled so that its expectation is
    right under that correlation.
    """
    n = len(residuals)
    total = float(residuals @ residuals)
    if total <= 0.0:
        return 0.0, 0.0
    plain = float(residuals[1:] @ residuals[:-1]) / total
    correlation = min(max((plain + 2 / n) / (1 - 4 / n), 0.0), 0.9)
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    return correlation, total / float(np.sum((np.eye(n) - design @ inverse) * covariance))


def gain_for(history: Sequence[Evaluation], more_tokens: float, since_tokens: int = 0) -> Interval:
    """Estimate the improvement from `more_tokens` further tokens at the constant learning rate.

    As a fraction of the present loss, with an 80 % interval; NaN while there are too few evaluations. A loss does not
    fall below nothing, so falls are those of its logarithm.
    """
    usable = [e for e in history if e.tokens > since_tokens]
    fitted = _fit(usable)
    if fitted is None:
        return NO_ESTIMATE
    window, posterior, _ = fitted
    whole = max(float(posterior.loss[0]), min(e.loss for e in window), LEAST_LOSS_NATS)
    return further(posterior.interval(FORECAST_LEVEL, whole), 1 + more_tokens / usable[-1].tokens)


def further(near: Interval, ratio: float) -> Interval:
    """Extrapolate the improvement for MORE tokens to `ratio` times the tokens seen, as a fraction of the loss.

    How the loss will fall is not known: it is taken to follow E + A·tokens^-κ, with κ of `FURTHER_KAPPAS`.
    """

    def fall(kappa: float, gain: float) -> float:
        grown, more = math.log(ratio), math.log1p(MORE)
        gain = -math.log1p(-min(gain, 0.99)) if gain > 0 else gain
        far = gain * (grown / more if kappa == 0 else math.expm1(-kappa * grown) / math.expm1(-kappa * more))
        return -math.expm1(-far) if far > 0 else far

    # a falling loss (positive gain) slows down at the lower end and does not at the upper; a rising one the other way
    least, expected, most = FURTHER_KAPPAS
    return Interval(
        fall(expected, near.value),
        fall(least if near.low > 0 else most, near.low),
        fall(most if near.high > 0 else least, near.high),
        near.level,
    )


def next_evaluation(last_tokens: int, sample_tokens: int, cost: float = EVALUATION_COST) -> int:
    """Return the token count of the next evaluation, after one at `last_tokens`; each reads `sample_tokens`.

    While tokens are few the spacing keeps evaluating (a forward pass: a third of a training step) at a share `cost` of
    the computing time; once 2 % of the tokens seen is the wider spacing, that is taken, and the share falls.
    """
    return last_tokens + math.ceil(max(EVALUATION_GROWTH * last_tokens, sample_tokens / (3 * cost)))


def sample_size(unique_tokens: int, parameters: int) -> int:
    """How many held-out tokens an evaluation reads, by what is learned from and what learns, and by no budget.

    It is what `MIN_HISTORY` evaluations at a share `EVALUATION_COST` of the computing time can read in one pass over
    `unique_tokens` of training text, or in ten tokens a parameter, whichever is less.
    """
    first_verdict = min(unique_tokens, FIRST_VERDICT_PER_PARAMETER * parameters)
    return max(LEAST_SAMPLE, int(first_verdict / MIN_HISTORY * 3 * EVALUATION_COST))


def decay_tokens(tokens: int) -> int:
    """Length of the final decay to zero, in tokens, when it begins after `tokens`."""
    return round(DECAY_FRACTION * tokens)


def frequency_loss(train_counts: np.ndarray, held_out_counts: np.ndarray) -> float:
    """Return the held-out loss of knowing only the token frequencies of the training text, nats per token.

    Both (V,), counts of each token id; frequencies are smoothed by adding one.
    """
    frequencies = (train_counts + 1.0) / (train_counts.sum() + len(train_counts))
    return float(-(held_out_counts * np.log(frequencies)).sum() / held_out_counts.sum())
