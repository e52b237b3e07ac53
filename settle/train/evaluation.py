"""Held-out loss with its standard error: the same tokens each time, so that differences are paired.

Legend: V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import numpy as np
import torch

from settle.data.batches import Batch
from settle.model.layers.freezable import FreezableModule
from settle.train.objectives import Objective
from settle.train.world import World, single
from settle.train.world.weight_shards import rest


@dataclass(frozen=True)
class Evaluation:
    """What the held-out data cost. Losses in nats per token."""

    step: int
    tokens: int
    loss: float
    stderr: float
    bits_per_byte: float | None  # None unless the objective counts nats per token
    blocks: tuple[float, ...]  # loss of each block of held-out text, in the same order every time

    def figures(self) -> "EvaluationFigures":
        """All but the blocks: what events and results show."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "loss": self.loss,
            "stderr": self.stderr,
            "bits_per_byte": self.bits_per_byte,
        }


class EvaluationFigures(TypedDict):
    """held_out_share: of the held-out text, where the figure is to be quoted."""

    step: int
    tokens: int
    loss: float
    stderr: float
    bits_per_byte: float | None
    held_out_share: NotRequired[float]


@dataclass(frozen=True)
class HeldOut:
    """Held-out text: batches, each of which is one block, and how many bytes each token id encodes (V,)."""

    batches: Sequence[Batch]
    byte_length: np.ndarray

    @property
    def num_rows(self) -> int:
        """Pieces that do not see each other."""
        return sum(len(batch.cu_seqlens) - 1 for batch in self.batches)

    @property
    def num_tokens(self) -> int:
        return sum(len(batch.targets) for batch in self.batches)


def evaluate(
    model: FreezableModule, objective: Objective, held_out: HeldOut, step: int, tokens: int, world: World | None = None
) -> Evaluation:
    """Evaluate the loss of `model` after `step` steps and `tokens` tokens of training.

    world: ranks that evaluate it together, each some of the blocks where a block's loss does not depend on the others;
    the losses are those that one rank finds, to the last bit.
    """
    world, objective = world or single(), objective.evaluator
    batches = held_out.batches
    found = torch.zeros(2, len(batches), dtype=torch.float64)  # sum and count of each block
    training = model.training
    model.eval()
    with torch.no_grad():  # not inference mode: the model's cast weights must serve training too
        if (
            model.is_sharded
        ):  # the ranks need each other in every layer: all evaluate as many blocks, the last for nothing
            for first in range(0, len(batches), world.size):
                own = [min(first + world.rank, len(batches) - 1)]
                with world.together("evaluation"):
                    losses = objective.held_out_losses(model, [batches[own[0]]])
                if first + world.rank < len(batches):
                    _note(found, own, losses)
            rest(model)
        else:
            own = [*range(world.rank, len(batches), world.size)] if objective.judges_apart else [*range(len(batches))]
            _note(found, own, objective.held_out_losses(model, [batches[number] for number in own]) if own else [])
    model.train(training)
    if model.is_sharded or objective.judges_apart:
        world.sum([found])
    else:
        world.copy([found])
    return _figures(found, held_out, objective.is_per_token, step, tokens)


def _note(found: torch.Tensor, blocks: Sequence[int], losses: Sequence[tuple[float, int]]) -> None:
    for number, loss in zip(blocks, losses, strict=True):
        found[:, number] = torch.tensor(loss, dtype=torch.float64)


def _figures(found: torch.Tensor, held_out: HeldOut, is_per_token: bool, step: int, tokens: int) -> Evaluation:
    """found: sum and count of each block, (2, blocks)."""
    batches = held_out.batches
    sums, counts = found[0].tolist(), [int(count) for count in found[1].tolist()]
    targets = (batch.targets[batch.targets >= 0] for batch in batches)
    num_bytes = sum(int(held_out.byte_length[ids].sum()) for ids in targets)
    loss = sum(sums) / sum(counts)
    blocks = np.array(sums) / np.array(counts)
    weights = np.array(counts) / sum(counts)
    # standard error of a ratio of sums over blocks (Cochran 1977, section 6.4)
    spread = float(np.sum((weights * (blocks - loss)) ** 2))
    stderr = math.sqrt(spread * len(blocks) / max(1, len(blocks) - 1))
    return Evaluation(
        step=step,
        tokens=tokens,
        loss=loss,
        stderr=stderr,
        bits_per_byte=sum(sums) / math.log(2) / max(1, num_bytes) if is_per_token else None,
        blocks=tuple(float(b) for b in blocks),
    )
