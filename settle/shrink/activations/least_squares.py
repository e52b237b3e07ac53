"""Least squares on what a layer really sees: which inputs of a matrix can go, and what the others then have to do.

Letters: N tokens, I inputs, O outputs of a matrix, G groups of w inputs that go together, K inputs that are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_RIDGE = 1e-2  # relative to the mean square of an input; the text says little about directions it never takes
_ROUNDS = 64  # many single inputs go in about so many rounds, each after a look at what the one before it did


def gram(rows: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> Tensor:
    """Mean outer product of rows (N, I) with themselves, or with others (N, J) → (I, J) in fp64."""
    others = rows if others is None else others
    number = sum(map(len, rows))
    products = [a.double().T @ b.double() for a, b in zip(rows, others, strict=True)]
    return torch.stack(products).sum(0) / max(number, 1)


def ridged(moments: Tensor) -> Tensor:
    """A Gram matrix (I, I) that can be inverted."""
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
    """A matrix (O, K) that makes of other inputs what `weight` (O, I) makes of the ones it was trained on.

    own (K, K): Gram matrix of the other inputs; cross (K, I): theirs with the old ones; start (O, K): what is kept
    to in directions that are hardly seen.
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
