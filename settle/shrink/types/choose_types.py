"""Types for a file of a given size, from a table of what each costs."""

from settle.base.errors import UsageError
from settle.formats import Weights
from settle.formats.gguf.types import GGML
from settle.shrink.types.budget import cheapest
from settle.shrink.types.cost_table import CostTable
from settle.shrink.types.quantize_file import file_bytes

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
