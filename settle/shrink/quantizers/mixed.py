"""One of llama.cpp's own mixes, such as Q4_K_M."""

from pydantic import Field, field_validator

from settle.formats import Weights
from settle.shrink.quantizers import Quantizer
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import MIXES, Choice, mix_types


class Mixed(Quantizer):
    """The types that `llama-quantize` gives."""

    recipe: str = Field("Q4_K_M", description="llama.cpp's name of the mix")

    @field_validator("recipe")
    @classmethod
    def _known(cls, value: str) -> str:
        if value.upper() not in MIXES:
            raise ValueError(f"there is no {value!r}; known: {', '.join(MIXES)}")
        return value.upper()

    def kinds(self, file: Weights, importance: Importance | None = None) -> dict[str, Choice]:
        return mix_types(file, self.recipe, importance is not None)

    @property
    def file_type(self) -> str:
        return self.recipe
