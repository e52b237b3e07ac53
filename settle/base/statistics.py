"""A number with its interval, and the tests behind verdicts: Student's t, Wilson, the bootstrap, the paired test.

Exact tests of two systems on the same rows go by the rows on which they differ, and by flipping signs.

numpy is imported by the functions that need it, so that this module loads in milliseconds.

Legend: n rows of a sample, R resamples.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEVEL = 0.95  # of the intervals of what was measured
FORECAST_LEVEL = 0.8  # of the intervals of what is forecast
RESAMPLES = 10_000
FEWEST_FAMILIES = 6  # of which all agreeing have a p-value below that of a verdict
MOST_VALUES = 16  # different ones up to which resamples are drawn by how often each value comes
VERDICT_P, SKEWED_P = 0.05, 0.04  # of a verdict, 2.5 % a side; by flipping signs, where skew takes up to half a percent
TELLING = 0.2  # difference of two shares that rows have to rule out for "no different", or they are too few to tell
NO_DIFFERENT, TOO_FEW = "no different", "too few rows to tell"


@dataclass(frozen=True)
class Interval:
    """A value and the interval from `low` to `high` that holds the true one with probability `level`.

    An end is infinite where the sample says nothing about it, and all three are NaN where there is no estimate yet.
    """

    value: float
    low: float = -math.inf
    high: float = math.inf
    level: float = LEVEL

    @classmethod
    def log_normal(cls, value: float, log_std: float, level: float = FORECAST_LEVEL) -> "Interval":
        """Return an interval by a factor around `value`. log_std: standard deviation of its natural logarithm."""
        factor = math.exp(two_sided_z(level) * log_std)
        return cls(value, value / factor, value * factor, level)

    @classmethod
    def from_json(cls, values: Mapping[str, float | None], level: float) -> "Interval":
        """Read what `to_json` wrote, of a level that the reader knows. Raises KeyError, TypeError, ValueError."""
        unknown = {"value": math.nan, "low": -math.inf, "high": math.inf}
        known = {name: float(end) for name in unknown if (end := values[name]) is not None}
        return cls(**(unknown | known), level=level)

    @property
    def is_bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def log_std(self) -> float:
        """The standard deviation of the logarithm, were the interval `log_normal`; of positive ends only."""
        return math.log(self.high / self.low) / 2 / two_sided_z(self.level)

    @property
    def ends(self) -> tuple[float, float, float]:
        return self.value, self.low, self.high

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def shifted(self, by: float) -> "Interval":
        return Interval(self.value + by, self.low + by, self.high + by, self.level)

    def scaled(self, by: float) -> "Interval":
        return Interval(self.value * by, self.low * by, self.high * by, self.level)

    def at_most(self, limit: float) -> "Interval":
        return Interval(min(self.value, limit), min(self.low, limit), min(self.high, limit), self.level)

    def to_json(self) -> dict[str, float | None]:
        """Return the form of result.json and forecast.json; null for an end that is not known."""
        ends = {"value": self.value, "low": self.low, "high": self.high}
        return {name: end if math.isfinite(end) else None for name, end in ends.items()}


NO_ESTIMATE = Interval(math.nan, math.nan, math.nan)


# --- distributions ---


def two_sided_z(level: float) -> float:
    """How many standard deviations to each side of a normal mean hold a share `level` of all values."""
    return NormalDist().inv_cdf((1 + level) / 2)


def student_cdf(t: float, freedom: float) -> float:
    """P(T ≤ t) of Student's t with `freedom` > 0 degrees of freedom, not necessarily a whole number (DLMF 8.17)."""
    tail = _student_tail(abs(t), freedom)
    return tail if t < 0 else 1 - tail


