"""How the held-out loss falls from a short run of the planned model to a long one.

Both runs end with the learning rate at zero. With D tokens in the long run and D' in the short one:

    ln(L' / L) = r(z) (base + length ln(D' / 100k) + packing ln(bytes per token / 3))
    r(z) = (1 - e^{-slowing z}) / slowing,   z = ln(D / D')

A power law to an asymptote falls ever more slowly in ln D: r does so with one constant, and the bracket is the slope
where the short run ended. How many bytes the tokenizer packs in a token tells how regular the text is, and regular
text is learned faster. Text seen again teaches less: D counts U(1 + R(1 - e^{-x/R})) for U unique tokens seen 1 + x
times, R = 15 (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).
"""

import math
from dataclasses import dataclass

from settle.plan.estimate import Estimate

REPEATS = 15.0
SHORTEST = 80_000  # tokens of the shortest runs the law was fitted on; from shorter ones it is less sure


@dataclass(frozen=True)
class LossLaw:
    """The constants, as `bench/forecast.py` fits them. The standard deviation of ln L around the law is `apart`
    for two runs of one length and grows by `spread` with r."""

    base: float
    length: float
    packing: float
    slowing: float
    apart: float
    spread: float

    def reach(self, ratio: float) -> float:
        """r for D / D' = `ratio`."""
        return -math.expm1(-self.slowing * math.log(max(1.0, ratio))) / self.slowing

    def fall(self, short_tokens: float, tokens: float, bytes_per_token: float) -> float:
        """ln(L' / L) from `short_tokens` to `tokens`, both as worth of fresh text."""
        slope = self.base + self.length * math.log(short_tokens / 1e5) + self.packing * math.log(bytes_per_token / 3)
        return max(0.0, slope) * self.reach(tokens / short_tokens)

    def loss(self, short: float, stderr: float, short_tokens: float, tokens: float, bytes_per_token: float) -> Estimate:
        """The loss after `tokens`, nats per token, with its 80 % interval. `stderr`: of `short`."""
        value = short * math.exp(-self.fall(short_tokens, tokens, bytes_per_token))
        further = self.spread * self.reach(tokens / short_tokens)
        further *= 1 + max(0.0, math.log(SHORTEST / short_tokens)) / 2
        return Estimate.within(value, math.hypot(self.apart, further, stderr / short))


def worth(tokens: float, unique: float) -> float:
    """How many fresh tokens teach as much as `tokens` drawn again and again from `unique` ones."""
    if tokens <= unique:
        return tokens
    return unique * (1 + REPEATS * -math.expm1(-(tokens / unique - 1) / REPEATS))


# 2026-11-25, `python bench/forecast.py`: 12 runs on the standard library, other code, prose and dialogue, 0.2 to 2 M
# parameters, 0.4 to 2 M tokens. Far longer runs are an extrapolation.
LAW = LossLaw(base=0.183, length=-0.035, packing=0.225, slowing=0.20, apart=0.012, spread=0.014)
