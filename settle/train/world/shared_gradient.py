"""The gradient of one step, shared among ranks: each takes its rows of every micro-batch; sum and count are of all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.low_rank import part_of_batch
from settle.train.gradient import backward
from settle.train.objectives import Objective
from settle.train.world import World
from settle.train.world.row_share import Row, RowShare, marks_sum, share

_BUCKET = 1 << 23  # numbers that are summed over the ranks at once: 32 MB
_HALF = 1 << 32


@dataclass(frozen=True)
class StepRows:
    """The rows of a step. positions: of its micro-batches. count: rows that ranks took, all together; marks: the sum of
    their marks (`marks_sum`)."""

    positions: tuple[int, ...] = ()
    count: int = 0
    marks: int = 0


@dataclass(frozen=True)
class SharedGradient:
    """loss: mean over all ranks, nats per token. tokens: that this rank read."""

    loss: float
    tokens: int
    rows: StepRows


def shared_backward(
    world: World, model: FreezableModule, objective: Objective, batches: Sequence[Batch], rows: Sequence[Sequence[Row]]
) -> SharedGradient:
    """Put the gradient of the mean loss over all `batches` into `.grad`, the same at every rank. rows: of each batch,
    a segment each."""
    if world.size == 1:
        loss = backward(model, objective, batches)
        taken = [row for of_batch in rows for row in of_batch]
        own = StepRows((), len(taken), marks_sum(taken))
        return SharedGradient(loss, sum(len(batch.inputs) for batch in batches), own)
    count = max(1, sum(map(objective.count, batches)))
    loss, tokens, taken = 0.0, 0, list[Row]()
    for batch, of_batch in zip(batches, rows, strict=True):
        part = share(batch, objective.segments_per_row, world.rank, world.size)
        if model.is_sharded:
            with world.together("gradient"):
                loss += _sharded_backward(model, objective, batch, part, count)
        else:
            loss += _part_backward(model, objective, batch, part, count)
        tokens += len(part.tokens)
        for row in part.rows.tolist():
            first = row * objective.segments_per_row
            taken += of_batch[first : first + objective.segments_per_row]
    marks = marks_sum(taken)
    # whole numbers below 2^53 are exact in float64, in sums too
    figures = torch.tensor([loss, len(taken), marks // _HALF, marks % _HALF], dtype=torch.float64)
    world.sum([figures])
    if not model.is_sharded:
        _sum_gradients(world, model)
    total, number, high, low = figures.tolist()
    marks = (int(high) * _HALF + int(low)) % (_HALF * _HALF)
    return SharedGradient(total, tokens, StepRows((), int(number), marks))


def _part_backward(model: FreezableModule, objective: Objective, batch: Batch, part: RowShare, count: int) -> float:
    """Add the gradient of a rank's rows of a batch; its part of the mean loss."""
    if part.batch is not None:
        with part_of_batch(model, torch.from_numpy(part.tokens).to(model.device), part.whole):
            return backward(model, objective, [part.batch], count=count)
    with torch.no_grad():  # no row: dropout draws for the others' rows nevertheless, as every rank does
        if any(getattr(module, "dropout", 0.0) for module in model.modules()):
            objective.batch_loss(model, batch)
    return 0.0


def _sharded_backward(model: FreezableModule, objective: Objective, batch: Batch, part: RowShare, count: int) -> float:
    """The same where the ranks need each other in every layer: a rank without a row computes one for nothing."""
    if part.batch is not None:
        return backward(model, objective, [part.batch], count=count)
    one = share(batch, objective.segments_per_row, 0, len(batch.cu_seqlens) - 1).batch
    assert one is not None
    backward(model, objective, [one], scale=0.0, count=count)
    return 0.0


def _sum_gradients(world: World, model: FreezableModule) -> None:
    """Sum `.grad` of what is trained over all ranks; where a rank has none, it adds zeros."""
    parameters = list(model.trainable().values())
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        _sum_flat(world, bucket)


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in their order, as many together as are sent at once."""
    made: list[list[Tensor]] = [[]]
    for tensor in tensors:
        made[-1].append(tensor)
        if sum(other.numel() for other in made[-1]) >= _BUCKET:
            made.append([])
    return made if made[-1] else made[:-1]


def _sum_flat(world: World, grads: Sequence[Tensor]) -> None:
    """One message for many tensors of one type."""
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    world.sum([flat])
    for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(summed.view_as(grad))
