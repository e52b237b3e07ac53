"""Which type for which tensor, so that the sum of what they cost is least and their bytes fit: one of several for each
(a multiple-choice knapsack), solved exactly by dynamic programming over the bytes that are left.

Sizes of one model's tensors have a large common divisor, so there are few thousand different sums. Where there are more
they are rounded up, by less than a thousandth of the budget in all.

Letters: S sums of bytes.
"""

import math
from collections.abc import Mapping

import numpy as np

from settle.base.errors import UsageError

_MOST_SUMS = 1 << 16


def cheapest(
    costs: Mapping[str, Mapping[str, float]], num_bytes: Mapping[str, Mapping[str, int]], budget: int
) -> dict[str, str]:
    """Tensor → type. costs and num_bytes: tensor → type → number; budget: bytes for all of them together.

    Of two solutions that cost the same the one of fewer bytes is taken. Raises UsageError naming the smallest size that
    can be met when the budget is less.
    """
    smallest = {name: min(sizes.values()) for name, sizes in num_bytes.items()}
    spare = budget - sum(smallest.values())
    if spare < 0:
        raise UsageError(
            f"the tensors cannot be made smaller than {sum(smallest.values()) / 1e6:.1f} MB in all; "
            f"asked for were {budget / 1e6:.1f} MB",
            "ask for more, or prune the model first",
        )
    options = {name: _useful(costs[name], num_bytes[name]) for name in costs}
    unit = _unit(
        [size - smallest[name] for name, choices in options.items() for size, _ in choices], spare, len(options)
    )
    most = sum(max(-(-(size - smallest[name]) // unit) for size, _ in choices) for name, choices in options.items())
    num_sums = min(spare // unit, most) + 1
    best = np.zeros(num_sums)
    taken: list[np.ndarray] = []
    for name, choices in options.items():
        step = np.full(num_sums, np.inf)
        choice = np.zeros(num_sums, np.int16)
        for index, (size, kind) in enumerate(choices):
            extra = -(-(size - smallest[name]) // unit)
            if extra >= num_sums:
                break
            total = best[: num_sums - extra] + costs[name][kind]
            better = total < step[extra:]
            step[extra:][better] = total[better]
            choice[extra:][better] = index
        best = step
        taken.append(choice)
    chosen: dict[str, str] = {}
    left = int(np.argmin(best))
    for (name, choices), choice in zip(reversed(options.items()), reversed(taken), strict=True):
        size, kind = choices[choice[left]]
        chosen[name] = kind
        left -= -(-(size - smallest[name]) // unit)
    return {name: chosen[name] for name in options}


def _useful(costs: Mapping[str, float], num_bytes: Mapping[str, int]) -> list[tuple[int, str]]:
    """(bytes, type) of those for which no other is both as small and as good, smallest first."""
    useful: list[tuple[int, str]] = []
    for kind in sorted(costs, key=lambda k: (num_bytes[k], costs[k])):
        if not useful or costs[kind] < costs[useful[-1][1]]:
            useful.append((num_bytes[kind], kind))
    return useful


def _unit(sizes: list[int], spare: int, num_tensors: int) -> int:
    """Bytes that a sum is counted in: what divides all sizes, or more where that would make too many sums."""
    divisor = math.gcd(*sizes) or 1
    if spare // divisor < _MOST_SUMS:
        return divisor
    return max(divisor, spare // max(_MOST_SUMS, 16 * num_tensors))
