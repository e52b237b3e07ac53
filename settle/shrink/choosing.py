"""Types for a file of a given size, from a table of what each costs."""

from collections.abc import Mapping

from settle.base.errors import UsageError
from settle.formats import Weights
from settle.shrink.budget import cheapest
from settle.shrink.quantizing import file_bytes
from settle.shrink.sensitivity import Sensitivity


def choose(
    file: Weights, table: Sensitivity, budget: int, metadata: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Tensor → type for the file of least predicted divergence that has at most `budget` bytes, header and all.

    Raises UsageError naming the smallest file when it cannot be met.
    """
    smallest = {name: min(sizes, key=lambda k: sizes[k]) for name, sizes in table.num_bytes.items()}
    least = file_bytes(file, smallest, metadata=metadata)
    if least > budget:
        raise UsageError(
            f"the smallest file of this model has {least / 1e6:.1f} MB; asked for were {budget / 1e6:.1f} MB",
            "ask for more, or prune the model first",
        )
    fixed = least - sum(table.num_bytes[name][kind] for name, kind in smallest.items())
    spare = budget - fixed
    while True:
        kinds = cheapest(table.costs, table.num_bytes, spare)
        over = file_bytes(file, kinds, metadata=metadata) - budget
        if over <= 0:
            return kinds
        spare -= over  # padding between tensors, a few bytes each
