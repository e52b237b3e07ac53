"""What each tensor of a model costs in each type that it can have: measured by `sensitivity.py`, read by quantizers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from settle.base.errors import DataError
from settle.base.files import read_json, write_json


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
        """The table without some types, for tensors that have another."""
        left = {name: [k for k in costs if k not in types] or list(costs) for name, costs in self.costs.items()}
        costs = {name: {k: self.costs[name][k] for k in kinds} for name, kinds in left.items()}
        sizes = {name: {k: self.num_bytes[name][k] for k in kinds} for name, kinds in left.items()}
        return CostTable(costs, sizes, self.about)

    def save(self, path: Path) -> None:
        write_json(path, {"about": self.about, "costs": self.costs, "num_bytes": self.num_bytes})

    @classmethod
    def open(cls, path: Path) -> "CostTable":
        """Raises DataError for a file that is no such table."""
        stored = read_json(path)
        try:
            return cls(stored["costs"], stored["num_bytes"], stored["about"])
        except (KeyError, TypeError):
            raise DataError(
                f"{path.name} is no table of sensitivities", "delete it, so that it is measured again"
            ) from None
