"""Types chosen for this very model: the least divergence that a size allows, by what each tensor was measured to cost.

Nothing of a mix of llama.cpp's is in it, so it only ties with one where that happens to be the best.
"""

from pydantic import Field

from settle.shrink.quantizers import Quantizer, QuantizerInput
from settle.shrink.types.budget import cheapest_types


class Auto(Quantizer):
    """The types of least predicted divergence."""

    slow_below: float = Field(
        0.9,
        ge=0,
        le=1,
        description="take types that llama.cpp reads slowly where the divergence falls below this share for it",
    )

    def choose_types(self, model: QuantizerInput, num_bytes: int) -> dict[str, str]:
        return cheapest_types(model.file, model.costs, num_bytes, self.slow_below)