def student_quantile(probability: float, freedom: float) -> float:
    """Return the t with `student_cdf(t, freedom)` = probability, 0 < probability < 1, to about ten digits."""
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    tail = 1 - probability
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    # Newton's method from the normal quantile, which lies below; the CDF is concave here, so every step goes up.
    t = NormalDist().inv_cdf(probability)
    for _ in range(200):
        density = math.exp(log_scale - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (_student_tail(t, freedom) - tail) / density
        t += step
        if abs(step) <= 1e-13 * t:
            break
    return t


def _student_tail(t: float, freedom: float) -> float:
    """P(T > t), t ≥ 0: half the regularized incomplete beta function at freedom / (freedom + t²)."""
    x, rest, half = freedom / (freedom + t * t), t * t / (freedom + t * t), freedom / 2
    if x * (half + 2.5) <= half + 1:
        return incomplete_beta(x, rest, half, 0.5) / 2
    return (1 - incomplete_beta(rest, x, 0.5, half)) / 2


def incomplete_beta(x: float, rest: float, a: float, b: float) -> float:
    """I_x(a, b), rest = 1 - x, by its continued fraction (DLMF 8.17.22), for x ≤ (a + 1) / (a + b + 2)."""
    if x <= 0:
        return 0.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log(rest)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 1000):  # Lentz's method, two terms a turn
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            c, d = 1 + term / c, 1 / (1 + term * d)
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front * fraction


# --- intervals of a sample ---


def wilson(hits: Sequence[bool], families: Sequence[int] | None = None) -> Interval:
    """Return the share of n that are true, with Wilson's interval (1927), which stays between 0 and 1 for any n.

    families: (n,), the same number for those that belong together: the interval is that of as many independent ones as
    vary so much (Korn and Graubard 1998). Of an empty sample nothing is known: 0, between 0 and 1.
    """
    return _share(
        hits, families, lambda p, n, z, _: z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + (z / n) ** 2 / 4)
    )


def share_interval(hits: Sequence[bool], families: Sequence[int] | None = None) -> Interval:
    """Return the share with an interval as wide as Agresti and Coull (1998) make it.

    Of few rows of which nearly all or nearly none are true Wilson's interval misses one share in seven, this one hardly
    ever more than 7 in 100.
    """
    return _share(hits, families, lambda p, n, z, middle: z * math.sqrt(middle * (1 - middle) / (n + z * z)))


def _share(hits: Sequence[bool], families: Sequence[int] | None, half: Callable[..., float]) -> Interval:
    """Return the share with an interval around Wilson's middle.

    half: of the interval's width, by the share, how many independent ones vary as much, how many standard deviations it
    has, and the middle.
    """
    if not hits:
        return Interval(0.0, 0.0, 1.0)
    p, n, z = sum(hits) / len(hits), float(len(hits)), two_sided_z(LEVEL)
    if families is not None:
        n, z = _independent(hits, families, p), student_quantile((1 + LEVEL) / 2, max(1, len(set(families)) - 1))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    width = half(p, n, z, middle)
    return Interval(p, max(0.0, middle - width), min(1.0, middle + width))


def _independent(hits: Sequence[bool], families: Sequence[int], share: float) -> float:
    """Return how many independent ones would vary as much as `hits`, of which a `share` is true.

    They are at most as many as there are, and where all agree one a family.
    """
    excess: dict[int, float] = {}
    for hit, family in zip(hits, families, strict=True):
        excess[family] = excess.get(family, 0.0) + hit - share
    variance, number = sum(e * e for e in excess.values()), len(excess)
    if not variance:
        return float(number)
    return min(len(hits), len(hits) ** 2 * share * (1 - share) * max(1, number - 1) / number / variance)


def bootstrap_mean(
    values: "Sequence[float] | np.ndarray", random: "np.random.Generator | None" = None, resamples: int = RESAMPLES
) -> Interval:
    """Return the mean of n values with the bootstrap's interval; 0 for an empty sample. See `bootstrap_ratio`."""
    return bootstrap_ratio(values, [1.0] * len(values), random, resamples) if len(values) else Interval(0.0)


def bootstrap_ratio(
    sums: "Sequence[float] | np.ndarray",
    counts: "Sequence[float] | np.ndarray",
    random: "np.random.Generator | None" = None,
    resamples: int = RESAMPLES,
) -> Interval:
    """Σ sums ÷ Σ counts, both (n,), with the bootstrap's percentile interval over the n.

    The percentiles are widened for small n (Hesterberg 2015, section 5.3); for n = 1 the interval is unbounded.
    """
    import numpy as np

    numerators, denominators = np.asarray(sums, float), np.asarray(counts, float)
    value, n = float(numerators.sum() / denominators.sum()), len(numerators)
    if n < 2:
        return Interval(value)
    ratios = _resampled(numerators, denominators, random or np.random.default_rng(0), resamples)
    tail = NormalDist().cdf(-math.sqrt(n / (n - 1)) * student_quantile((1 + LEVEL) / 2, n - 1))
    low, high = np.quantile(ratios, (tail, 1 - tail))
    return Interval(value, float(low), float(high))


