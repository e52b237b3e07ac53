"""Architectures: each holds the fields of its Hugging Face `config.json`.

It knows its size, its cost, and where its parameters lie in files.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from pydantic import Field

from settle.base.errors import FormatError
from settle.base.registry import Part
from settle.formats import LazyTensor
from settle.formats.gguf import embeds
from settle.model.architectures._contract import GgufLayout, GgufMetadata, HfConfig, HfLayout, Size
from settle.model.config import DecoderOptions
from settle.model.decoder import Decoder


class Architecture(Size, HfLayout, GgufLayout, Part):
    """A model family, sized by its fields."""

    TINY: ClassVar[Self]

    vocab_size: int = Field(1024, gt=0, description="rows of the token tables")
    max_position_embeddings: int = Field(256, gt=0, description="tokens of context")

    @abstractmethod
    def options(self) -> DecoderOptions:
        """Return what the layers must be."""

    def build(self, seed: int, device: str = "cpu") -> Decoder:
        """Build a freshly initialised model; the same seed gives the same weights everywhere."""
        model = self.skeleton("cpu")
        model.initialise(torch.Generator().manual_seed(seed))
        return model.to(device)

    def skeleton(self, device: str = "meta") -> Decoder:
        """Build the model with weights that hold nothing yet; on "meta" they take no memory either."""
        with torch.device(device):
            return Decoder(self.options())

    def with_fields(self, **fields: object) -> Self:
        """Return a copy with other values of some fields, which are checked as always."""
        return type(self)(**self.model_dump() | fields)

    def shortened(self, layers: int) -> Self:
        """Return a copy with fewer layers; kinds of layers follow each other as llama.cpp has them in this family."""
        return self.with_fields(num_hidden_layers=layers)

    @classmethod
    @abstractmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """Return the shape of this family whose number of parameters comes nearest."""


def of_hf_config(config: HfConfig) -> Architecture:
    """Return the architecture that a `config.json` describes. Raises FormatError for a family that is not known."""
    families = Architecture.parts()
    kind = config.get("model_type")
    if kind not in families:
        raise FormatError(f"the architecture {kind!r} is not known", f"known are: {', '.join(families)}")
    return families[kind].from_hf_config(dict(config))


def of_gguf(metadata: GgufMetadata, tensors: Mapping[str, LazyTensor]) -> Architecture:
    """Return the architecture that a GGUF file describes. Raises FormatError for a family that is not known.

    Of two families that GGUF writes as one (a Mistral is a Llama there) the one that bears its name is taken.
    """
    kind = metadata.get("general.architecture")
    alike = [family for family in Architecture.parts().values() if family.gguf_architecture == kind]
    if not alike:
        known = sorted({family.gguf_architecture for family in Architecture.parts().values()})
        if embeds(metadata):
            fix = "tune it on pairs with --objective rank or contrastive, or choose a model that writes"
            raise FormatError("it turns texts into vectors and writes none", fix)
        raise FormatError(f"the architecture {kind!r} is not known", f"known are: {', '.join(known)}")
    return max(alike, key=lambda family: family.model_type == kind).from_gguf(metadata, tensors)
