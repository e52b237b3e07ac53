"""What is trained next to one frozen linear: parts of `model/adapters` make these.

Letters: N tokens, I inputs, O outputs of a linear, r rank.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import Function

from settle.model.layers.frozen_weights import Frozen, Joined
from settle.model.layers.kernels import Context, apply
from settle.model.layers.lora_kernels import Beside

LinearProduct = Callable[[Tensor], Tensor]  # x (N, I) → W x + b (N, O), with its gradient


class LinearAdapter(nn.Module, ABC):
    """Numbers that change what a frozen linear computes.

    Its `forward(x (N, I), product)` returns what the adapted linear computes (N, O), where `product` is the frozen
    linear. One that has a low-rank `pair` needs no `forward`: kernels compute the pair and the product together.
    """

    FILE_NAMES: ClassVar[Mapping[str, str]] = {}  # parameter → its name in a file, where that is another one
    active = True  # set to False, the linear computes what it did before
    part_of_batch: tuple[Tensor, int] | None = None  # places of its tokens in a larger batch, and that one's tokens

    @property
    def pair(self) -> "LowRank | None":
        """The low-rank pair that is multiplied together with the frozen matrix; None: `forward` wraps the product."""
        return None

    @abstractmethod
    def initialise(self, weight: Frozen, random: torch.Generator) -> None:
        """Draw first values from `random` (a CPU generator), so that the linear W (O, I) computes what it did."""

    @abstractmethod
    def merged(self, weight: Tensor) -> Tensor:
        """Return W (O, I), in fp32, as the adapter changes it."""

    def merged_bias(self, bias: Tensor) -> Tensor:
        """Return the linear's bias (O,), in fp32, as the adapter changes it."""
        return bias


@contextlib.contextmanager
def part_of_batch(model: nn.Module, tokens: Tensor, whole: int) -> Iterator[None]:
    """Let `model` compute the tokens at these places (n,) of a batch of `whole`.

    Dropout zeroes what it would zero in the whole batch. Keep it open over the backward pass, which may compute layers
    again, in a thread of its own.
    """
    adapters = [module for module in model.modules() if isinstance(module, LinearAdapter)]
    for adapter in adapters:
        adapter.part_of_batch = tokens, whole
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.part_of_batch = None


class LowRank(LinearAdapter):
    """A low-rank pair beside a frozen linear: scale · B A, with `lora_A` (r, I) and `lora_B` (O, r) in fp32.

    scale: what B A is multiplied by. dropout: share of the inputs of A that is zeroed in training. magnitude: whether
    rows of W + scale · B A are scaled to the length `lora_magnitude_vector` (O,) (DoRA, arXiv:2402.09353).
    """

    FILE_NAMES: ClassVar[Mapping[str, str]] = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}

    def __init__(
        self, inputs: int, outputs: int, rank: int, scale: float, dropout: float = 0.0, magnitude: bool = False
    ) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))
        self.lora_magnitude_vector = nn.Parameter(torch.ones(outputs)) if magnitude else None

    @property
    def pair(self) -> "LowRank":
        return self

    @torch.no_grad()
    def initialise(self, weight: Frozen, random: torch.Generator) -> None:
        # as PEFT begins: A uniform within 1 / √I, B zero, so that nothing changes
        self.lora_A.uniform_(-1, 1, generator=random).div_(math.sqrt(self.lora_A.shape[1]))
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.copy_(torch.linalg.vector_norm(weight.dense(torch.float32), dim=1))

    def keep(self, x: Tensor) -> Tensor | None:
        """Return what dropout multiplies the inputs x (N, I) by; None when it does nothing."""
        if not self.dropout or not self.training:
            return None
        if self.part_of_batch is None:
            return torch.empty_like(x).bernoulli_(1 - self.dropout).div_(1 - self.dropout)
        tokens, whole = self.part_of_batch
        return x.new_empty(whole, x.shape[1]).bernoulli_(1 - self.dropout)[tokens].div_(1 - self.dropout)

    def merged(self, weight: Tensor) -> Tensor:
        changed = weight.addmm(self.lora_B.detach().float(), self.lora_A.detach().float(), alpha=self.scale)
        if self.lora_magnitude_vector is None:
            return changed
        lengths = torch.linalg.vector_norm(changed, dim=1)
        return changed.mul_((self.lora_magnitude_vector.detach().float() / lengths).unsqueeze(1))


