"""Has the run settled? Decided from held-out losses, by statistics, in tokens.

At a constant learning rate the held-out loss is followed against the logarithm of the tokens seen. Over a
recent stretch it is nearly a straight line, and its slope times ln 1.1 is what 10 % more tokens would still
bring. The curve bends upwards there, so a straight line promises a little too much rather than too little.
The slope's error has two sources, added in quadrature:

* training noise, from the residuals and their lag-1 correlation (the weights wander, and neighbouring
  evaluations share the wandering);
* the held-out sample being finite. The same sample is used every time, so most of its error cancels in
  differences: the line is fitted to each block of the sample, and the spread between the blocks' slopes gives
  what is left.

Everything here is a pure function of the history of evaluations, so a resumed run decides exactly as one that
was never interrupted. Losses are nats per token.

Legend: n evaluations in a stretch, B blocks of the held-out sample, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np

from settle.base.statistics import FORECAST_LEVEL, LEVEL, NO_ESTIMATE, Interval, student_quantile, two_sided_z

State = Literal["improving", "settled", "overfitting", "broken"]

MORE = 0.10  # "10 % more tokens than already seen"
STRETCHES = (0.7, 0.5, 0.35, 0.2)  # a stretch reaches back to this fraction of the tokens seen
LEAST_FREEDOM = 3.0  # degrees of freedom that a line is credited with, however correlated its noise
MIN_POINTS = 10  # evaluations in a stretch
MIN_HISTORY = 30  # evaluations before the first verdict, but for overfitting, which shows by itself
IN_A_ROW = 3  # evaluations that must agree on "settled"

EVALUATION_GROWTH = 0.02  # late in a run: evaluate every 2 % of the tokens seen, 35 times in a doubling
EVALUATION_COST = 0.04  # early in a run: share of the computing time that evaluating may take
LEAST_SAMPLE = 4096  # held-out tokens of an evaluation, at least
FIRST_VERDICT_PER_PARAMETER = 10  # tokens: no model settles much earlier than this
LEAST_REST = 5000  # steps without learning before a run counts as broken; a slow starter needs a few thousand
LEAST_LOSS_NATS = 0.01  # per token; floor for the denominator of relative gains
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
    """A straight line in ln(tokens) through one stretch of the history.

    `gain` is the improvement for 10 % more tokens, as a fraction of the loss, or of `LEAST_LOSS_NATS` where that
    is more.
    """

    start_tokens: int
    points: int
    gain: Interval
    noise: float  # standard deviation of one evaluation around the line, nats
    correlation: float  # between neighbouring residuals
    sample_stderr: float  # standard error of the gain from the finite held-out sample alone
    loss: float  # the line at its end, nats

    def to_json(self) -> dict[str, object]:
        return _flat_gain(self)


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
    """What the evaluations say. `gain`: expected improvement for 10 % more tokens, as a fraction of the present loss;
    NaN while there are too few evaluations."""

    state: State
    why: str
    gain: Interval = NO_ESTIMATE
    evidence: dict[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """The form of events and checkpoints: the interval's ends beside the other fields, NaN included."""
        return _flat_gain(self)


def _flat_gain(record: Trend | Judgement) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in vars(record).items():
        flat |= dict(zip(("gain", "low", "high"), record.gain.ends, strict=True)) if name == "gain" else {name: value}
    return flat


