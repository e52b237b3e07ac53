"""A number not yet known, with the interval that holds it four times out of five."""

import math
from dataclasses import asdict, dataclass
from statistics import NormalDist

TENTH = NormalDist().inv_cdf(0.9)  # 80 % lie within this many standard deviations


@dataclass(frozen=True)
class Estimate:
    """`low` to `high` is an 80 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def within(cls, value: float, spread: float) -> "Estimate":
        """Around `value` by a factor: `spread` is the standard deviation of its logarithm."""
        factor = math.exp(TENTH * spread)
        return cls(value, value / factor, value * factor)

    def scaled(self, factor: float) -> "Estimate":
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, known: float) -> "Estimate":
        return Estimate(self.value + known, self.low + known, self.high + known)

    def to_json(self) -> dict[str, float]:
        return asdict(self)
