"""What is pruned: an ordinary model of a known architecture, in memory. D width, V vocabulary, O and I of a matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from settle.base.errors import FormatError, UsageError
from settle.base.tokenizer import Tokenizer
from settle.formats import Metadata
from settle.formats.safetensors import export_safetensors
from settle.model.architectures import Architecture
from settle.model.decoder import Decoder
from settle.model.layers.frozen_weights import FrozenDense
from settle.model.pretrained import Pretrained


@dataclass(frozen=True)
class PrunableModel:
    """A model that pruners work on.

    part: the architecture, with its sizes. weights: parameter name → tensor in fp32, Hugging Face's layout, one for
    each of `part.parameters()`. tokenizer: settle's own or `PretrainedTokenizer`. Tensors are shared between subjects
    and never written to.
    """

    part: Architecture
    weights: Mapping[str, Tensor]
    tokenizer: Tokenizer

    @classmethod
    def read(cls, model: Pretrained) -> "PrunableModel":
        """Read a model from its files into memory; quantized weights become numbers."""
        return cls(model.part, {name: model.read(name) for name in model.part.parameters()}, model.tokenizer)

    @classmethod
    def of_decoder(cls, part: Architecture, model: Decoder, tokenizer: Tokenizer) -> "PrunableModel":
        """Copy the parameters of a live model without frozen weights."""
        return cls(part, {name: p.detach().clone() for name, p in model.named_parameters()}, tokenizer)

    def build(self, trainable: bool = True) -> Decoder:
        """Build the model, computing in fp32. Trainable: its parameters are copies, else these tensors."""
        model = self.part.skeleton()
        for name in self.part.parameters():
            weight = self.weights[name]
            model.put(name, weight.clone() if trainable else FrozenDense(weight))
        return model

    def write(
        self, folder: Path, metadata: Metadata | None = None, dtype: Literal["f32", "f16", "bf16"] = "f32"
    ) -> Path:
        """Write a folder in Hugging Face's layout, as `Pretrained.open` and transformers read it.

        Raises ResourceError.
        """
        return export_safetensors(self.part, self.weights, self.tokenizer, folder, dtype, metadata)

    def with_part(
        self, part: Architecture, weights: Mapping[str, Tensor], tokenizer: Tokenizer | None = None
    ) -> "PrunableModel":
        """Return another model with the same tokenizer, unless one is given.

        Raises FormatError when a weight is missing or has another shape than the architecture wants.
        """
        shapes = part.parameters()
        for name, shape in shapes.items():
            if name not in weights or tuple(weights[name].shape) != shape:
                shape_found = tuple(weights[name].shape) if name in weights else "missing"
                raise FormatError(f"{name} is {shape_found} where {shape} belongs", "this is worth a bug report")
        chosen = {name: weights[name].contiguous() for name in shapes}
        return replace(self, part=part, weights=chosen, tokenizer=tokenizer or self.tokenizer)

    @property
    def num_layers(self) -> int:
        return len(self.part.options().layers)

    @property
    def num_parameters(self) -> int:
        return self.part.num_parameters


def require_loadable(before: Architecture, after: Architecture, fix: str) -> None:
    """Raise UsageError when llama.cpp would not compute `after` as it is meant, and `before` it does."""
    what = complaint(after)
    if what and not complaint(before):
        raise UsageError(f"the smaller model would not run: {what}", fix)


def complaint(part: Architecture) -> str:
    """Return why llama.cpp would not compute an architecture as it is meant; empty where it does."""
    try:
        part.gguf_metadata()
    except FormatError as e:
        return e.what
    return ""


def require_dense(part: Architecture, what: str) -> None:
    """Raise UsageError for experts, layers that are not all attention, and layers that are not by themselves."""
    options = part.options()
    of, others = "", "prune its depth or its vocabulary"
    if any(layer.experts is not None for layer in options.layers):
        of = "a mixture of experts"
    elif any(layer.recurrence is not None for layer in options.layers):
        of = "layers that are not all attention"
    elif not options.is_plain:
        of, others = "layers that share keys and values, or read the tokens themselves,", "prune its vocabulary"
    if of:
        raise UsageError(f"{what} of {of} are not pruned here", others)


def layer_of(name: str) -> int | None:
    """Return the layer that a parameter belongs to; None for the tables and the final norm."""
    return int(name.split(".")[2]) if name.startswith("model.layers.") else None


def in_layer(layer: int, name: str) -> str:
    """Return a parameter's whole name from its layer and its name inside: (3, "mlp.up_proj.weight")."""
    return f"model.layers.{layer}.{name}"
