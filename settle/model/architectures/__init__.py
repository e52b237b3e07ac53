"""Architectures: a part holds the fields of its Hugging Face `config.json` and knows its own size and cost."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch

from settle.base.registry import Part
from settle.model.decoder import Decoder
from settle.model.options import DecoderOptions

__all__ = ["Architecture", "Decoder"]


class Architecture(Part):
    """A model family, sized by its fields."""

    model_type: ClassVar[str]
    TINY: ClassVar[Self]

    @abstractmethod
    def options(self) -> DecoderOptions:
        """What the layers must be."""

    def build(self, seed: int, device: str = "cpu") -> Decoder:
        """A freshly initialised model; the same seed gives the same weights everywhere."""
        model = self.skeleton("cpu")
        model.initialise(torch.Generator().manual_seed(seed))
        return model.to(device)

    def skeleton(self, device: str = "meta") -> Decoder:
        """The model with weights that hold nothing yet; on "meta" they take no memory either."""
        with torch.device(device):
            return Decoder(self.options())

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Trainable numbers; tied tables count once."""

    @property
    @abstractmethod
    def num_non_embedding_parameters(self) -> int:
        """Trainable numbers without the input and output tables."""

    @abstractmethod
    def flops_per_token(self, context: int) -> float:
        """Training FLOPs (forward and backward, products only) a token, in full segments of `context` tokens."""

    @abstractmethod
    def activation_bytes_per_token(self, context: int, bytes_per_number: int) -> float:
        """Bytes kept between forward and backward a token, in full segments of `context` tokens."""

    @abstractmethod
    def hf_names(self) -> dict[str, str]:
        """Parameter name → name in Hugging Face's safetensors."""

    @abstractmethod
    def gguf_names(self) -> dict[str, str]:
        """Parameter name → name in a GGUF file."""

    @abstractmethod
    def to_hf_config(self) -> dict[str, Any]:
        """`config.json` that `transformers` loads."""

    @classmethod
    @abstractmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Self:
        """From a `config.json`. Raises FormatError naming the key that this family does not do."""

    @classmethod
    @abstractmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """The shape of this family whose number of parameters comes nearest."""