@dataclass(frozen=True)
class Settled:
    """The stopping rule.

    `tolerance`: the smallest improvement for 10 % more tokens that matters, as a fraction of the loss.
    `since_tokens`: where the constant learning rate began; evaluations before are not part of a line.
    `floor`: what knowing only how often each token occurs would give (`frequency_loss`), nats per token.
    """

    tolerance: float = 0.005
    since_tokens: int = 0
    floor: float | None = None

    def judge(self, history: Sequence[Evaluation]) -> Judgement:
        """The verdict after the last evaluation of `history` (all of them, oldest first, learning rate not yet
        decaying)."""
        usable = [e for e in history if e.tokens > self.since_tokens]
        lines = trends(usable) if len(usable) >= MIN_POINTS else []
        too_few = Judgement("improving", f"{len(usable)} of {MIN_HISTORY} evaluations needed for a verdict")
        if not lines:
            return too_few
        line = min(lines, key=lambda t: t.gain.high)
        evidence = {"tolerance": self.tolerance, "line": line.to_json(), "evaluations": len(usable)}
        is_early = len(usable) < MIN_HISTORY
        broken = "" if is_early else self._broken(history, lines)
        if broken:
            return Judgement("broken", broken, line.gain, evidence)
        rise = overfitting(usable, lines[0], self.tolerance)
        if rise:  # few rows are memorized long before a line could show that nothing is left to gain
            why = f"held-out loss rose from {rise.best_loss:.4f} at step {rise.best_step} by {rise.rise:.4f}"
            return Judgement("overfitting", why, line.gain, {**evidence, **asdict(rise)})
        if is_early:
            return too_few
        expected = f"10 % more tokens would bring {line.gain.value:.2%} ({line.gain.low:.2%} to {line.gain.high:.2%})"
        if self._has_learned(history, lines[0]) and all(
            self._flat(usable[: len(usable) - back]) for back in range(IN_A_ROW)
        ):
            why = f"{expected}, less than the {self.tolerance:.2%} that matter"
            return Judgement("settled", why, line.gain, evidence)
        return Judgement("improving", expected, line.gain, evidence)

    def _flat(self, usable: Sequence[Evaluation]) -> bool:
        lines = trends(usable) if len(usable) >= MIN_POINTS else []
        return bool(lines) and min(t.gain.high for t in lines) < self.tolerance

    def _has_learned(self, history: Sequence[Evaluation], now: Trend) -> bool:
        """Whether the loss lies below the untrained model's and below what token frequencies alone give."""
        spread = 4 * now.noise / math.sqrt(now.points)
        first = history[0].loss if history[0].tokens == 0 else math.inf
        return now.loss <= first - spread and (self.floor is None or now.loss <= self.floor - spread)

    def _broken(self, history: Sequence[Evaluation], lines: Sequence[Trend]) -> str:
        """Which check says that nothing was learned; empty if none does.

        An untrained model's loss may rest for a while before it falls, so resting counts as broken only after
        `LEAST_REST` steps, flat since a fifth of the tokens. A pretrained model knows more than token frequencies.
        """
        first, now, longest = history[0], lines[0], lines[-1]
        rests = longest.start_tokens <= history[-1].tokens * (STRETCHES[-1] + EVALUATION_GROWTH * 2)
        is_pretrained = first.tokens == 0 and self.floor is not None and first.loss < self.floor
        long_enough = is_pretrained or history[-1].step >= first.step + LEAST_REST
        if self._has_learned(history, now) or not (rests and long_enough and longest.gain.high < self.tolerance):
            return ""
        if first.tokens == 0 and now.loss > first.loss - 4 * now.noise / math.sqrt(now.points):
            return f"the loss, {now.loss:.3f}, is not below the untrained model's, {first.loss:.3f}"
        return (
            f"the loss, {now.loss:.3f}, has stayed at what token frequencies alone give, {self.floor:.3f}, "
            f"since {longest.start_tokens:,} tokens"
        )


def trends(history: Sequence[Evaluation]) -> list[Trend]:
    """Straight lines over ever longer stretches, the shortest first; empty if there are too few evaluations.

    The curve is convex once learning slows down, so each line's upper end is valid by itself and the lowest may
    be used. A longer stretch whose upper end lies below what a shorter one expects is left out, with all longer
    ones: the loss falls faster now than it did, and the past is no guide.
    """
    lines: list[Trend] = []
    now = history[-1].tokens
    for fraction in STRETCHES:
        stretch = [e for e in history if e.tokens >= fraction * now]
        if len(stretch) < MIN_POINTS or (lines and len(stretch) == lines[-1].points):
            continue
        line = fit(stretch)
        if any(line.gain.high < shorter.gain.value for shorter in lines):
            break
        lines.append(line)
    return lines


