"""How the held-out loss falls from a short run of the planned model to a long one.

Both runs end with the learning rate at zero. With D tokens in the long run, D' in the short one, F the loss of
knowing only token frequencies, L' the short run's loss and P parameters:

    ln L' / L = r(z) (b0 + b1 ln(F / L') + b2 ln(D' / 100k) + b3 ln(P / 1M)),   r(z) = (1 - e^{-c z}) / c,
    z = ln(D / D')

A power law to an asymptote falls ever more slowly in ln D, which r does with one constant; the bracket is the slope
where the short run ended. Text seen again teaches less: D counts U(1 + R(1 - e^{-x/R})) for U unique tokens seen
1 + x times, R = 15 (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).
"""

import math
from dataclasses import dataclass

from settle.plan.estimate import Estimate

REPEATS = 15.0


@dataclass(frozen=True)
class LossLaw:
    """Constants by bench/forecast.py. `spread`: standard deviation of ln L around the law at z = 1."""

    base: float
    progress: float
    length: float
    size: float
    slowing: float
    spread: float

    def fall(self, short: float, floor: float, short_tokens: float, tokens: float, parameters: float) -> float:
        """ln(L' / L) from `short` nats at `short_tokens` to `tokens` (both as worth of fresh text)."""
        if tokens <= short_tokens:
            return 0.0
        slope = (
            self.base
            + self.progress * math.log(max(floor / short, 1.0))
            + self.length * math.log(short_tokens / 1e5)
            + self.size * math.log(parameters / 1e6)
        )
        return max(0.0, slope) * self._reach(tokens / short_tokens)

    def _reach(self, ratio: float) -> float:
        return -math.expm1(-self.slowing * math.log(ratio)) / self.slowing

    def loss(
        self, short: float, stderr: float, floor: float, short_tokens: float, tokens: float, parameters: float
    ) -> Estimate:
        """The loss after `tokens`, nats per token, with its 80 % interval. `stderr`: of `short`."""
        value = short * math.exp(-self.fall(short, floor, short_tokens, tokens, parameters))
        further = self._reach(max(1.0, tokens / short_tokens))
        return Estimate.within(value, math.hypot(self.spread * further, stderr / short))


def worth(tokens: float, unique: float) -> float:
    """How many fresh tokens teach as much as `tokens` drawn again and again from `unique` ones."""
    if tokens <= unique:
        return tokens
    return unique * (1 + REPEATS * -math.expm1(-(tokens / unique - 1) / REPEATS))


# 2026-11-25
LAW = LossLaw(base=0.06, progress=0.15, length=0.0, size=0.0, slowing=0.15, spread=0.02)
