"""Types for a file of a given size, from a table of what each costs."""

from dataclasses import replace

from settle.base.errors import UsageError
from settle.formats import Weights
from settle.formats.gguf.types import GGML
from settle.shrink.types.budget import cheapest
from settle.shrink.types.quantize_file import file_bytes
from settle.shrink.types.sensitivity import Sensitivity

SLOW = frozenset(row.name for row in GGML.values() if row.slow)


def choose(file: Weights, table: Sensitivity, budget: int, slow_below: float = 0.9) -> dict[str, str]:
    """Tensor → type for the file of least predicted divergence that has at most `budget` bytes, header and all.

    slow_below: types that llama.cpp is slow at, as their values are looked up in tables, are taken where they bring the
    divergence below this share of what it is without them.

    Raises UsageError naming the smallest file when it cannot be met.
    """
    smallest = {name: min(sizes, key=lambda k: sizes[k]) for name, sizes in table.num_bytes.items()}
    least = file_bytes(file, smallest)
    if least > budget:
        raise UsageError(
            f"the smallest file of this model has {least / 1e6:.1f} MB; asked for were {budget / 1e6:.1f} MB",
            "ask for more, or prune the model first",
        )
    fixed = least - sum(table.num_bytes[name][kind] for name, kind in smallest.items())
    quick = _without(table, SLOW)
    found = _within(file, table, budget, budget - fixed)
    try:
        plain = _within(file, quick, budget, budget - fixed)
    except UsageError:  # too small for them
        return found
    return found if table.predicted(found) < slow_below * table.predicted(plain) else plain


def _within(file: Weights, table: Sensitivity, budget: int, spare: int) -> dict[str, str]:
    """spare: bytes for the tensors of the table, give or take the padding between them."""
    while True:
        kinds = cheapest(table.costs, table.num_bytes, spare)
        over = file_bytes(file, kinds) - budget
        if over <= 0:
            return kinds
        spare -= over


def _without(table: Sensitivity, types: frozenset[str]) -> Sensitivity:
    """The table without some types, where there is another."""
    kept = {name: [k for k in costs if k not in types] or list(costs) for name, costs in table.costs.items()}
    costs = {name: {k: table.costs[name][k] for k in kinds} for name, kinds in kept.items()}
    sizes = {name: {k: table.num_bytes[name][k] for k in kinds} for name, kinds in kept.items()}
    return replace(table, costs=costs, num_bytes=sizes)