def fit(stretch: Sequence[Evaluation]) -> Trend:
    """Least squares of loss on ln(tokens) over a stretch of evaluations.

    A loss that falls fast to nothing bends so much that the line ends below all that was seen, even below nothing: the
    gain is a share of what was seen then.
    """
    x = np.log([e.tokens for e in stretch])
    y = np.array([e.loss for e in stretch])
    design = np.stack([np.ones(len(x)), x - x[-1]], axis=1)
    inverse = np.linalg.pinv(design)
    weights = -math.log1p(MORE) * inverse[1]  # weights @ y is the fall of the loss for MORE tokens
    level, _ = inverse @ y
    residuals = y - design @ (inverse @ y)
    correlation, variance, freedom = _noise(residuals, design, inverse)
    apart = np.abs(np.subtract.outer(np.arange(len(x)), np.arange(len(x))))
    training = math.sqrt(max(0.0, variance * float(weights @ correlation**apart @ weights)))
    sample = _sample_error(stretch, weights)
    whole = max(float(level), float(y.min()), LEAST_LOSS_NATS)
    gain = float(weights @ y) / whole
    reach = student_quantile((1 + LEVEL) / 2, max(freedom, LEAST_FREEDOM)) * math.hypot(training, sample) / whole
    return Trend(
        start_tokens=stretch[0].tokens,
        points=len(x),
        gain=Interval(gain, gain - reach, gain + reach),
        noise=math.sqrt(variance),
        correlation=correlation,
        sample_stderr=sample / whole,
        loss=float(level),
    )


def _noise(residuals: np.ndarray, design: np.ndarray, inverse: np.ndarray) -> tuple[float, float, float]:
    """(lag-1 correlation, variance of one point, degrees of freedom) from the residuals (n,) of a fit.

    In a short series with a trend the plain estimate of the correlation ρ is too low by about (2 + 4ρ)/n
    (Kendall 1954, Marriott & Pope 1954); that is put right. The variance is scaled so that its expectation is
    right under that correlation.
    """
    n = len(residuals)
    total = float(residuals @ residuals)
    if total <= 0.0:
        return 0.0, 0.0, float(n - 2)
    plain = float(residuals[1:] @ residuals[:-1]) / total
    correlation = min(max((plain + 2 / n) / (1 - 4 / n), 0.0), 0.9)
    covariance = correlation ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    maker = np.eye(n) - design @ inverse
    variance = total / float(np.sum(maker * covariance))
    freedom = (n - 2) * (1 - correlation) / (1 + correlation)
    return correlation, variance, freedom


def _sample_error(stretch: Sequence[Evaluation], weights: np.ndarray) -> float:
    """Standard error of weights @ loss through the finite held-out sample: the spread between its blocks."""
    if any(len(e.blocks) < 2 for e in stretch):
        return 0.0
    falls = weights @ np.array([e.blocks for e in stretch])  # (B,)
    return float(falls.std(ddof=1)) / math.sqrt(len(falls))


