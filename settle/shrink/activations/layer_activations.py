"""A model on a text, layer by layer: what goes into each part, and what comes of leaving one out.

Also least squares on what a layer really sees: which inputs of a matrix can go, and what the others then have to do.

Letters: N tokens of a batch, D width, F feed-forward width, H query heads, d head width, P positions, V vocabulary;
I inputs, O outputs of a matrix, G groups of w inputs that go together, K inputs that are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from settle.base.errors import DataError
from settle.model.decoder import Decoder
from settle.model.layers.linear import Linear
from settle.model.layers.packed_sequences import Carried, Packing
from settle.shrink.activations.importance import observed

MOST_TOKENS = 2048  # maximum tokens of one batch
MOST_POSITIONS = 256  # at which distributions are compared; each takes a row of the vocabulary
# field of `LayerActivations` → the matrices that read it, of which a layer has some
READ_BY = {
    "attention_input": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.qkv_proj"),
    "mixed": ("self_attn.o_proj",),
    "feed_forward_input": ("mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj"),
    "gated": ("mlp.down_proj",),
}


@dataclass(frozen=True)
class LayerActivations:
    """What one layer computes of a batch.

    before (N, D): the residual stream. mixed (N, H·d): what attention hands to `o_proj`. between (N, D): the stream
    after attention. gated (N, F): what goes into `down_proj`. after (N, D). attention_input and feed_forward_input
    (N, D): behind the norms.
    """

    before: Tensor
    attention_input: Tensor
    mixed: Tensor
    between: Tensor
    feed_forward_input: Tensor
    gated: Tensor
    after: Tensor


class LayerWalk:
    """A model and a text, in batches of whole windows. Nothing is kept of a gradient."""

    def __init__(self, model: Decoder, windows: Sequence[Sequence[int]], most_tokens: int = MOST_TOKENS) -> None:
        """windows: ids, at least one of two tokens or more. Raises DataError otherwise."""
        model.require_plain()
        self.model = model
        windows = [list(map(int, window)) for window in windows if len(window) > 1]
        if not windows:
            raise DataError("there is no text to see what the model's parts do", "give one with --data")
        self.inputs: list[Tensor] = []
        self.packings: list[Packing] = []
        batch: list[Sequence[int]] = []
        for number, window in enumerate(windows):
            batch.append(window)
            following = len(windows[number + 1]) if number + 1 < len(windows) else most_tokens
            if sum(map(len, batch)) + following > most_tokens:
                self._add(batch)
                batch = []
        if batch:
            self._add(batch)
        self.num_tokens = sum(map(len, self.inputs))

    def _add(self, batch: Sequence[Sequence[int]]) -> None:
        ends = torch.tensor([0, *map(len, batch)]).cumsum(0).int()
        self.packings.append(Packing(ends.to(self.model.device)))
        self.inputs.append(torch.tensor([i for window in batch for i in window], device=self.model.device))

    @torch.no_grad()
    def first(self) -> list[Tensor]:
        """Return the residual stream (N, D) of each batch before the first layer."""
        return [self.model.embed(ids) for ids in self.inputs]

    @torch.no_grad()
    def layer(self, number: int, states: Sequence[Tensor]) -> list[Tensor]:
        """Compute the stream behind a layer, from the stream before it."""
        return [self.model.layer(number, x, packing) for x, packing in zip(states, self.packings, strict=True)]

    @torch.no_grad()
    def through(self, layers: Sequence[int], states: Sequence[Tensor]) -> list[Tensor]:
        """Compute the stream behind some layers in their order."""
        for number in layers:
            states = self.layer(number, states)
        return list(states)

    @torch.no_grad()
    def activations(self, number: int, states: Sequence[Tensor]) -> Iterator[LayerActivations]:
        """Yield the parts of a dense layer, batch by batch."""
        layer = self.model.layers[number]
        names = {id(module): name for name, module in layer.named_modules() if isinstance(module, Linear)}
        for x, packing in zip(states, self.packings, strict=True):
            read: dict[str, Tensor] = {}

            def see(linears: Sequence[Linear], values: Tensor, read: dict[str, Tensor] = read) -> None:
                read.update((names[id(linear)], values) for linear in linears)

            with observed(layer, see):
                between = layer.add_mixed(x, packing, self.model.table(number, x.device), Carried())
                after = layer.add_mlp(between, x)
            inputs = {stage: next(read[name] for name in modules if name in read) for stage, modules in READ_BY.items()}
            yield LayerActivations(before=x, between=between, after=after, **inputs)

    @torch.no_grad()
    def logprobs(self, states: Sequence[Tensor], positions: Tensor) -> Tensor:
        """Natural log-probabilities (P, V) of the next token at `positions` (P,), counted through all batches."""
        hidden = torch.cat(list(states))[positions]
        return self.model.logits(self.model.model.norm(hidden)).log_softmax(-1)

    def split(self, rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Split rows (N, …) of each batch into those to fit to and those to measure on, of every fifth window.

        Of a text of fewer windows nothing is held out.
        """
        fit: list[Tensor] = []
        held: list[Tensor] = []
        number = 0
        for batch, packing in zip(rows, self.packings, strict=True):
            for first, last in zip(packing.bounds, packing.bounds[1:], strict=False):
                number += 1
                (fit if number % 5 else held).append(batch[first:last])
        return fit, held

    def positions(self, most: int = MOST_POSITIONS) -> Tensor:
        """Evenly spread places in the text, (P,)."""
        number = min(most, self.num_tokens)
        return torch.linspace(0, self.num_tokens - 1, number, device=self.model.device).round().long()


