"""How long the answers that are missing will take: what was expected of each arm, and what is measured as it goes."""

import math
import statistics
from collections.abc import Sequence

from settle.base.statistics import Interval

# standard deviations of the logarithm of an answer's seconds
EXPECTED_SPREAD = 0.35  # of what was expected before anything ran
UNKNOWN_SPREAD = 0.7  # of an arm of which nothing is known but how long the others take
LEAST_SPREAD = 0.08  # of what was measured: other programs come and go


class Pace:
    """The seconds that an answer of one arm takes. expected: before anything ran, None where nobody knows."""

    def __init__(self, expected: float | None = None) -> None:
        self._expected = expected
        self._turns: list[tuple[int, float]] = []

    def record(self, answers: int, seconds: float) -> None:
        """What so many answers took together."""
        if answers and seconds > 0:
            self._turns.append((answers, seconds))

    @property
    def estimate(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the logarithm of an answer's seconds: what was expected and what was measured,
        each weighted by its precision. None where nothing is known."""
        parts = []
        if self._expected:
            parts.append((math.log(self._expected), EXPECTED_SPREAD))
        if self._turns:
            logs = [math.log(s / n) for n, s in self._turns]
            spread = statistics.stdev(logs) if len(logs) > 1 else EXPECTED_SPREAD
            mean = math.log(sum(s for _, s in self._turns) / sum(n for n, _ in self._turns))
            parts.append((mean, max(LEAST_SPREAD, spread / math.sqrt(len(logs)))))
        if not parts:
            return None
        precision = sum(spread**-2 for _, spread in parts)
        return sum(log * spread**-2 for log, spread in parts) / precision, precision**-0.5


def seconds_left(paces: Sequence[Pace], answers: Sequence[int]) -> Interval | None:
    """The seconds that so many further answers of each arm take, with the interval of a forecast; None where nothing is
    known of any arm. A busy machine slows all of them down alike, so their errors add up."""
    if not any(answers):
        return Interval(0.0, 0.0, 0.0)
    known = [estimate for pace in paces if (estimate := pace.estimate)]
    if not known:
        return None
    others = statistics.fmean(log for log, _ in known), UNKNOWN_SPREAD
    parts = [
        (n * math.exp(log), spread)
        for pace, n in zip(paces, answers, strict=True)
        for log, spread in [pace.estimate or others]
    ]
    total = sum(seconds for seconds, _ in parts)
    return Interval.log_normal(total, sum(seconds * spread for seconds, spread in parts) / total)


def time_text(seconds: float) -> str:
    """Seconds up to a minute and a half, then minutes."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
