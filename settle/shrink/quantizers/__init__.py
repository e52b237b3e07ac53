"""Quantizers: each chooses a type for every tensor; one loop (`types/quantize_file.py`) writes the file."""

from abc import abstractmethod
from typing import Protocol

from settle.base.registry import Part
from settle.formats import Weights
from settle.shrink.types.budget import CostTable
from settle.shrink.types.imatrix import Importance


class QuantizerInput(Protocol):
    """A model that types are chosen for, and what is known of it."""

    @property
    def file(self) -> Weights:
        """The model as a GGUF file that is not quantized."""

    @property
    def importance(self) -> Importance:
        """How much each input of each tensor matters; the file will be quantized with it. Measured when first asked."""

    @property
    def costs(self) -> CostTable:
        """What each tensor costs in each type. Measured when first asked."""


class Quantizer(Part):
    """The contract. Settings are fields."""

    @abstractmethod
    def choose_types(self, model: QuantizerInput, num_bytes: int) -> dict[str, str]:
        """Map each tensor to ggml's name of a type, for a file of at most `num_bytes`, header and all.

        A tensor that is not named stays as it is. Raises UsageError when no file of this quantizer is so small, naming
        the smallest.
        """