@dataclass(frozen=True)
class Member:
    """One linear of a product: its pair, or None, its number of outputs, and the order of its rows there."""

    pair: LowRank | None
    outputs: int
    ordered: Callable[[Tensor], Tensor]


def beside(members: Sequence[Member], matrix: Joined, x: Tensor) -> Beside:
    """Join the pairs of linears that are multiplied as one `matrix`, in the type of x (N, I).

    Gradients go back to the pairs.
    """
    adapted = [member.pair for member in members if member.pair is not None]
    if not adapted:
        return Beside()
    down = torch.cat([p.lora_A for p in adapted]).to(x.dtype)
    if adapted[0].lora_magnitude_vector is not None:
        matrix.make_room(x, len(down))
    ups, lengths, start = [], [], 0
    for member in members:
        pair = member.pair
        if pair is None or not pair.active:
            # switched off it adds zeros: the same products, so the base's numbers are rounded alike
            ups.append(x.new_zeros(0 if pair is None else len(pair.lora_A), member.outputs))
            lengths.append(x.new_ones(member.outputs))
        else:
            ups.append((member.ordered(pair.lora_B).t() * pair.scale).to(x.dtype))
            lengths.append(_lengths(member, pair, x, matrix, start))
        start += member.outputs
    up = ups[0].contiguous() if len(ups) == 1 else torch.block_diag(*ups)
    rows = None if adapted[0].lora_magnitude_vector is None else torch.cat(lengths)
    return Beside(down, up, rows, adapted[0].keep(x))


def _lengths(member: Member, pair: LowRank, x: Tensor, matrix: Joined, start: int) -> Tensor:
    """Return what a member's results are multiplied by, (O,): magnitude ÷ length of the row that is computed with."""
    if pair.lora_magnitude_vector is None:
        return x.new_ones(member.outputs)
    up = member.ordered(pair.lora_B) * pair.scale
    length = apply(RowLengths, pair.lora_A, up, x, matrix, slice(start, start + member.outputs))
    return (member.ordered(pair.lora_magnitude_vector) / length).to(x.dtype)


class RowLengths(Function):
    """Lengths of rows of W + up · down, (O,) fp32, as the square root of a sum that never holds all of it.

    down (r, I), up (O, r), x: of the type that W is multiplied in; matrix and rows: where W (O, I) is found. The
    gradient is exact, where the paper (section 4.3) takes the lengths for constants.
    """

    @staticmethod
    def forward(ctx: Context, down: Tensor, up: Tensor, x: Tensor, matrix: Joined, rows: slice) -> Tensor:
        weight = matrix.weight(x)[rows]
        base = torch.linalg.vector_norm(weight, dim=1, dtype=down.dtype).square_()
        cross = (weight @ down.to(weight.dtype).t()).to(down.dtype)
        inner = up @ (down @ down.t())
        lengths: Tensor = (base + ((2 * cross + inner) * up).sum(1)).clamp_min_(torch.finfo(down.dtype).tiny).sqrt_()
        ctx.like, ctx.matrix, ctx.rows = x.new_empty(0), matrix, rows
        ctx.save_for_backward(down, up, cross.add_(inner), lengths)
        return lengths

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        down, up, product, lengths = ctx.saved_tensors  # product (O, r) is (W + up · down) · downᵀ
        share = (grads[0] / lengths).unsqueeze(1)
        weighted = up * share
        weight = ctx.matrix.weight(ctx.like)[ctx.rows]
        grad_down = (weighted.to(weight.dtype).t() @ weight).to(down.dtype) + (weighted.t() @ up) @ down
        return grad_down, product * share, None, None, None
