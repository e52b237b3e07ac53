"""The loss and the first step against what they are by definition, which shares no code with them."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from settle.base.errors import ProofError
from settle.data.batches import Batch
from settle.model.decoder import Decoder
from settle.model.layers.freezable import FreezableModule
from settle.train.objectives import Objective
from settle.train.optimizers import Optimizer

# A share of the loss, or of SMALL where it is smaller, as a student's near its teacher. float32: logits of a large
# model, rounded and summed in another order.
OFF, SMALL = {torch.float64: 1e-8, torch.float32: 1e-4}, 1e-3
MOST_STEPPED = 1 << 26  # numbers that take the proof's one step: the optimizer's state of more is no small memory
MOST_TIMES = 2.0  # longer or shorter than its rate says, that a first step may be: weight decay and rounding are in it


def require_definition(model: FreezableModule, objective: Objective, batch: Batch) -> str:
    """Check that a batch's loss and count follow from the objective's formula in numpy, from the model's outputs.

    Run it where the weights are not special: before the first step a model and its base, or a student and its teacher,
    may be one and the same. Raises ProofError.
    """
    name = objective.part_name()
    stated = objective.by_definition(model, batch)
    if stated is None:
        return f"not compared: {name} states no definition"
    wanted, number = stated
    with torch.no_grad():
        total, count = objective.batch_loss(model, batch)
    if not (count == number == objective.count(batch)):
        raise ProofError(
            f"{name}: its loss is divided by {objective.count(batch)} and counts {count}, by its definition {number}",
            "accumulated gradients would have another size: report this",
        )
    loss, exact = float(total) / max(1, count), wanted / max(1, count)
    most = OFF[torch.promote_types(model.compute_dtype, torch.float32)]
    if not abs(loss - exact) <= most * max(SMALL, abs(exact)):  # so that NaN fails
        raise ProofError(
            f"{name}: its loss is {loss:.6f}, by its definition {exact:.6f}",
            "the run would learn something else than was asked for: report this",
        )
    return f"{loss:.4f} nats, {abs(loss - exact):.1e} off"


def require_tied(model: Decoder) -> None:
    """Check that the trained output table of a tied model is the input table itself. Raises ProofError."""
    table = model.model.embed_tokens
    if model.options.tied and table.frozen is None and model.head_operands()[1] is not table.weight:
        raise ProofError(
            "the output table is a copy of the input table that it is tied to",
            "it would stay as it is while the input table is trained: report this",
        )


@torch.no_grad()
def moves_loss(parameter: torch.nn.Parameter, loss: Callable[[], float], rounding: float) -> bool:
    """Return whether the loss changes with a parameter by more than a share of it, which is rounding."""
    before, own = loss(), parameter.detach().clone()
    parameter.mul_(2.0)
    after = loss()
    parameter.copy_(own)
    return not abs(after - before) <= rounding * abs(before)


def stepped(model: Decoder) -> dict[str, torch.nn.Parameter]:
    """Return the tensors that take the proof's step.

    All, or the first ones where all are too many to have a state next to them; the others are frozen from then on.
    """
    chosen: dict[str, torch.nn.Parameter] = {}
    numbers = 0
    for name, parameter in model.trainable().items():
        numbers += parameter.numel()
        if chosen and numbers > MOST_STEPPED:
            break
        chosen[name] = parameter
    for name, parameter in model.trainable().items():
        parameter.requires_grad_(name in chosen)
    return chosen


def require_rate(optimizer: Optimizer, model: FreezableModule, steps: Mapping[str, Tensor], scale: float) -> str:
    """Check that the first step is as long as the rates say. steps: the change of each tensor. Raises ProofError.

    scale: what the rates were multiplied by. The median over tensors counts: of one that is large, or that has hardly
    any gradient, rounding may decide.
    """
    shares = optimizer.shares_of_first_step(model, steps)
    if not shares:
        return "its length is not compared with its rate"
    share = float(np.median(list(shares.values()))) / scale
    if not 1 / MOST_TIMES < share < MOST_TIMES:
        raise ProofError(
            f"the optimizer's first step is {share:.2g} times as long as its rate says",
            "the run would learn at another rate than was asked for: report this",
        )
    return f"as long as its rate says, times {share:.2f}"
