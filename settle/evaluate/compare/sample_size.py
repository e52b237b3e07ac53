"""How many rows a verdict takes: what so many can show, how many more would decide, and whether the rest still can.

Legend: n rows, D draws, G different values.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from settle.base.statistics import VERDICT_P, Interval, PairedTest, two_sided_z
from settle.data.layouts import Example
from settle.data.split import row_families
from settle.evaluate.compare.cases import cases, spread
from settle.evaluate.tasks import best_suited, named

POWER = 0.8  # how often a difference that can be seen is seen
NOISE = 0.2  # share of rows, beside the difference itself, that one of two candidates gets right and the other does not
MOST_ROWS = 5_000  # more rows than anybody gives
DRAWS = 400
HARDLY = 0.05  # chance below which asking the rest is not worth its time
SMALL = (0.05, 0.1, 0.2, 0.4)  # differences of two shares that more rows are offered to show: the first that they can


def unshown(test: PairedTest) -> str:
    """Say why a difference is not shown although its interval leaves out zero; "" elsewhere."""
    if test.is_shown or test.difference.low <= 0 <= test.difference.high:
        return ""
    corrected = f", {test.adjusted_p:.2g} beside the other claims" if test.adjusted_p > test.p_value else ""
    return (
        f"too few rows differ to rule out chance, which shows as much with p = {test.p_value:.2g}{corrected}: "
        f"a verdict takes {test.limit:g} or less"
    )


def smallest_visible(rows: int, error: float) -> float | None:
    """Return the smallest difference between two shares that `rows` rows show in four cases of five.

    It is that of the exact sign test with a two-sided `error`; None where not even a candidate that is always right
    differs visibly from one that never is. Beside the difference the two are taken to differ on a fifth of the rows
    (NOISE).
    """
    if sign_test_power(rows, 1.0, error) < POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 0.005:
        middle = (low + high) / 2
        low, high = (low, middle) if sign_test_power(rows, middle, error) >= POWER else (middle, high)
    return high


@dataclass(frozen=True)
class Judgement:
    """What rows can show, known before anything is measured.

    Attributes:
        visible: the smallest difference that they show in four cases of five, None where they cannot show any.
    """

    measure: str  # the score that decides
    rows: int
    families: int  # of rows that are independent of each other
    visible: float | None

    @property
    def sentence(self) -> str:
        """What to say before the run."""
        number = f"{self.rows:,} row{'s' if self.rows != 1 else ''}"
        if self.families < self.rows:
            number += f" in {self.families:,} families of like ones"
        text = f"{number} judge{'s' if self.rows == 1 else ''} the result, by {self.measure}"
        if self.visible is None:
            least = next(n for n in range(1, MOST_ROWS) if smallest_visible(n, VERDICT_P) is not None)
            return f"{text}: too few to show any difference, which takes {least} or more that are not alike"
        return f"{text}: a difference of {100 * self.visible:.0f} points or more would be seen in four cases of five"


def judgement(examples: Iterable[Example], score: str | None, limit: int) -> Judgement | None:
    """Return what at most `limit` of these rows can show of two models, by the score named or the one that suits them.

    None for plain text, which is compared by its loss.
    """
    rows = list(examples)
    questions = spread(cases(rows), limit)
    if not questions:
        return None
    title = named(score).title if score else best_suited(questions).title
    families = len(set(row_families([rows[case.number - 1] for case in questions])))
    return Judgement(title, len(questions), families, smallest_visible(families, VERDICT_P))


def still_possible(difference: Interval, rows: int, is_share: bool, noun: str, error: float = VERDICT_P) -> str:
    """Say what is not ruled out of a difference that is not shown, either way, and the cheapest next step."""
    unit, least = (" points", 0.005) if is_share else ("", 0.0005)
    sides = (("better", difference.high), ("worse", -difference.low))
    ends = [f"{100 * end:.0f}{unit} {way}" if is_share else f"{end:.3f} {way}" for way, end in sides if end >= least]
    return f"up to {' or '.join(ends)} is not ruled out; {next_step(difference, rows, is_share, noun, error)}"


def next_step(difference: Interval, rows: int, is_share: bool, noun: str, error: float = VERDICT_P) -> str:
    """Say how many rows more, like those measured, would show a small difference in four cases of five.

    At the spread that the interval has: 5 points, or the next of SMALL that so many rows as anybody gives can show. Of
    scores without bounds, a difference as large as the one measured.
    """
    if not math.isfinite(difference.high - difference.low):
        return f"more {noun} would tell"
    spread = (difference.high - difference.low) / 2 / two_sided_z(difference.level) * math.sqrt(rows)
    z = NormalDist().inv_cdf(1 - error / 2) + NormalDist().inv_cdf(POWER)
    for size in SMALL if is_share else filter(None, [abs(difference.value)]):
        needed = math.ceil(max((z * spread / size) ** 2, math.log2(2 / error))) - rows
        shown = f"{100 * size:.0f} points" if is_share else "as much as was measured"
        if needed <= 0:
            return f"these {noun} would show {shown} in four cases of five"
        if needed <= MOST_ROWS:
            digits = 1 - int(math.log10(needed)) if needed > 20 else 0
            return f"about {round(needed, digits):,} more {noun} would show {shown}"
    return f"more {noun} would hardly tell"


def sign_test_power(rows: int, difference: float, error: float) -> float:
    """Return how often the two-sided exact sign test shows a true `difference` on so many rows."""
    differ = difference + NOISE * (1 - difference)
    wins = np.arange(rows + 1)
    power = 0.0
    for unequal, chance in enumerate(_binomial(rows, differ)):
        if chance < 1e-9:
            continue
        tail = np.cumsum(_binomial(unequal, 0.5)[::-1])[::-1]  # of at least so many wins
        shown = wins[: unequal + 1][2 * tail <= error]
        power += chance * float(_binomial(unequal, (differ + difference) / (2 * differ))[shown].sum())
    return power


def more_rows(differences: "Sequence[float] | np.ndarray", error: float) -> int | None:
    """Return how many rows more would show, in four cases of five, the difference of the rows (n,) seen so far.

    None where that is more than anybody gives.
    """
    values = np.asarray(differences, float)
    mean, spread = float(values.mean()), float(values.std())
    if abs(mean) * math.sqrt(MOST_ROWS) < spread or not mean:
        return None
    z = NormalDist().inv_cdf(1 - error / 2) + NormalDist().inv_cdf(POWER)
    needed = math.ceil(max(z * z * spread * spread / (mean * mean), math.log2(2 / error)))
    return max(1, needed - len(values)) if needed <= MOST_ROWS else None


def chance_to_decide(differences: "Sequence[float] | np.ndarray", left: int, error: float, seed: int = 0) -> float:
    """Return the predictive probability that `left` rows more end in a verdict (Lee and Liu 2008).

    Rows are drawn from the differences (n,) seen so far, each with a random weight (Rubin 1981), and from one win and
    one loss of half a row each, so that a few rows that agree do not count as certain.
    """
    values = np.asarray(differences, float)
    if not left:
        return 0.0
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    seen, times = np.unique(values, return_counts=True)  # G different ones: equal rows share one weight, their sum
    seen, times = np.concatenate([seen, [largest, -largest]]), np.concatenate([times, [0.5, 0.5]])
    random = np.random.default_rng(seed)
    weights = random.dirichlet(times, DRAWS)  # (D, G + 2)
    critical = NormalDist().inv_cdf(1 - error / 2)
    counts = random.multinomial(left, weights)  # (D, G + 2): how often each value comes again
    total = values.sum() + counts @ seen
    size = np.sqrt((values**2).sum() + counts @ seen**2)
    return float(np.mean(np.abs(total) >= critical * np.maximum(size, 1e-12)))


def _binomial(rows: int, share: float) -> np.ndarray:
    """Return the chance of 0 … `rows` hits, (rows + 1,)."""
    hits = np.arange(rows + 1)
    if share in (0.0, 1.0):
        return np.asarray(hits == (rows if share else 0), float)
    logs = np.array([math.lgamma(rows + 1) - math.lgamma(h + 1) - math.lgamma(rows - h + 1) for h in hits])
    chances: np.ndarray = np.exp(logs + hits * math.log(share) + (rows - hits) * math.log1p(-share))
    return chances
