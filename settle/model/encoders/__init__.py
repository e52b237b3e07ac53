"""Families of text encoders: one file each. A folder's config.json builds one; its tensors go by Hugging Face's names.

Legend: B texts, L tokens of the longest of them, W width, K labels.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.base.registry import Part
from settle.model.layers.freezable import FreezableModule

Json = dict[str, Any]  # a parsed config.json
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "relu": F.relu, "silu": F.silu, "tanh": torch.tanh,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}  # fmt: skip
POOLINGS = ("mean", "cls", "lasttoken")


class TextEncoder(FreezableModule):
    """Texts to the states of their tokens, and to one vector each.

    pooling: of a text's vector, one of POOLINGS. dense: linears, each with its activation, that the pooled vector goes
    through.
    """

    pooling: str = "mean"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dense: nn.ModuleList = nn.ModuleList()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def states(self, ids: Tensor, mask: Tensor, layers: int | None = None, segments: Tensor | None = None) -> Tensor:
        """Compute ids (B, L), mask (B, L), true at tokens → (B, L, W) behind the first `layers`, or all.

        segments: (B, L), 1 in the second text of a pair; 0 everywhere where it is not given.
        """
        raise NotImplementedError

    def vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute ids (B, L), mask (B, L) → (B, W), each of length 1."""
        return self.pooled(self.states(ids, mask), mask)

    def pooled(self, states: Tensor, mask: Tensor) -> Tensor:
        """Pool states (B, L, W), mask (B, L) → the texts' vectors (B, W), each of length 1."""
        x = pooled(states, mask, self.pooling)
        for dense in self.dense:
            x = dense(x)
        return F.normalize(x, dim=-1)


class Dense(nn.Module):
    """A linear and its activation behind the pooling."""

    def __init__(self, inputs: int, outputs: int, bias: bool, activation: str) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return x if self.activation == "identity" else ACTIVATIONS[self.activation](x)


class Head(nn.Module):
    """Labels of a text or of its tokens: a linear; before it, where a family has them, another, its activation, a norm.

    pooling: what is read of a text, "cls" or "mean"; None where each token has labels. names: Hugging Face's name of
    each of its parameters.
    """

    def __init__(
        self,
        width: int,
        labels: int,
        names: Mapping[str, str],
        activation: str | None = None,
        pooling: str | None = "cls",
        norm: nn.LayerNorm | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.names, self.pooling, self.activation = dict(names), pooling, activation
        self.dense = nn.Linear(width, width, bias) if activation else None
        self.norm = norm
        self.out = nn.Linear(width, labels)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Compute states (B, L, W), mask (B, L) → logits (B, K), or (B, L, K) of tokens."""
        x = pooled(states, mask, self.pooling) if self.pooling else states
        if self.dense is not None and self.activation:
            x = ACTIVATIONS[self.activation](self.dense(x))
        if self.norm is not None:
            x = self.norm(x)
        logits: Tensor = self.out(x)
        return logits


class PairScorer(FreezableModule):
    """A model that scores pairs of texts."""

    def pairs(self, firsts: Sequence[Tensor], seconds: Sequence[Tensor]) -> Tensor:
        """Ids of B texts and of B others, with the tokens around them → logits (B,)."""
        raise NotImplementedError


class EncoderFamily(Part):
    """The contract of a family.

    model_type: as config.json names it. stem: of its classes in transformers (`{stem}ForSequenceClassification`).
    prefix: before the encoder's names in the file of a model with a head. closings: tokens between the two texts of a
    pair.
    """

    model_type: ClassVar[str]
    stem: ClassVar[str]
    prefix: ClassVar[str]
    closings: ClassVar[int] = 1

    @abstractmethod
    def build(self, config: Json) -> TextEncoder:
        """Build the encoder of a config.json, its weights random. Raises FormatError for what is not known here."""

    @abstractmethod
    def head(self, config: Json, labels: int, of_tokens: bool) -> Head:
        """Build a head for so many labels, of each text or of each token."""

    def names(self, encoder: TextEncoder) -> dict[str, str]:
        """Map the encoder's parameters to Hugging Face's names, without the prefix of a model with a head."""
        return {name: name for name, _ in encoder.named_parameters() if not name.startswith("dense.")}


def family_of(config: Json) -> EncoderFamily | None:
    """Return the family of a config.json, None where there is none."""
    kind = str(config.get("model_type", ""))
    return next((family() for family in EncoderFamily.parts().values() if family.model_type == kind), None)


def require(config: Json, **known: Sequence[object]) -> None:
    """Raise FormatError for a key whose value is none of those that are known here."""
    for key, values in known.items():
        value = config.get(key, values[0])
        if value not in values:
            shown = ", ".join(map(str, values))
            raise FormatError(f"its {key} is {value!r}, which is not known here", f"known: {shown}")


def pooled(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool states (B, L, W), mask (B, L) → (B, W)."""
    if how == "cls":
        return states[:, 0]
    if how == "lasttoken":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    weight = mask[..., None].to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)
