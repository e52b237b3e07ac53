"""Columns taken out of one matrix in every block, the others fitted to do their work, for `channels` and `heads`.

Letters: N rows of activations, O outputs and I inputs of the matrix, K inputs that are kept, G groups of inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from settle.base.files import JsonObject
from settle.shrink.activations.layer_activations import LayerWalk, eliminate, error, gram
from settle.shrink.prunable_model import PrunableModel, in_layer
from settle.shrink.pruners import OnProgress


@dataclass
class Narrowed:
    """A matrix with fewer inputs, block by block.

    weights: the matrix that is left, by name; kept (K,): which of its inputs; errors: relative squared output error per
    block; repaired: in how many blocks the fitted matrix is better.
    """

    num_tokens: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    kept: list[Tensor] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    repaired: int = 0

    def to_json(self) -> JsonObject:
        return {"repaired_blocks": self.repaired, "errors": self.errors, "tokens": self.num_tokens}


def narrow_columns(
    subject: PrunableModel,
    windows: Sequence[Sequence[int]],
    matrix: tuple[str, str],
    groups: Tensor,
    owners: Tensor,
    keep: int,
    may_repair: bool,
    on_progress: OnProgress,
) -> Narrowed:
    """Take columns from one matrix in every block, each on what the blocks before it give once they are narrow.

    matrix: its name inside a block, and the field of `LayerActivations` that it reads. groups (G, w), owners (G,) and
    keep: as of `eliminate`. on_progress: as of `Pruner.prune`.
    """
    module, stage = matrix
    model = subject.build()
    walk = LayerWalk(model, windows)
    states, narrowed = walk.first(), Narrowed(walk.num_tokens)
    for layer in range(subject.num_layers):
        on_progress(layer + 1, subject.num_layers)
        name = in_layer(layer, f"{module}.weight")
        old = subject.weights[name]
        fit, held = walk.split([getattr(activations, stage) for activations in walk.activations(layer, states)])
        eliminated = eliminate(old, gram(fit), groups, owners, keep)
        new, miss, is_repaired = _better(old, eliminated.kept, eliminated.weight, held, may_repair)
        narrowed.weights[name] = new
        narrowed.kept.append(eliminated.kept)
        narrowed.errors.append(round(miss, 6))
        narrowed.repaired += is_repaired
        # the wide model with zeros computes what the narrow one does
        with torch.no_grad():
            model.get_parameter(name).copy_(spread_out(new, eliminated.kept, old.shape[1]))
        states = walk.layer(layer, states)
    return narrowed


def rows_of(subject: PrunableModel, layer: int, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the chosen rows of a block's matrices and of their biases. rows: by the matrix's name inside a block."""
    names = {in_layer(layer, f"{module}.{kind}"): r for module, r in rows.items() for kind in ("weight", "bias")}
    return {name: subject.weights[name][r] for name, r in names.items() if name in subject.weights}


def spread_out(weight: Tensor, kept_inputs: Tensor, inputs: int) -> Tensor:
    """Spread the columns of a matrix (O, K) to the places `kept_inputs` (K,) among zeros: (O, inputs)."""
    out = weight.new_zeros(len(weight), inputs)
    out[:, kept_inputs] = weight
    return out


def _better(
    old: Tensor, kept_inputs: Tensor, repaired: Tensor, held: Sequence[Tensor], may_repair: bool
) -> tuple[Tensor, float, bool]:
    """Choose the better narrower matrix of old (O, I): its columns `kept_inputs` (K,), or `repaired` (O, K).

    The latter if it misses less of the outputs for held-out inputs (N, I). → (matrix, share of the power it misses,
    whether repaired).
    """
    plain = old[:, kept_inputs]
    left = [rows[:, kept_inputs] for rows in held]
    misses = [error(held, old, left, matrix) for matrix in (plain, repaired)]
    helps = may_repair and bool(held) and misses[1] < misses[0]
    return (repaired if helps else plain), misses[helps], helps
