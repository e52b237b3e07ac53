"""One optimizer step: draw the batches, forward, backward, clip, update."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from settle.data.batches import Batches, RowBatches
from settle.machine import FreedMemory
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.linear import casts_of, refresh_casts
from settle.train.checkpoint import Checkpoint, Weights
from settle.train.gradient import backward, gradient_of, shared_backward
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer
from settle.train.state import LoopPlan, LoopState
from settle.train.world import World, single
from settle.train.world.row_share import StepRows
from settle.train.world.weight_shards import local_part

AVERAGED_STEPS = 4  # between two of the weights that are averaged
AVERAGE = "average."  # before a weight's name, in a checkpoint


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    loss: mean, nats per token; grad_norm: before clipping. Either may be no finite number; then nothing changed.
    tokens: read in this step by this process. rows: those that all ranks took.
    """

    loss: float
    grad_norm: float
    tokens: int = 0
    rows: StepRows = StepRows()

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Trainer:
    """A model, its objective, optimizer and data. What a step depends on is in its tensors and in `LoopState`.

    world: the processes that share each step.
    """

    def __init__(
        self,
        plan: LoopPlan,
        model: FreezableModule,
        objective: Objective,
        optimizer: Optimizer,
        batches: Batches | RowBatches,
        world: World | None = None,
    ) -> None:
        self.plan, self.model, self.objective, self.batches = plan, model, objective, batches
        self.world = world or single()
        self.base_lr, self.stepper = optimizer.lr, optimizer.bind(model)
        # found once: a small model's step is so short that going through its modules shows
        self._parameters, self._casts = [*model.parameters()], casts_of(model)
        # the exponential moving average of the weights, where the plan has one
        self.average = {k: v.clone() for k, v in self.own_weights().items()} if plan.average else {}
        self._freed_memory = FreedMemory()

    def take_step(self, state: LoopState, multiplier: float) -> StepResult:
        """One update at `multiplier` times the learning rates, from the micro-batches that `state` draws next."""
        self.world.at_step(state.step)
        positions = [state.draw() for _ in range(self.plan.micro_batches)]
        batches = [self.batches.at(position) for position in positions]
        rows = [self.batches.rows_of(position) for position in positions]
        self._seed(self.plan.seed + state.position)
        self._drop_gradient()
        shared = shared_backward(self.world, self.model, self.objective, batches, rows)
        norm = self._clip()
        with self.world.together("gradient"):
            loss, grad_norm, taken = shared.read(norm)
        result = StepResult(loss, grad_norm, shared.tokens, replace(taken, positions=tuple(positions)))
        if result.is_finite:
            with self.world.together("update"):
                self.stepper.step(multiplier)
            refresh_casts(self._casts)
            self._average(state.step)
        self._freed_memory.after_step()
        return result

    def _seed(self, seed: int) -> None:
        """Seed what dropout draws from: the same after a resume.

        `torch.manual_seed` notes its call with the stack for each kind of card, which takes longer than the rest here.
        """
        if self.model.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _drop_gradient(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def _average(self, step: int) -> None:
        """Move the averaged weights towards those after a step; not after each, which would be a pass over all."""
        if self.average and step % AVERAGED_STEPS == 0:
            share = -math.expm1(-AVERAGED_STEPS / (self.plan.average * (step + 1)))
            torch._foreach_lerp_(list(self.average.values()), list(self.own_weights().values()), share)

    def _clip(self) -> Tensor:
        """Scale the gradient so that its norm is at most the plan's; return its norm before that, (), on its device."""
        parameters = [p for p in self._parameters if p.grad is not None]
        if not self.model.is_sharded:
            return torch.nn.utils.clip_grad_norm_(parameters, self.plan.clip)
        grads: list[Tensor] = [gradient_of(p) for p in parameters]
        square = torch.stack(torch._foreach_norm(grads)).double().square().sum().reshape(1)
        self.world.sum([square])
        norm = (square[0] / self.world.shards.copies).sqrt()  # each of the copies has every row
        torch._foreach_mul_(grads, (self.plan.clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def rehearse(self, updates: bool) -> None:
        """Do the work of a step on its first micro-batch, to time it. The weights stay as they are.

        updates: the optimizer works too, at rates of 0, and its own state changes.
        """
        self._drop_gradient()
        backward(self.model, self.objective, [self.batches.at(0)])
        if updates:
            self.stepper.step(0.0)
            refresh_casts(self._casts)
        self._drop_gradient()

    def tokens(self, state: LoopState) -> int:
        """Tokens trained on so far."""
        return state.step * self.plan.tokens_per_step

    def weights(self) -> Weights:
        """Copy the trained weights to the CPU, as far as they are this rank's."""
        return {k: v.to("cpu", copy=True) for k, v in self.own_weights().items()}

    def own_weights(self) -> Weights:
        """Return the trained weights where they are, as far as they are this rank's."""
        return {k: local_part(v.detach()) for k, v in self.model.trainable().items()}

    def weights_are_finite(self) -> bool:
        trained: list[Tensor] = list(self.own_weights().values())
        is_finite = bool(torch.isfinite(torch.stack(torch._foreach_norm(trained))).all())
        return not self.world.any(not is_finite) if self.model.is_sharded else is_finite

    def load(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint's tensors. Raises KeyError, RuntimeError when they are not this model's."""
        self.take_weights(checkpoint.model)
        self.stepper.restore(checkpoint.optimizer)
        for name, tensor in self.average.items():
            tensor.copy_(checkpoint.optimizer[AVERAGE + name])

    def moments(self) -> dict[str, Tensor]:
        """Return what the next steps depend on beside the weights, by name; the tensors are the live ones."""
        return self.stepper.state() | {AVERAGE + name: tensor for name, tensor in self.average.items()}

    def go_back(self, weights: Mapping[str, Tensor]) -> None:
        """Take over earlier weights, of this run. The optimizer's moments stay: they follow within some steps."""
        self.take_weights(weights)
        for name, tensor in self.own_weights().items():
            if name in self.average:
                self.average[name].copy_(tensor)

    def take_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take over trained weights, as `weights` gave them. Raises KeyError, RuntimeError when they are others."""
        if self.model.is_sharded:
            own = self.own_weights()
            if own.keys() != weights.keys():
                raise KeyError(min(own.keys() ^ weights.keys()))
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        else:
            self.model.load_trainable(weights)
        refresh_casts(self._casts)