def overfitting(usable: Sequence[Evaluation], line: Trend, tolerance: float) -> Rise | None:
    """Where the held-out loss began to rise and by how much; None without a significant rise.

    Means of five evaluations are compared. The lowest of them was picked for being low, hence four standard
    errors; and a rise that is smaller than the tolerance is nothing to stop for. `line`: the shortest trend, which must
    not be falling. Noise is what is left around a parabola: around a straight line the bend of a loss that fell and
    rises would count as noise, the more the further it rises.
    """
    few = 5
    if len(usable) < 2 * few or line.gain.value >= 0:
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
    """(standard deviation of one evaluation, lag-1 correlation) around a parabola in ln(tokens) through the last
    stretch, which is long enough for the lowest loss and the rise after it."""
    now = usable[-1].tokens
    recent = [e for e in usable if e.tokens >= STRETCHES[2] * now]
    stretch = recent if len(recent) >= MIN_POINTS else usable[-MIN_POINTS:]
    x = np.log([e.tokens / now for e in stretch])
    design = np.stack([np.ones(len(x)), x, x**2], axis=1)
    inverse = np.linalg.pinv(design)
    y = np.array([e.loss for e in stretch])
    correlation, variance, _ = _noise(y - design @ (inverse @ y), design, inverse)
    return math.sqrt(variance), correlation


def gain_for(history: Sequence[Evaluation], more_tokens: float, since_tokens: int = 0) -> Interval:
    """The improvement from `more_tokens` further tokens at the constant learning rate, as a fraction of the present
    loss, with an 80 % interval; NaN while there are too few evaluations.

    The slope comes from the shortest line. How the loss will fall is not known: it is taken to follow
    E + A·tokens^-κ with κ from 0 (the line continues, the upper end) over 0.4 (expected) to 1 (the lower end). A loss
    does not fall below nothing: for a fall by g of itself, 1 - exp(-g) is returned, which is exact where the line
    touches a loss without a floor, A·tokens^-α.
    """
    usable = [e for e in history if e.tokens > since_tokens]
    lines = trends(usable) if len(usable) >= MIN_POINTS else []
    if not lines:
        return NO_ESTIMATE
    line = lines[0].gain
    grown = 1 + more_tokens / usable[-1].tokens

    def further(kappa: float) -> float:
        def fall(ratio: float) -> float:
            return math.log(ratio) if kappa == 0 else -math.expm1(-kappa * math.log(ratio)) / kappa

        return fall(grown) / fall(1 + MORE)

    narrower = two_sided_z(FORECAST_LEVEL) / two_sided_z(LEVEL)
    low = line.value - (line.value - line.low) * narrower
    high = line.value + (line.high - line.value) * narrower
    # a falling loss (positive gain) slows down at the lower end and does not at the upper; a rising one the other way
    gains = (
        line.value * further(0.4),
        low * further(1.0 if low > 0 else 0.0),
        high * further(0.0 if high > 0 else 1.0),
    )
    value, low, high = (-math.expm1(-gain) if gain > 0 else gain for gain in gains)
    return Interval(value, low, high, FORECAST_LEVEL)


def next_evaluation(last_tokens: int, sample_tokens: int, cost: float = EVALUATION_COST) -> int:
    """The token count of the next evaluation, after one at `last_tokens`; each reads `sample_tokens`.

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
    """What knowing only the token frequencies of the training text gives on held-out text, nats per token.

    Both (V,), counts of each token id; frequencies are smoothed by adding one.
    """
    frequencies = (train_counts + 1.0) / (train_counts.sum() + len(train_counts))
    return float(-(held_out_counts * np.log(frequencies)).sum() / held_out_counts.sum())


def steps_astray(before: Sequence[float], loss: float) -> int:
    """The number of steps, the last included, in which the training loss has been astray; 0 if it is not.

    A spike differs from a hard batch in that it stays: three steps in a row that are more than 8 robust standard
    deviations (1.4826 × median absolute deviation) and more than a tenth above the median of the 64 steps before
    them. A loss that is not a number counts at once. `before` (any length): the losses of the steps before.
    """
    stay, window = 3, 64
    if not math.isfinite(loss):
        return 1
    if len(before) < window + stay - 1:
        return 0
    recent = [*before[1 - stay :], loss]
    calm = np.array(before[1 - stay - window : 1 - stay])
    middle = float(np.median(calm))
    deviation = 1.4826 * float(np.median(np.abs(calm - middle)))
    return stay if min(recent) > middle + max(8 * deviation, 0.1 * abs(middle)) else 0
