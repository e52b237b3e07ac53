"""Muon for matrices, AdamW for the rest.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) steps by the orthogonal factor of the momentum,
found by a Newton–Schulz iteration; here the iteration runs on all matrices of one shape at once.
"""

import math
from collections.abc import Mapping
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from settle.model.layers.freezable import FreezableModule
from settle.train.gradient import gradient_of
from settle.train.optimizers import Optimizer, Stepper
from settle.train.optimizers.adamw import AdamGroup, AdamStepper, role, width_factor
from settle.train.world.weight_shards import is_sharded, local_part, num_shards, on_whole

FORGETTING = 0.4  # of the weights in the only pass of a run
MOST_PASSES = 32.0  # that were measured
MOST_FORGOTTEN = 0.02  # of the weights in a step


class Muon(Optimizer):
    """Muon with Nesterov momentum on matrices; AdamW on tables and norms.

    A matrix's step has spectral norm lr · √max(1, O / I), so the rate carries over between widths.
    """

    lr: float = Field(0.02, gt=0, description="learning rate of matrices")
    momentum: float = Field(0.95, ge=0, lt=1, description="decay rate of the momentum")
    ns_steps: int = Field(4, ge=1, le=10, description="number of Newton–Schulz iterations")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of matrices, multiplied by the learning rate")
    table_lr: float = Field(0.05, gt=0, description="AdamW: learning rate of the input embedding")
    head_lr: float = Field(4e-3, gt=0, description="AdamW: learning rate of the output head at width 256")
    norm_lr: float = Field(4e-3, gt=0, description="AdamW: learning rate of norms")
    beta1: float = Field(0.8, ge=0, lt=1, description="AdamW: decay rate of the mean gradient")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay rate of the mean squared gradient")
    eps: float = Field(1e-10, gt=0, description="AdamW: constant added to the root mean square")

    def bind(self, model: FreezableModule) -> "MuonStepper":
        members: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "table": [], "head": [], "norm": []}
        for name, parameter in model.trainable().items():
            kind = role(name, parameter)
            if kind == "adapter":
                kind = "matrix" if parameter.ndim == 2 else "norm"
            members[kind].append((name, parameter))
        adam = AdamStepper(
            [
                AdamGroup(members["table"], self.table_lr, 0.0),
                AdamGroup(members["head"], self.head_lr * width_factor(model), 0.0),
                AdamGroup(members["norm"], self.norm_lr, 0.0),
            ],
            (self.beta1, self.beta2),
            self.eps,
        )
        half = model.compute_dtype == torch.bfloat16
        return MuonStepper(self, members["matrix"], adam, torch.bfloat16 if half else torch.float32)

    def against_memorizing(self, passes: float, steps_per_pass: float) -> Self:
        """Return the rule with a weight decay that makes weights forget: within 2.5 / √passes passes over the text.

        Weights are a mean over the latest 1 / (lr · weight decay) steps; how many passes these are at best hardly
        depends on the text's length (Wang & Aitchison 2024, arXiv 2405.13698). Measured by bench/recipe.py.
        """
        forgets = FORGETTING * math.sqrt(min(passes, MOST_PASSES)) / max(1.0, steps_per_pass)
        return self.model_copy(update={"weight_decay": round(min(forgets, MOST_FORGOTTEN) / self.lr, 3)})

    def shares_of_first_step(self, model: FreezableModule, steps: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the shares of a rule whose matrix steps have a spectral norm of their rate, whatever the gradient.

        Without the weight decay, and what lies along it.
        """
        own, shares = dict(model.named_parameters()), {}
        for name, step in steps.items():
            if role(name, own[name]) in ("matrix", "adapter") and step.ndim == 2:
                if self.weight_decay:  # what lies along the weights is not compared
                    weight = own[name].detach().to(step)
                    step = step - weight * ((step * weight).sum() / weight.square().sum().clamp_min(1e-30))
                direction = step.new_ones(step.shape[1])
                for _ in range(POWER_ITERATIONS):
                    direction = step.T @ (step @ direction)
                    direction /= direction.norm().clamp_min(torch.finfo(step.dtype).tiny)
                asked = self.lr * max(1.0, step.shape[0] / step.shape[1]) ** 0.5
                shares[name] = float((step @ direction).norm()) / asked
        return shares

    def bytes_per_parameter(self) -> float:
        return 4.0

    def bytes_of_step(self, matrices: Mapping[tuple[int, int], int], size: int) -> float:
        # the gradients of one shape; of the matrices that are whole at once the iteration holds some copies
        most = max(rows * columns * number for (rows, columns), number in matrices.items())
        largest = max(rows * columns for rows, columns in matrices)
        return 4.0 * most / size + 4.0 * _COPIES * max(largest, min(_AT_ONCE, most / size))


class MuonStepper(Stepper):
    """Muon on matrices grouped by shape; `dtype` is the type the iteration runs in."""

    def __init__(
        self, rates: Muon, members: list[tuple[str, nn.Parameter]], adam: AdamStepper, dtype: torch.dtype
    ) -> None:
        self.rates, self.adam, self.dtype = rates, adam, dtype
        self.groups: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in members:
            self.groups.setdefault(parameter.shape, []).append((name, parameter))
        self.momentum = {
            shape: torch.stack([torch.zeros_like(local_part(p.detach())) for _, p in group])
            for shape, group in self.groups.items()
        }

    @torch.no_grad()
    def step(self, scale: float) -> None:
        self.adam.step(scale)
        for shape, group in self.groups.items():
            parameters: list[Tensor] = [local_part(p) for _, p in group]
            grads = torch.stack([gradient_of(p) for _, p in group])
            momentum = self.momentum[shape].lerp_(grads, 1 - self.rates.momentum)
            direction = self._direction(grads.lerp_(momentum, self.rates.momentum), group[0][1])
            lr = self.rates.lr * scale
            if self.rates.weight_decay:
                torch._foreach_mul_(parameters, 1 - lr * self.rates.weight_decay)
            torch._foreach_add_(parameters, direction.unbind(0), alpha=-lr * max(1.0, shape[0] / shape[1]) ** 0.5)

    def _direction(self, update: Tensor, parameter: nn.Parameter) -> Tensor:
        """Orthogonalise each matrix in update (n, O, I), or those whose rows (n, ≤R, I) it holds."""
        if not is_sharded(parameter):
            return orthogonal(update, self.rates.ns_steps, self.dtype)
        work = lambda matrices: orthogonal(matrices, self.rates.ns_steps, self.dtype)  # noqa: E731
        # some at a time, an equal number at each rank: what is whole takes memory
        number = max(1, _AT_ONCE // parameter.numel()) * num_shards(parameter)
        for some in update.split(number):
            some.copy_(on_whole(some, len(parameter), parameter, work))
        return update

    def state(self) -> dict[str, Tensor]:
        state = self.adam.state()
        for shape, group in self.groups.items():
            for (name, _), momentum in zip(group, self.momentum[shape], strict=True):
                state[f"muon.momentum.{name}"] = momentum
        return state


POWER_ITERATIONS = 8  # that find the largest singular value to a few per cent
_COPIES = 7  # what is sent and received, the iterate, the next one, and two products
_AT_ONCE = 1 << 22  # numbers of matrices that a rank makes whole at once, of those that ranks share out

# Optimal odd quintics for five iterations in bf16 (Polar Express, arXiv:2505.16932); the last one repeats.
_POLYNOMIALS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def orthogonal(matrices: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Orthogonalise each matrix, (n, O, I) → (n, O, I) in fp32, singular values within about 0.1 of 1."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).mul_(1.02).add_(1e-7)
    x = (x / norm).to(dtype).contiguous()
    for i in range(steps):
        a, b, c = _POLYNOMIALS[min(i, len(_POLYNOMIALS) - 1)]
        gram = torch.bmm(x, x.mT)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, inner, x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)