def kl(reference: Tensor, other: Tensor) -> float:
    """Mean Kullback–Leibler divergence in nats of rows of log-probabilities (P, V)."""
    total = 0.0
    for ours, theirs in zip(reference.split(32), other.split(32), strict=True):  # no third copy of a large table
        total += float((ours.exp() * (ours - theirs)).sum())
    return max(total / len(reference), 0.0)


_RIDGE = 1e-2  # relative to the mean square of an input; the text says little about directions it never takes
_ROUNDS = 64  # many single inputs go in about so many rounds, each after a look at what the one before it did


def gram(rows: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Mean outer product of rows (N, I) with themselves, or with others (N, J) → (I, J) in fp64."""
    others = rows if others is None else others
    number = sum(map(len, rows))
    products = [a.double().T @ b.double() for a, b in zip(rows, others, strict=True)]
    return torch.stack(products).sum(0) / max(number, 1)


def ridged(moments: Tensor) -> Tensor:
    """Make a Gram matrix (I, I) invertible."""
    size = len(moments)
    return moments + (_RIDGE * moments.diagonal().mean() + 1e-12) * torch.eye(size, dtype=moments.dtype)


@dataclass(frozen=True)
class Eliminated:
    """kept: (K,) inputs that stay, ascending. weight (O, K): what they do now, to stand in for the others."""

    kept: Tensor
    weight: Tensor


def eliminate(weight: Tensor, moments: Tensor, groups: Tensor, owners: Tensor, keep: int) -> Eliminated:
    """Take groups of inputs from a matrix, each time those that the remaining inputs can best stand in for.

    weight (O, I); moments (I, I): the inputs' Gram matrix; groups (G, w): the inputs of each group; owners (G,): to
    whom a group belongs; each owner keeps `keep`. The error of leaving a group out, with the rest adapted, is
    W_g (H⁻¹)_gg⁻¹ W_gᵀ, and H⁻¹ of what is left follows without a new inverse (the optimal brain surgeon for whole
    columns: arXiv:2203.07259, arXiv:2302.04089).
    """
    weight = weight.double().clone()
    inverse = torch.linalg.inv(ridged(moments))
    alive = torch.ones(len(groups), dtype=torch.bool)
    at_once = max(1, len(groups) // _ROUNDS) if groups.shape[1] == 1 else 1
    while True:
        free = alive & (torch.bincount(owners[alive], minlength=int(owners.max()) + 1)[owners] > keep)
        candidates = free.nonzero().flatten()
        if not len(candidates):
            break
        columns = groups[candidates]
        blocks = inverse[columns.unsqueeze(2), columns.unsqueeze(1)]  # (candidates, w, w)
        parts = weight[:, columns].permute(1, 2, 0)  # (candidates, w, O)
        costs = (parts * torch.linalg.solve(blocks, parts)).sum((1, 2))
        spare = int(alive.sum()) - keep * int(owners.unique().numel())
        order = costs.argsort()[: min(at_once, spare)]
        gone = groups[candidates[order]].flatten()
        step = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        weight -= weight[:, gone] @ step
        inverse -= inverse[:, gone] @ step
        alive[candidates[order]] = False
    kept_inputs = groups[alive].flatten().sort().values
    return Eliminated(kept_inputs, weight[:, kept_inputs].float())


def refitted(weight: Tensor, own: Tensor, cross: Tensor, start: Tensor) -> Tensor:
    """Return a matrix (O, K) that makes of other inputs what `weight` (O, I) makes of the ones it was trained on.

    own (K, K): Gram matrix of the other inputs; cross (K, I): theirs with the old ones; start (O, K): what is kept to
    in directions that are hardly seen.
    """
    pull = (_RIDGE * own.diagonal().mean() + 1e-12).item()
    right = cross @ weight.double().T + pull * start.double().T
    solution: Tensor = torch.linalg.solve(ridged(own), right)
    return solution.T.float()


def error(rows: Sequence[Tensor], weight: Tensor, others: Sequence[Tensor], other: Tensor) -> float:
    """Share of the power of rows (N, I) through weight (O, I) by which others (N, K) through other (O, K) miss it."""
    missed = power = 0.0
    for row, second in zip(rows, others, strict=True):
        wanted = row @ weight.T
        missed += float((wanted - second @ other.T).square().sum())
        power += float(wanted.square().sum())
    return missed / max(power, 1e-30)
