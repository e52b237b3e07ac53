"""The gradient of one step: sum ÷ count over all of its micro-batches. The loop takes it, and the proof proves it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.model.layers.freezable import FreezableModule
from settle.train.objectives import Objective
from settle.train.world.weight_shards import local_part


def add_gradient(
    model: FreezableModule, objective: Objective, batches: Sequence[Batch], count: int, scale: float = 1.0
) -> list[Tensor]:
    """Add `scale` times the gradient of sum ÷ count to `.grad`; return each batch's sum of nats, left on its device.

    `count` is known before the first micro-batch, so accumulation changes nothing but rounding.
    """
    sums: list[Tensor] = []
    for batch in batches:
        total, _ = objective.batch_loss(model, batch)
        (total * (scale / count)).backward()
        sums.append(total.detach())
    return sums


def backward(model: FreezableModule, objective: Objective, batches: Sequence[Batch], scale: float = 1.0) -> float:
    """Add `scale` times the gradient of the mean loss over all `batches` to `.grad`; return that loss, nats a token."""
    count = num_targets(objective, batches)
    return mean_loss(torch.stack(add_gradient(model, objective, batches, count, scale)).tolist(), count)


def num_targets(objective: Objective, batches: Sequence[Batch]) -> int:
    """Return what the sum of the batches' losses is divided by."""
    return max(1, sum(map(objective.count, batches)))


def mean_loss(sums: Sequence[float], count: int) -> float:
    """Return sum ÷ count, each batch divided by itself: as ranks add up their parts of it."""
    loss = 0.0
    for number in sums:
        loss += number / count
    return loss


def gradient_of(parameter: Tensor) -> Tensor:
    """Return the gradient of a trained parameter; of a sharded one, the rows that this rank owns. Zeros where nothing
    was learned, such as of an expert that no token chose."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_part(parameter.grad)
