"""Quantizers: a part chooses the type of every tensor; one loop (`quantizing.py`) writes the file."""

from abc import abstractmethod
from collections.abc import Mapping

from settle.base.registry import Part
from settle.formats import Weights
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import Choice


class Quantizer(Part):
    """A way of choosing types."""

    @abstractmethod
    def kinds(self, file: Weights, importance: Importance | None = None) -> dict[str, Choice]:
        """The type of every tensor of a GGUF file. importance: the one the file is going to be quantized with."""

    @property
    def file_type(self) -> str | None:
        """The recipe whose number the file carries; None: that of its most frequent type."""
        return None


def types_of(choices: Mapping[str, Choice]) -> dict[str, str]:
    """Tensor name → type, as `quantize_gguf` takes it."""
    return {name: choice.kind for name, choice in choices.items()}
