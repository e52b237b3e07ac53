"""The gradient of one step: sum ÷ count over all of its micro-batches, on one process or shared among ranks.

The loop takes it, and the proof proves it. Each rank takes its rows of every micro-batch; sum and count are of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from settle.data.batches import Batch
from settle.model.layers.freezable import FreezableModule
from settle.model.layers.linear_adapter import part_of_batch
from settle.model.layers.transfer import to_device
from settle.train.objectives import Objective
from settle.train.world import World
from settle.train.world.row_share import Row, RowShare, StepRows, marks_sum, share
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
    """Return the gradient of a trained parameter; of a sharded one, the rows that this rank owns.

    Zeros where nothing was learned, such as of an expert that no token chose.
    """
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_part(parameter.grad)


_BUCKET = 1 << 23  # numbers that are summed over the ranks at once: 32 MB
_HALF = 1 << 32


@dataclass(frozen=True)
class SharedGradient:
    """A step whose gradient is in `.grad`, and whose figures still lie on the device.

    figures: sums of nats of its micro-batches (M,); of many ranks, the mean loss over all of them, how many rows they
    took, and the halves of the sum of their marks (4,). count: targets of the step. tokens: that this rank read. rows:
    of one process alone.
    """

    figures: Tensor
    count: int
    tokens: int
    rows: StepRows | None

    def read(self, norm: Tensor) -> tuple[float, float, StepRows]:
        """Return the mean loss in nats per token, the gradient's `norm` (), and the rows.

        Waits for the device, once a step: nothing else of it does.
        """
        *figures, grad_norm = torch.cat([self.figures, norm.reshape(1).to(self.figures.device)]).tolist()
        if self.rows is not None:
            return mean_loss(figures, self.count), grad_norm, self.rows
        loss, number, high, low = figures
        return loss, grad_norm, StepRows((), int(number), (int(high) * _HALF + int(low)) % (_HALF * _HALF))


def shared_backward(
    world: World, model: FreezableModule, objective: Objective, batches: Sequence[Batch], rows: Sequence[Sequence[Row]]
) -> SharedGradient:
    """Put the gradient of the mean loss over all `batches` into `.grad`, the same at every rank.

    rows: of each batch, a segment each.
    """
    count = num_targets(objective, batches)
    if world.size == 1:
        sums = add_gradient(model, objective, batches, count)
        own = [row for of_batch in rows for row in of_batch]
        tokens = sum(len(batch.inputs) for batch in batches)
        return SharedGradient(torch.stack(sums), count, tokens, StepRows((), len(own), marks_sum(own)))
    loss = torch.zeros(1, dtype=torch.float64, device=model.device)
    tokens, taken = 0, list[Row]()
    for batch, of_batch in zip(batches, rows, strict=True):
        part = share(batch, objective.segments_per_row, world.rank, world.size)
        if model.is_sharded:
            with world.together("gradient"):
                sums = _sharded_backward(model, objective, batch, part, count)
        else:
            sums = _part_backward(model, objective, batch, part, count)
        for total in sums:
            loss += total.double() / count
        tokens += len(part.tokens)
        for row in part.rows.tolist():
            first = row * objective.segments_per_row
            taken += of_batch[first : first + objective.segments_per_row]
    marks = marks_sum(taken)
    # whole numbers below 2^53 are exact in float64, in sums too
    of_rows = torch.tensor([len(taken), marks // _HALF, marks % _HALF], dtype=torch.float64)
    figures = torch.cat([loss, to_device(of_rows, loss.device)])
    world.sum([figures])
    if not model.is_sharded:
        _sum_gradients(world, model)
    return SharedGradient(figures, count, tokens, None)


def _part_backward(
    model: FreezableModule, objective: Objective, batch: Batch, part: RowShare, count: int
) -> list[Tensor]:
    """Add the gradient of a rank's rows of a batch; return their sum of nats."""
    if part.batch is not None:
        with part_of_batch(model, to_device(torch.from_numpy(part.tokens), model.device), part.whole):
            return add_gradient(model, objective, [part.batch], count)
    with torch.no_grad():  # no row: dropout draws for the others' rows nevertheless, as every rank does
        if any(getattr(module, "dropout", 0.0) for module in model.modules()):
            objective.batch_loss(model, batch)
    return []


def _sharded_backward(
    model: FreezableModule, objective: Objective, batch: Batch, part: RowShare, count: int
) -> list[Tensor]:
    """Do the work of `_part_backward` where the ranks need each other in every layer.

    A rank without a row computes one for nothing.
    """
    if part.batch is not None:
        return add_gradient(model, objective, [part.batch], count)
    one = share(batch, objective.segments_per_row, 0, len(batch.cu_seqlens) - 1).batch
    assert one is not None
    add_gradient(model, objective, [one], count, scale=0.0)
    return []


def _sum_gradients(world: World, model: FreezableModule) -> None:
    """Sum `.grad` of what is trained over all ranks: one message for many tensors of one type."""
    for grads in buckets([gradient_of(parameter) for parameter in model.trainable().values()]):
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        world.sum([flat])
        for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(summed.view_as(grad))


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group the tensors in their order, as many together as are sent at once."""
    made: list[list[Tensor]] = [[]]
    for tensor in tensors:
        made[-1].append(tensor)
        if sum(other.numel() for other in made[-1]) >= _BUCKET:
            made.append([])
    return made if made[-1] else made[:-1]
