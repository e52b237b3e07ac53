"""Did the held-out loss fall, or does it only vary? Losses of the same blocks are compared."""

import math
from collections.abc import Sequence

NOISE_STDERRS = 2.0  # a fall of the loss by less than so many standard errors is no learning


def is_noise(before: Sequence[float], after: Sequence[float], stderrs: float = NOISE_STDERRS) -> bool:
    """Whether losses of the same blocks fell by no more than so many standard errors of their mean difference; False of
    fewer than two blocks."""
    if len(before) < 2:
        return False
    falls = [b - a for b, a in zip(before, after, strict=True)]
    mean = sum(falls) / len(falls)
    stderr = math.sqrt(sum((f - mean) ** 2 for f in falls) / (len(falls) - 1) / len(falls))
    return mean <= stderrs * stderr
