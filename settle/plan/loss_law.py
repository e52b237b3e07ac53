"""How much of the loss a model's size and its text leave, and what text is worth that is seen again."""

import math

REPEATS = 15.0
# Loss that a model's size and its text leave: Hoffmann et al. 2022, arXiv 2203.15556, approach 3.
SIZE_TERM, SIZE_POWER = 406.4, 0.34
TEXT_TERM, TEXT_POWER = 410.7, 0.28


def left_over(parameters: float, fresh_tokens: float) -> float:
    """Return the part of the loss that more parameters or more text would take away, up to a unit."""
    return SIZE_TERM / math.pow(parameters, SIZE_POWER) + TEXT_TERM / math.pow(fresh_tokens, TEXT_POWER)


def worth(tokens: float, unique: float, repeats: float = REPEATS) -> float:
    """Return how many fresh tokens teach as much as `tokens` drawn again and again from `unique` ones.

    U (1 + R (1 - e^(-x/R))) for U unique tokens seen 1 + x times (Muennighoff et al. 2023, arXiv 2305.16264, eq. 5).
    """
    if tokens <= unique:
        return tokens
    return unique * (1 + repeats * -math.expm1(-(tokens / unique - 1) / repeats))
