"""Types chosen for this very model: the least divergence that a size allows, by what each tensor was measured to cost.

Nothing of a mix of llama.cpp's is in it, so it may only tie with one where that happens to be the best.
"""

from pathlib import Path

from pydantic import Field

from settle.base.errors import UsageError
from settle.formats import Weights
from settle.shrink.quantizers import Quantizer
from settle.shrink.types.choose_types import choose
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import Choice, mix_types
from settle.shrink.types.quantize_file import file_bytes
from settle.shrink.types.sensitivity import Sensitivity


class Auto(Quantizer):
    """The types of least predicted divergence for a size."""

    table: str = Field("", description="path of the table of sensitivities")
    size: int = Field(0, ge=0, description="bytes that the file may have; 0: those of the recipe `like`")
    like: str = Field("Q4_K_M", description="recipe of llama.cpp whose size is taken")

    def kinds(self, file: Weights, importance: Importance | None = None) -> dict[str, Choice]:
        if not self.table:
            raise UsageError(
                "auto chooses by what each tensor costs, and has no table of it", "measure the model first"
            )
        table = Sensitivity.open(Path(self.table))
        mix = mix_types(file, self.like, importance is not None)
        size = self.size or file_bytes(file, {name: choice.kind for name, choice in mix.items()})
        chosen = choose(file, table, size)
        found = {}
        for name in mix:
            kind = chosen.get(name, file.tensors[name].dtype)
            num_bytes = table.num_bytes[name][kind] if name in chosen else file.tensors[name].num_bytes
            found[name] = Choice(kind, kind, num_bytes)
        return found