def _resampled(sums: "np.ndarray", counts: "np.ndarray", random: "np.random.Generator", resamples: int) -> "np.ndarray":
    """Return Σ sums ÷ Σ counts, (R,), of n drawn with replacement.

    Of few different values, as scores of 0 and 1 have, it is only drawn how often each occurs.
    """
    import numpy as np

    n = len(sums)
    values, times = np.unique(np.stack([sums, counts]), axis=1, return_counts=True)
    if len(times) <= min(MOST_VALUES, n // 2):
        drawn = random.multinomial(n, times / n, resamples) @ values.T  # (R, 2)
        few: np.ndarray = drawn[:, 0] / drawn[:, 1]
        return few
    each, ratios = max(1, MOST_RESAMPLED // n), []
    for begin in range(0, resamples, each):
        which = random.integers(0, n, (min(each, resamples - begin), n))
        ratios.append(sums[which].sum(1) / counts[which].sum(1))
    return np.concatenate(ratios)


# --- two systems on the same rows ---


@dataclass(frozen=True)
class PairedTest:
    """Two models scored on the same rows."""

    base: float  # base, tuned: mean scores
    tuned: float
    difference: Interval  # tuned minus base
    p_value: float  # the chance of so large a difference, either way, were both equally good
    rows: int
    wins: int  # wins, losses: rows on which the tuned model scored more, or less
    losses: int
    families: int  # how many independent groups the rows are
    adjusted_p: float  # corrected for the other claims of the same report, see `in_order`
    is_share: bool = False  # all scores are from 0 to 1
    limit: float = VERDICT_P  # the p-value that a verdict takes at most

    @property
    def verdict(self) -> str:
        """Say better or worse, where interval and corrected p-value say so; otherwise no different, or too few rows.

        Too few rows to tell: where a large difference is still possible, or where only the interval says so.
        """
        is_clear = self.adjusted_p <= self.limit
        if is_clear and self.difference.low > 0:
            return "better"
        if is_clear and self.difference.high < 0:
            return "worse"
        is_wide = self.is_share and self.possible > TELLING or self.difference.low > 0 or self.difference.high < 0
        return TOO_FEW if is_wide or self.families < FEWEST_FAMILIES else NO_DIFFERENT

    @property
    def is_shown(self) -> bool:
        return self.verdict in ("better", "worse")

    @property
    def possible(self) -> float:
        """The largest difference, either way, that the interval does not rule out."""
        return max(self.difference.high, -self.difference.low)

    def to_json(self) -> dict[str, float | int | str | None]:
        difference = self.difference.to_json()
        flat = {"difference": difference["value"], "low": difference["low"], "high": difference["high"]}
        return {**asdict(self), **flat, "verdict": self.verdict}


def paired_test(
    base: Sequence[float],
    tuned: Sequence[float],
    families: Sequence[int] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Compare scores (n,) of two models on the same rows; more is better.

    families: (n,), the same number for rows that belong together, such as near duplicates or parts of one document;
    None: every row is independent.

    Families are resampled whole (Field and Welsh 2007), since rows that are alike are right or wrong together. The
    interval is corrected for skewness, which a rare large loss makes; of answers that are right or wrong, on
    independent rows, it is `add_two_interval`, and the p-value that of `unconditional_p`. Elsewhere the p-value comes
    from flipping the signs of the families' sums, which is exact for any number of them where differences are symmetric
    under the null (Fisher 1935): an interval from a handful of rows that happen to agree would claim too much.
    """
    import numpy as np

    before, after = np.asarray(base, float), np.asarray(tuned, float)
    differences = after - before
    _, family = np.unique(np.arange(len(differences)) if families is None else families, return_inverse=True)
    sums, counts = np.bincount(family, differences), np.bincount(family)
    random = np.random.default_rng(seed)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    p_value: float | None = None
    if len(sums) == len(differences) and set(np.unique(differences)) <= {-1.0, 0.0, 1.0}:
        difference, p_value = add_two_interval(wins, losses, len(differences)), unconditional_p(wins, losses, len(sums))
    elif np.ptp(sums / counts) <= 1e-12 * np.abs(differences).max():
        difference = _unanimous(float(differences.mean()), len(sums))
    else:
        difference = _skew_corrected(sums, counts, bootstrap_ratio(sums, counts, random, resamples))
    limit = SKEWED_P if p_value is None else VERDICT_P
    if p_value is None:
        p_value = sign_flip(sums, random, resamples)
    return PairedTest(
        base=float(before.mean()),
        tuned=float(after.mean()),
        difference=difference,
        p_value=p_value,
        rows=len(differences),
        wins=wins,
        losses=losses,
        families=len(sums),
        adjusted_p=p_value,
        limit=limit,
        is_share=bool(min(before.min(), after.min()) >= 0 and max(before.max(), after.max()) <= 1),
    )


def add_two_interval(wins: int, losses: int, rows: int, level: float = LEVEL) -> Interval:
    """Return the difference of two shares on the same independent rows, with its interval.

    One side alone was right on `wins`, the other on `losses`: Wald's interval after two rows are added, one win and one
    loss (Bonett and Price 2012). Half a row to each of the four outcomes (Agresti and Min 2005) misses one difference
    in seven where few rows differ.
    """
    n = rows + 2
    middle = (wins - losses) / n
    half = two_sided_z(level) * math.sqrt(max(0.0, (wins + losses + 2) / n - middle * middle) / n)
    return Interval((wins - losses) / rows, max(-1.0, middle - half), min(1.0, middle + half), level)


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return all tests, with p-values that are corrected together.

    The chance of one false verdict or more among them is that of one test alone (Holm 1979).
    """
    order = sorted(range(len(tests)), key=lambda i: tests[i].p_value)
    adjusted, largest = list(tests), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, tests[i].p_value * (len(tests) - rank)))
        adjusted[i] = replace(tests[i], adjusted_p=largest)
    return adjusted


def in_order(deciding: Sequence[PairedTest], others: Sequence[PairedTest] = ()) -> list[PairedTest]:
    """All tests of one report, corrected so that the chance of one false verdict or more is that of one test alone.

    deciding: the claims that the report was made for, chosen in advance: they have the whole error. others: the rest,
    which are judged only where a deciding claim is shown, and then have the whole error again (a fixed sequence;
    Maurer, Hothorn and Lehmacher 1995).
    """
    first = holm(deciding)
    gate = min((test.adjusted_p for test in first), default=1.0)
    return [*first, *(replace(test, adjusted_p=max(gate, test.adjusted_p)) for test in holm(others))]


def _skew_corrected(sums: "np.ndarray", counts: "np.ndarray", resampled: Interval) -> Interval:
    """Return the wider of two intervals of Σ sums ÷ Σ counts, both (G,): `resampled`, and Student's.

    Student's is corrected for skewness by Hall (1992). Families of unequal size count as fewer (Carter, Schnepel and
    Steigerwald 2017).
    """
    n, total, mean = len(sums), float(counts.sum()), resampled.value
    rest = sums - mean * counts
    std = math.sqrt(float((rest**2).sum()) / (n - 1))
    skewness = float((rest**3).sum()) / std**3 * math.sqrt(n) / ((n - 1) * max(1, n - 2))  # of the mean
    t = student_quantile((1 + LEVEL) / 2, max(1.0, total**2 / float((counts**2).sum()) - 1))

    def end(quantile: float) -> float:
        if abs(skewness) > 1e-6:
            quantile = 3 / skewness * (math.cbrt(1 + skewness * (quantile - skewness / 6)) - 1)
        return mean - quantile * std * math.sqrt(n) / total

    return Interval(mean, min(resampled.low, end(t)), max(resampled.high, end(-t)))


def _unanimous(mean: float, n: int) -> Interval:
    """Return the interval when n families all differ by `mean`, of which resampling shows no spread.

    Had more than `unseen` of all families differed otherwise, one would have been seen (rule of three); at worst those
    say the opposite, by 1.
    """
    unseen, most = 1 - (1 - LEVEL) ** (1 / n), max(1.0, abs(mean))
    return Interval(mean, mean - unseen * (most + mean), mean + unseen * (most - mean))


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
