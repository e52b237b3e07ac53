"""Optimizers: how a step follows from gradients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from settle.base.registry import Part
from settle.model.layers.freezable import FreezableModule


class Stepper(ABC):
    """An optimizer bound to a model's parameters."""

    @abstractmethod
    def step(self, scale: float) -> None:
        """One update from the gradients as they are, every learning rate multiplied by `scale`."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on, by name; the tensors are the live ones."""

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave, exactly."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])


class Optimizer(Part):
    """A rule with its rates. lr: the rate that is shown, of most weights."""

    lr: float

    @abstractmethod
    def bind(self, model: FreezableModule) -> Stepper:
        """Bind the rule to every trainable parameter of `model`."""

    def shares_of_first_step(self, model: FreezableModule, steps: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the size of each tensor's change in a first step as a share of what its rate asks for.

        It is 1 where the rate is multiplied by 1. Empty: the rule does not say. The weights are those before the step.
        The proof before the first step compares.
        """
        return {}

    def against_memorizing(self, passes: float, steps_per_pass: float) -> Self:
        """Return the rule for a run that sees its text `passes` times; this one where nothing is known to help."""
        return self

    @abstractmethod
    def bytes_per_parameter(self) -> float:
        """Bytes of state a trainable number needs."""

    def bytes_of_step(self, matrices: Mapping[tuple[int, int], int], size: int) -> float:
        """Bytes that a step takes for itself at one of `size` ranks that share out matrices: how many of each shape."""
        return 0.0
