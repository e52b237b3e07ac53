"""The gradient of one step: sum ÷ count over all of its micro-batches. The loop takes it, and the proof proves it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.model.layers.freezable import FreezableModule
from settle.train.objectives import Objective
from settle.train.world.weight_shards import local_part


def backward(
    model: FreezableModule, objective: Objective, batches: Sequence[Batch], scale: float = 1.0, count: int | None = None
) -> float:
    """Add `scale` times the gradient of the mean loss over all `batches` to `.grad`; the mean loss, nats per token.

    count: what the sum is divided by; that of these batches when not given. It is known before the first micro-batch,
    so accumulation changes nothing but rounding.
    """
    count = max(1, sum(map(objective.count, batches))) if count is None else count
    totals: list[Tensor] = []
    for batch in batches:
        total, _ = objective.batch_loss(model, batch)
        (total * (scale / count)).backward()
        totals.append(total.detach())
    loss = 0.0
    for number in torch.stack(totals).tolist():  # at once: each question waits for the device
        loss += number / count
    return loss


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient of a parameter that has one; the rows of it that this rank owns."""
    assert parameter.grad is not None
    return local_part(parameter.grad)
