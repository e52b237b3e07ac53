"""Architectures: a part holds the fields of its Hugging Face `config.json` and knows its own size and cost."""

from abc import abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from settle.base.registry import Part


class Decoder(nn.Module):
    """What an architecture builds: a causal language model on packed tokens.

    `compute_dtype` is the type of its matrix products and may be set at any time; parameters stay fp32.
    """

    compute_dtype: torch.dtype = torch.float32

    def forward(self, inputs: Tensor, cu_seqlens: Tensor) -> Tensor:
        """inputs (N,) token ids, cu_seqlens (S+1,) bounds of the segments → (N, D) after the final norm."""
        raise NotImplementedError

    @property
    def head(self) -> nn.Parameter:
        """The output table (V, D); the input table itself when they are tied."""
        raise NotImplementedError

    def head_cast(self) -> Tensor:
        """`head` in the compute type, without gradient."""
        raise NotImplementedError


class Architecture(Part):
    """A model family, sized by its fields."""

    model_type: ClassVar[str]
    TINY: ClassVar[Self]

    @abstractmethod
    def build(self, seed: int, device: str = "cpu") -> Decoder:
        """A freshly initialised model; the same seed gives the same weights everywhere."""

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
