"""Which type for which tensor, so that the sum of what they cost is least and their bytes fit.

One of several for each (a multiple-choice knapsack), solved exactly by dynamic programming over the bytes that are
left. Costs are measured by `sensitivity.py`.

Sizes of one model's tensors have a large common divisor, so there are few thousand different sums. Where there are more
they are rounded up, by less than a thousandth of the budget in all.

Letters: S sums of bytes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from settle.base.errors import DataError, UsageError
from settle.base.files import read_json, write_json
from settle.formats import Weights
from settle.formats.gguf.types import GGML
from settle.shrink.types.quantize_file import file_bytes


@dataclass(frozen=True)
class CostTable:
    """costs: tensor → type → nats per token. num_bytes: tensor → type → bytes. about: how it was measured."""

    costs: Mapping[str, Mapping[str, float]]
    num_bytes: Mapping[str, Mapping[str, int]]
    about: Mapping[str, object] = field(default_factory=dict)

    def predicted(self, kinds: Mapping[str, str]) -> float:
        """Nats per token that a file with these types diverges. A tensor that stays as it is costs nothing."""
        return sum(costs[kinds[name]] for name, costs in self.costs.items() if kinds.get(name) in costs)

    def without(self, types: frozenset[str]) -> "CostTable":
        """Return the table without some types, for tensors that have another."""
        left = {name: [k for k in costs if k not in types] or list(costs) for name, costs in self.costs.items()}
        costs = {name: {k: self.costs[name][k] for k in kinds} for name, kinds in left.items()}
        sizes = {name: {k: self.num_bytes[name][k] for k in kinds} for name, kinds in left.items()}
        return CostTable(costs, sizes, self.about)

    def save(self, path: Path) -> None:
        write_json(path, {"about": self.about, "costs": self.costs, "num_bytes": self.num_bytes})

    @classmethod
    def open(cls, path: Path) -> "CostTable":
        """Read a table. Raises DataError for another file."""
        stored = read_json(path)
        try:
            return cls(stored["costs"], stored["num_bytes"], stored["about"])
        except (KeyError, TypeError):
            raise DataError(
                f"{path.name} is no table of sensitivities", "delete it, so that it is measured again"
            ) from None


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


_SLOW_TYPES = frozenset(row.name for row in GGML.values() if row.slow)


def cheapest_types(file: Weights, table: CostTable, budget: int, slow_below: float) -> dict[str, str]:
    """Tensor → type for the file of least predicted divergence that has at most `budget` bytes, header and all.

    slow_below: types that llama.cpp reads slowly, as their values are looked up in tables, are taken where they bring
    the divergence below this share of what it is without them.

    Raises UsageError naming the smallest file when the budget cannot be met.
    """
    smallest = {name: min(sizes, key=lambda k: sizes[k]) for name, sizes in table.num_bytes.items()}
    least = file_bytes(file, smallest)
    if least > budget:
        raise UsageError(
            f"the smallest file of this model has {least / 1e6:.1f} MB; {budget / 1e6:.1f} MB were asked for",
            "ask for more, or prune the model first",
        )
    spare = budget - least + sum(table.num_bytes[name][kind] for name, kind in smallest.items())
    best = _within(file, table, budget, spare)
    try:
        fast = _within(file, table.without(_SLOW_TYPES), budget, spare)
    except UsageError:  # only slow types are small enough
        return best
    return best if table.predicted(best) < slow_below * table.predicted(fast) else fast


def _within(file: Weights, table: CostTable, budget: int, spare: int) -> dict[str, str]:
    """spare: bytes for the tensors of the table, give or take the padding between them."""
    while True:
        kinds = cheapest(table.costs, table.num_bytes, spare)
        over = file_bytes(file, kinds) - budget
        if over <= 0:
            return kinds
        spare -= over
