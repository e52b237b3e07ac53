"""Objectives: what a batch teaches. A loss is a sum and a count, so that accumulation changes nothing."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from settle.base.registry import Part
from settle.model.architectures import Decoder


class Objective(Part):
    """A loss over packed rows."""

    rows: ClassVar[str]

    @abstractmethod
    def loss(self, model: Decoder, inputs: Tensor, targets: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, int]:
        """inputs, targets (N,), cu_seqlens (S+1,) → (sum of nats with gradient, how many targets were counted).

        A target of -1 is not counted.
        """
