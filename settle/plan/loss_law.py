"""How the held-out loss falls from a short run of the planned model to a long one.

Both runs end with the learning rate at zero. With D tokens in the long run and D' in the short one:

    ln(L' / L) = r(z) (base + length ln(D' / 100k) + packing ln(bytes per token / 3))
    r(z) = (1 - e^{-slowing z}) / slowing,   z = ln(D / D')

A power law to an asymptote falls ever more slowly in ln D: r does so with one constant, and the bracket is the slope
where the short run ended. How many bytes the tokenizer packs in a token tells how regular the text is, and regular
text is learned faster. Text seen again teaches less: D counts U(1 + R(1 - e^{-x/R})) for U unique tokens seen 1 + x
times, R = 15 (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).

The constants stand for models of about REFERENCE parameters. A smaller one is held back sooner by its size, a larger
one later: the result is multiplied by how much less (or more) of the loss of Hoffmann et al. it loses on the way.
"""

import math
from dataclasses import dataclass

from settle.base.statistics import Interval

REPEATS = 15.0
# Loss that a model's size and its text leave: Hoffmann et al. 2022, arXiv 2203.15556, approach 3.
SIZE_TERM, SIZE_POWER = 406.4, 0.34
TEXT_TERM, TEXT_POWER = 410.7, 0.28
REFERENCE = 600_000  # parameters of the runs that the law was fitted on, their geometric mean
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

    def loss(
        self,
        short: float,
        stderr: float,
        short_tokens: float,
        tokens: float,
        bytes_per_token: float,
        parameters: float,
    ) -> Interval:
        """The loss after `tokens`, nats per token, with its 80 % interval. `stderr`: of `short`."""
        tokens = max(tokens, short_tokens)
        size = share_left(parameters, short_tokens, tokens) / share_left(REFERENCE, short_tokens, tokens)
        value = short * min(1.0, size * math.exp(-self.fall(short_tokens, tokens, bytes_per_token)))
        further = self.spread * self.reach(tokens / short_tokens)
        further *= 1 + max(0.0, math.log(SHORTEST / short_tokens)) / 2
        return Interval.log_normal(value, math.hypot(self.apart, further, stderr / short))


def left_over(parameters: float, fresh_tokens: float) -> float:
    """The part of the loss that more parameters or more text would take away, up to a unit."""
    return SIZE_TERM / math.pow(parameters, SIZE_POWER) + TEXT_TERM / math.pow(fresh_tokens, TEXT_POWER)


def share_left(parameters: float, short_tokens: float, tokens: float) -> float:
    """What remains of `left_over` when the text grows from `short_tokens` to `tokens`."""
    return left_over(parameters, tokens) / left_over(parameters, short_tokens)


def worth(tokens: float, unique: float) -> float:
    """How many fresh tokens teach as much as `tokens` drawn again and again from `unique` ones."""
    if tokens <= unique:
        return tokens
    return unique * (1 + REPEATS * -math.expm1(-(tokens / unique - 1) / REPEATS))


# 2026-11-25, `python bench/forecast.py`: 12 runs on the standard library, other code, prose and dialogue, 0.2 to 2 M
# parameters, 0.4 to 2 M tokens. The term for the size and the spread: 8 runs of 0.06 to 0.2 M parameters, 5 M tokens,
# bench/settled_runs.py. Far longer runs are an extrapolation.
LAW = LossLaw(base=0.183, length=-0.035, packing=0.225, slowing=0.20, apart=0.012, spread=0.024)
