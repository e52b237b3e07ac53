"""Training against inference over a model's life: the size that is cheapest in all for the loss that is asked for.

A smaller model trained on more text reaches the same loss, and every token that it serves costs less. Source: Sardana
et al., Beyond Chinchilla-Optimal, arXiv 2401.00448; the loss by size and text is Hoffmann's (settle/plan/loss_law.py).
"""

import math
from dataclasses import dataclass

from settle.plan.loss_law import SIZE_POWER, SIZE_TERM, TEXT_POWER, TEXT_TERM, left_over

TRAIN, SERVE = 6.0, 2.0  # operations a weight and token
# Price of an operation while serving over one while training: devices that serve read memory and wait. Servers in use
# reach a fifth to a half of the share of the rate that training does.
WEIGHTS = (2.0, 5.0, 3.0)  # low, high, expected
STEPS, SMALLEST = 400, 0.02  # of the search, down to this share of the size


@dataclass(frozen=True)
class Life:
    """serving: share of all that serving costs, low to high and expected. parameters, tokens: of the cheapest model of
    the same loss. saving: of the whole."""

    serving: tuple[float, float, float]
    parameters: float
    tokens: float
    saving: float


def life(parameters: float, tokens: float, served: float) -> Life:
    """Of a model of so many weights, trained on `tokens` and read or written `served` tokens with."""
    loss = left_over(parameters, tokens)
    shares = tuple(_serving(parameters, tokens, served, weight) for weight in WEIGHTS)
    whole = _total(parameters, tokens, served, WEIGHTS[2])
    best = (whole, parameters, tokens)
    for step in range(1, STEPS):
        size = parameters * SMALLEST ** (step / STEPS)
        text = tokens_for(size, loss)
        if text is None:
            break
        best = min(best, (_total(size, text, served, WEIGHTS[2]), size, text))
    return Life((shares[0], shares[1], shares[2]), best[1], best[2], 1 - best[0] / whole)


def tokens_for(parameters: float, loss: float) -> float | None:
    """Text that a model of this size needs for the same reducible loss; None where no text is enough."""
    left = loss - SIZE_TERM / math.pow(parameters, SIZE_POWER)
    return math.pow(TEXT_TERM / left, 1 / TEXT_POWER) if left > 0 else None


def _total(parameters: float, tokens: float, served: float, weight: float) -> float:
    return parameters * (TRAIN * tokens + weight * SERVE * served)


def _serving(parameters: float, tokens: float, served: float, weight: float) -> float:
    return weight * SERVE * served * parameters / _total(parameters, tokens, served, weight)
