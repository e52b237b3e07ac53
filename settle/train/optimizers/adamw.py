"""AdamW (arXiv:1711.05101) through the framework's fused kernel."""

import math
from collections.abc import Iterable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from settle.model.layers.freezable import FreezableModule
from settle.train.gradient import gradient_of
from settle.train.optimizers import Optimizer, Stepper
from settle.train.world.weight_shards import local_part


class AdamW(Optimizer):
    """AdamW on every parameter.

    The rate of matrices and of the output table falls as 1/√(width / 256); that of an adapter does not.
    """

    lr: float = Field(3e-3, gt=0, description="learning rate at width 256")
    table_lr: float = Field(1e-2, gt=0, description="learning rate of the input embedding")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay rate of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay rate of the mean squared gradient")
    eps: float = Field(1e-10, gt=0, description="constant added to the root mean square")
    weight_decay: float = Field(0.1, ge=0, description="weight decay of matrices, multiplied by the learning rate")

    def bind(self, model: FreezableModule) -> "AdamStepper":
        rates = self._rates(model)
        groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in model.trainable().items():
            kind = role(name, parameter)
            decay = self.weight_decay if kind in ("matrix", "adapter") else 0.0
            groups.setdefault((rates[kind] * model.lr_scale(name), decay), []).append((name, parameter))
        adam = [AdamGroup(members, lr, decay) for (lr, decay), members in groups.items()]
        return AdamStepper(adam, (self.beta1, self.beta2), self.eps)

    def shares_of_first_step(self, model: FreezableModule, steps: Mapping[str, Tensor]) -> dict[str, float]:
        """Return 1 for each tensor: a first step moves each number by its rate.

        The mean gradient over its own root mean square is 1.
        """
        rates, own = self._rates(model), dict(model.named_parameters())
        asked = {name: rates[role(name, own[name])] * model.lr_scale(name) for name in steps}
        return {name: float(step.abs().max()) / asked[name] for name, step in steps.items()}

    def _rates(self, model: FreezableModule) -> dict[str, float]:
        """Return the learning rate of each role."""
        lr, shrunk = self.lr, self.lr * width_factor(model)
        return {"matrix": shrunk, "head": shrunk, "table": self.table_lr, "norm": lr, "adapter": lr}

    def bytes_per_parameter(self) -> float:
        return 8.0


def role(name: str, parameter: nn.Parameter) -> str:
    """Return what a parameter is to an optimizer: "matrix", "table" (input), "head" (output), "norm" or "adapter".

    Taps of a convolution (C, 1, K) are numbers of each channel, as norms are.
    """
    if ".adapter." in name:
        return "adapter"
    if parameter.ndim != 2:
        return "norm"
    if "embed_tokens" in name:
        return "table"
    return "head" if "lm_head" in name else "matrix"


def width_factor(model: FreezableModule) -> float:
    """√(256 / hidden width): how the rate of what multiplies activations falls with the width."""
    return math.sqrt(256 / model.width)


class AdamGroup:
    """Parameters that share a rate and a decay, with their moments."""

    def __init__(self, members: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float) -> None:
        members = list(members)
        self.names = [name for name, _ in members]
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in members]
        self.mean = [torch.zeros_like(local_part(p.detach())) for p in self.parameters]
        self.square = [torch.zeros_like(local_part(p.detach())) for p in self.parameters]
        self.lr, self.weight_decay = lr, weight_decay


class AdamStepper(Stepper):
    """AdamW on groups; the count of steps is a tensor, as part of the state."""

    def __init__(self, groups: list[AdamGroup], betas: tuple[float, float], eps: float) -> None:
        self.groups = [g for g in groups if g.parameters]
        self.betas, self.eps = betas, eps
        device = self.groups[0].parameters[0].device if self.groups else "cpu"  # Muon may leave nothing to AdamW
        self.count = torch.zeros((), dtype=torch.float32, device=device)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        self.count += 1
        for group in self.groups:
            owned = [local_part(p) for p in group.parameters]
            torch._fused_adamw_(
                owned,
                [gradient_of(p) for p in group.parameters],
                group.mean,
                group.square,
                [],
                [self.count] * len(group.parameters),
                lr=group.lr * scale,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=group.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )
            # The fused kernel writes behind autograd's back; the model's cast copies go by the version.
            torch.autograd.graph.increment_version(owned)

    def state(self) -> dict[str, Tensor]:
        state = {"adam.count": self.count}
        for group in self.groups:
            for name, mean, square in zip(group.names, group.mean, group.square, strict=True):
                state |= {f"adam.mean.{name}": mean, f"adam.square.{name}": square}
        return state
