"""Fewer channels of the feed-forwards: in each block those that the others can best stand in for."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from settle.base.errors import UsageError
from settle.shrink.activations.layer_activations import Walk
from settle.shrink.activations.least_squares import eliminate, error, gram
from settle.shrink.prunable_model import Subject, in_layer, require_dense
from settle.shrink.pruners import Pruned, Pruner, kept_number

_STEP = 256  # numbers in a block of llama.cpp's finer types, which rows should be multiples of


class Channels(Pruner):
    """Narrows the feed-forwards."""

    share: float = Field(0.25, gt=0, lt=1, description="share of the channels that goes")
    keep: int | None = Field(None, gt=0, description="how many channels a block keeps, instead of a share")
    repair: bool = Field(True, description="fit the channels that stay to do the work of those that go, where it helps")

    def prune(self, subject: Subject, windows: Sequence[Sequence[int]], texts: Sequence[str]) -> Pruned:
        require_dense(subject.part, "channels")
        there = subject.part.options().layers[0].inner
        keep = self.keep or kept_number(there, self.share, _STEP)
        if keep >= there:
            raise UsageError(f"{keep} channels of {there} cannot be kept", f"keep at most {there - 1}")
        part = subject.part.with_fields(intermediate_size=keep)
        model = subject.build()
        walk = Walk(model, windows)
        weights = dict(subject.weights)
        groups, owners = torch.arange(there).unsqueeze(1), torch.zeros(there, dtype=torch.long)
        states, errors, repaired = walk.first(), [], 0
        for layer in range(subject.num_layers):
            name = in_layer(layer, "mlp.down_proj.weight")
            old = subject.weights[name]
            fit, held = walk.split([parts.gated for parts in walk.inner(layer, states)])
            found = eliminate(old, gram(fit), groups, owners, keep)
            new, miss, helps = chosen(old, found.kept, found.weight, held, self.repair)
            repaired += helps
            errors.append(round(miss, 6))
            weights |= _narrowed(subject, layer, found.kept) | {name: new}
            # the wide model with zeros computes what the narrow one does
            with torch.no_grad():
                model.get_parameter(name).copy_(spread_out(new, found.kept, there))
            states = walk.layer(layer, states)
        report = {
            "pruner": "channels",
            "channels": [there, keep],
            "repaired_blocks": repaired,
            "errors": errors,
            "tokens": walk.num_tokens,
        }
        return Pruned(subject.with_part(part, weights), report)


def chosen(
    old: Tensor, kept: Tensor, repaired: Tensor, held: Sequence[Tensor], may_repair: bool
) -> tuple[Tensor, float, bool]:
    """What is left of a matrix old (O, I): its columns kept (K,) as they were, or `repaired` (O, K) if that misses less
    of what came out before, for held-out inputs (N, I). → (matrix, share of the power it misses, whether repaired)."""
    plain = old[:, kept]
    left = [rows[:, kept] for rows in held]
    misses = [error(held, old, left, matrix) for matrix in (plain, repaired)]
    helps = may_repair and bool(held) and misses[1] < misses[0]
    return (repaired if helps else plain), misses[helps], helps


def spread_out(weight: Tensor, kept: Tensor, inputs: int) -> Tensor:
    """A matrix (O, K) with its columns at the places kept (K,) among zeros: (O, inputs)."""
    out = weight.new_zeros(len(weight), inputs)
    out[:, kept] = weight
    return out


def _narrowed(subject: Subject, layer: int, kept: Tensor) -> dict[str, Tensor]:
    """Rows of the gate's and the other branch's matrices and biases."""
    inner = subject.part.options().layers[0].inner
    found = {}
    for module, rows in (("gate_proj", kept), ("up_proj", kept), ("gate_up_proj", torch.cat([kept, kept + inner]))):
        for kind in ("weight", "bias"):
            name = in_layer(layer, f"mlp.{module}.{kind}")
            if name in subject.weights:
                found[name] = subject.weights[name][rows]
    return found
