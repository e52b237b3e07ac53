"""What is trained beside one frozen linear, whatever the method: parts of `model/adapters` make these.

Letters: N tokens, I inputs and O outputs of a linear.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from settle.model.layers.frozen_weights import Frozen

LinearProduct = Callable[[Tensor], Tensor]  # x (N, I) → W x + b (N, O), with its gradient


class LinearAdapter(nn.Module, ABC):
    """Numbers that change what a frozen linear computes.

    Its `forward(x (N, I), product)` returns what the adapted linear computes (N, O), where `product` is the frozen
    linear; a low-rank pair has none, since kernels compute it (`low_rank`). FILE_NAMES: parameter → its name in a file
    behind the module's, where that is another one. active: set to False, the linear does what it did before.
    """

    FILE_NAMES: ClassVar[Mapping[str, str]] = {}
    active = True

    @abstractmethod
    def initialise(self, weight: Frozen, random: torch.Generator) -> None:
        """Draw first values from `random` (a CPU generator), so that the linear W (O, I) computes what it did."""

    @abstractmethod
    def merged(self, weight: Tensor) -> Tensor:
        """W (O, I) in fp32 with what the adapter makes of it."""

    def merged_bias(self, bias: Tensor) -> Tensor:
        """The linear's bias (O,) in fp32 with what the adapter makes of it."""
        return bias
