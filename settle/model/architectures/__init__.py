"""Architectures: a part holds the fields of its Hugging Face `config.json` and knows its own size, its cost, and where
its parameters lie in files.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch

from settle.base.errors import FormatError
from settle.base.registry import Part
from settle.formats.gguf import embeds
from settle.model.config import DecoderOptions
from settle.model.decoder import Decoder


class Architecture(Part):
    """A model family, sized by its fields."""

    model_type: ClassVar[str]
    gguf_architecture: ClassVar[str]
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
    def activation_bytes_per_token(
        self, context: int, bytes_per_number: int, adapter: Mapping[str, int] | None = None
    ) -> float:
        """Bytes kept between forward and backward a token, in full segments of `context` tokens.

        adapter: linear → numbers that an adapter keeps of it, all else frozen; None when everything is trained.
        """

    @abstractmethod
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name and shape, in the order in which they are met."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (outputs, inputs) of every linear of the layers; the head is none of them."""
        named = self.parameters().items()
        return {n.removesuffix(".weight"): (s[0], s[1]) for n, s in named if len(s) == 2 and ".layers." in n}

    def with_fields(self, **fields: Any) -> Self:
        """The same but for some fields, which are checked as always."""
        return type(self)(**self.model_dump() | fields)

    def shortened(self, layers: int) -> Self:
        """The same with fewer layers; kinds of layers follow each other as llama.cpp has them in this family."""
        return self.with_fields(num_hidden_layers=layers)

    @abstractmethod
    def hf_names(self) -> dict[str, str]:
        """Parameter name → name in Hugging Face's safetensors."""

    @abstractmethod
    def to_hf_config(self) -> dict[str, Any]:
        """`config.json` that `transformers` loads."""

    @classmethod
    @abstractmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Self:
        """From a `config.json`. Raises FormatError naming the key that this family does not do."""

    @abstractmethod
    def gguf_names(self) -> dict[str, str]:
        """Parameter name → name in a GGUF file, in the file's order. Parameters that share a name are one tensor there:
        the first is its slice 0 along a new first axis, and so on (experts).
        """

    @abstractmethod
    def gguf_metadata(self) -> dict[str, Any]:
        """Metadata keys that say what llama.cpp must compute. Raises FormatError for what it cannot."""

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        """Vectors that a GGUF file holds as tensors and that are no parameters: factors of rotary frequencies."""
        return {}

    @classmethod
    @abstractmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Self:
        """From a GGUF file's metadata and lazy tensors (name → `.shape`, `.load()`; only constants are loaded). Raises
        FormatError naming the key that is missing or not done here.
        """

    def to_gguf(self, name: str, values: Any) -> Any:
        """A parameter's values (numpy or torch) as a GGUF file holds them. Matrices change the order of their rows at
        most, so rows of quantized blocks may be given too.
        """
        return values

    def from_gguf_tensor(self, name: str, values: Any) -> Any:
        """The inverse of `to_gguf`."""
        return values

    @classmethod
    @abstractmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """The shape of this family whose number of parameters comes nearest."""


def of_hf_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` describes. Raises FormatError for a family that is not known."""
    families = Architecture.parts()
    kind = config.get("model_type")
    if kind not in families:
        raise FormatError(f"the architecture {kind!r} is not known", f"known are: {', '.join(families)}")
    return families[kind].from_hf_config(dict(config))


def of_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Architecture:
    """The architecture that a GGUF file describes. Raises FormatError for a family that is not known.

    Of two families that GGUF writes as one (a Mistral is a Llama there) the one that bears its name is taken.
    """
    kind = metadata.get("general.architecture")
    alike = [family for family in Architecture.parts().values() if family.gguf_architecture == kind]
    if not alike:
        known = sorted({family.gguf_architecture for family in Architecture.parts().values()})
        if embeds(metadata):
            raise FormatError("it turns texts into vectors and writes none", f"known are: {', '.join(known)}")
        raise FormatError(f"the architecture {kind!r} is not known", f"known are: {', '.join(known)}")
    return max(alike, key=lambda family: family.model_type == kind).from_gguf(metadata, tensors)
