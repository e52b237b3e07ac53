"""The parts of an architecture's contract: its size and cost, Hugging Face's layout, and GGUF's."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self, TypeVar

import numpy as np
from torch import Tensor

from settle.formats import LazyTensor

HfConfig = Mapping[str, object]
GgufMetadata = Mapping[str, object]
Rows = TypeVar("Rows", np.ndarray, Tensor)


class Size(ABC):
    """How large a model is, and what it costs."""

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
    def activation_bytes_per_token(
        self,
        context: int,
        bytes_per_number: int,
        adapter: Mapping[str, int] | None = None,
        is_flash: bool = False,
    ) -> float:
        """Bytes kept between forward and backward a token, in full segments of `context` tokens.

        adapter: linear → numbers that an adapter keeps of it, all else frozen; None when everything is trained.
        is_flash: whether attention is a kernel that keeps no probabilities, where a layer's shape allows it
        (`settle/model/layers/attention.keeps_no_probabilities`).
        """

    @abstractmethod
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in the order in which they are met."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (outputs, inputs) of every linear of the layers; the head is none of them."""
        named = self.parameters().items()
        return {n.removesuffix(".weight"): (s[0], s[1]) for n, s in named if len(s) == 2 and ".layers." in n}


class HfLayout(ABC):
    """Names and settings as in Hugging Face's files."""

    model_type: ClassVar[str]

    @abstractmethod
    def hf_names(self) -> dict[str, str]:
        """Parameter name → name in Hugging Face's safetensors."""

    @abstractmethod
    def to_hf_config(self) -> dict[str, object]:
        """`config.json` that `transformers` loads."""

    @classmethod
    @abstractmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        """From a `config.json`. Raises FormatError naming the key that this family does not support."""


class GgufLayout(ABC):
    """Names, metadata and order of rows as in GGUF files."""

    gguf_architecture: ClassVar[str]

    @abstractmethod
    def gguf_names(self) -> dict[str, str]:
        """Map each parameter's name to its name in a GGUF file, in the file's order.

        Parameters that share a name are one tensor there: the first is its slice 0 along a new first axis, and so on
        (experts).
        """

    @abstractmethod
    def gguf_metadata(self) -> dict[str, str | float]:
        """Metadata keys that say what llama.cpp must compute. Raises FormatError for what it cannot."""

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        """Vectors that a GGUF file holds as tensors and that are no parameters: factors of rotary frequencies."""
        return {}

    @classmethod
    @abstractmethod
    def from_gguf(cls, metadata: GgufMetadata, tensors: Mapping[str, LazyTensor]) -> Self:
        """Read a GGUF file's metadata and lazy tensors (name → `.shape`, `.load()`; only constants are loaded).

        Raises FormatError naming the key that is missing or not supported.
        """

    def to_gguf(self, name: str, values: Rows) -> Rows:
        """Return a parameter's values (numpy or torch) as a GGUF file holds them.

        Matrices change the order of their rows at most, so rows of quantized blocks may be given too.
        """
        return values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        """Invert `to_gguf`."""
        return values
