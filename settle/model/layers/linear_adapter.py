"""What is trained next to frozen linears, which parts of `model/adapters` make, and the products of both.

A low-rank adapter adds up · (down · x) to a product W · x. Done by itself that is one more pass over the products'
larger side, forward and back. Here it rides along: the adapter's numbers lie below or beside W, or its transpose when
that is the wider one, so that one product makes both. Nothing is computed for frozen weights, and no input that is not
needed is kept.

Letters: N tokens, D hidden width, I inputs, O outputs of a linear, r rank, R that of all stacked linears together.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from settle.model.layers.frozen_weights import Frozen, Joined
from settle.model.layers.kernels import Context, activate, apply, gated_backward, halves, inverse_rms, norm_backward

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


def adapters_of(model: nn.Module) -> list[LinearAdapter]:
    return [module for module in model.modules() if isinstance(module, LinearAdapter)]


@contextlib.contextmanager
def part_of_batch(model: nn.Module, tokens: Tensor, whole: int) -> Iterator[None]:
    """Let `model` compute the tokens at these places (n,) of a batch of `whole`.

    Dropout zeroes what it would zero in the whole batch. Keep it open over the backward pass, which may compute layers
    again, in a thread of its own.
    """
    adapters = adapters_of(model)
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


class Beside(NamedTuple):
    """The adapter's operands beside a frozen product, in the compute type.

    down (R, I), up (R, O) with the scale in it; lengths (O,) multiplies the result (DoRA); keep (N, I) multiplies the
    inputs of `down` (dropout).
    """

    down: Tensor | None = None
    up: Tensor | None = None
    lengths: Tensor | None = None
    keep: Tensor | None = None


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


class FrozenNormLinear(Function):
    """RMS norm and frozen linears behind it; hands the residual on.

    x (N, D), factor (D,) of the norm, bias (O,) or None, fields of a `Beside` → (x unchanged, (N, O)).
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        factor: Tensor,
        eps: float,
        matrix: Joined,
        bias: Tensor | None,
        *adapter: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        a = Beside(*adapter)
        scale = inverse_rms(x, eps).to(x.dtype)
        unit = x * scale
        raw, small = _forward(matrix, unit * factor.to(x.dtype), a)
        residual = x.view_as(x)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(residual)
        ctx.matrix = matrix
        ctx.save_for_backward(unit, scale, factor, small, raw if a.lengths is not None else None, *a)
        return residual, _finish(raw, a.lengths, bias)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, factor, small, raw, *rest = ctx.saved_tensors
        a = Beside(*rest)
        factor = factor.to(unit.dtype)
        grad_residual, grad = grads
        grad, grad_lengths = _through_lengths(grad, raw, a.lengths)
        grad_x, grad_small = _backward(ctx.matrix, grad, a, ctx.needs_input_grad[0])
        grad_down = None
        if grad_small is not None:
            # the norm's factor is applied on the small side; with dropout the mask comes in between
            dropped = unit if a.keep is None else unit * a.keep
            grad_down = (grad_small.t() @ dropped).mul_(factor)
        if grad_x is not None:
            grad_x = torch.addcmul(grad_residual, norm_backward(grad_x.mul_(factor), unit), scale)
        grad_up = small.t() @ grad if grad_small is not None else None
        return grad_x, None, None, None, None, grad_down, grad_up, grad_lengths, None


class FrozenAdd(Function):
    """residual (N, O) or nothing + frozen linears of x, or of activation(gate) · up when x is gate and up (N, 2I).

    Of the gated input only gate and up are kept; the rest is recomputed in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Context,
        residual: Tensor | None,
        x: Tensor,
        activation: str | None,
        matrix: Joined,
        bias: Tensor | None,
        *adapter: Tensor | None,
    ) -> Tensor:
        a = Beside(*adapter)
        inner = x
        if activation is not None:
            gate, up = halves(x, activation)
            inner = activate(gate, activation).mul_(up)
        raw, small = _forward(matrix, inner, a, residual if a.lengths is None else None)
        out = _finish(raw, a.lengths, bias)
        if residual is not None and a.lengths is not None:
            out += residual
        ctx.matrix, ctx.activation = matrix, activation
        # without an adapter and without a gate the way back needs no input at all
        needed = x if activation is not None or a.down is not None else None
        ctx.save_for_backward(needed, small, raw if a.lengths is not None else None, *a)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, small, raw, *rest = ctx.saved_tensors
        a = Beside(*rest)
        grad, grad_lengths = _through_lengths(grads[0], raw, a.lengths)
        grad_x, grad_small = _backward(ctx.matrix, grad, a, ctx.needs_input_grad[1])
        inner, activated, up = x, None, None
        if ctx.activation is not None:
            gate, up = halves(x, ctx.activation)
            activated = activate(gate, ctx.activation)
            inner = activated * up
        grad_down = grad_up = None
        if grad_small is not None:
            grad_down = grad_small.t() @ (inner if a.keep is None else inner * a.keep)
            grad_up = small.t() @ grad
        if grad_x is not None and activated is not None and up is not None:
            # Nothing else needs gate and up any more, nor what they became: fresh memory would cost more than this.
            grad_activated = torch.mul(grad_x, up, out=inner)
            grad_x = gated_backward(grad_x, x, activated, grad_activated, ctx.activation, x)
        residual = grads[0] if ctx.needs_input_grad[0] else None
        return residual, grad_x, None, None, None, grad_down, grad_up, grad_lengths, None


def _forward(matrix: Joined, x: Tensor, a: Beside, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Compute x (N, I) → residual + W x + up down x (N, O), and down x (N, R).

    One product sums it all before it rounds. In half precision what an adapter adds in its first steps is less than
    half a unit in the last place of W x, and would be rounded away if it were added afterwards.
    """
    if a.down is None or a.up is None:
        small, weight = None, matrix.numbers(x) if matrix.is_wide else matrix.numbers(x).t()
    else:
        small = (x if a.keep is None else x * a.keep) @ a.down.t()
        x = torch.cat([x, small], dim=1)
        weight = matrix.numbers(x, below=a.up) if matrix.is_wide else matrix.numbers(x, beside=a.up.t()).t()
    return (x @ weight if residual is None else torch.addmm(residual, x, weight)), small


def _backward(matrix: Joined, grad: Tensor, a: Beside, whole: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradient (N, O) of the result → of x (N, I), when the `whole` is asked for, and of down x (N, R)."""
    plain = whole and (a.down is None or a.keep is not None)
    grad_x = grad @ (matrix.numbers(grad).t() if matrix.is_wide else matrix.numbers(grad)) if plain else None
    if a.down is None or a.up is None:
        return grad_x, None
    if whole and grad_x is None and matrix.is_wide:
        both = grad @ matrix.numbers(grad, below=a.up).t()
        grad_x, small = both.split([a.down.shape[1], a.down.shape[0]], dim=1)
        small = small.contiguous()
        return torch.addmm(grad_x, small, a.down), small
    small = grad @ a.up.t()
    if grad_x is not None and a.keep is not None:
        grad_x = torch.addcmul(grad_x, small @ a.down, a.keep)
    elif whole:
        grad_x = torch.cat([grad, small], dim=1) @ matrix.numbers(grad, below=a.down)
    return grad_x, small


def _finish(raw: Tensor, lengths: Tensor | None, bias: Tensor | None) -> Tensor:
    if lengths is not None:
        raw = raw * lengths
    return raw if bias is None else raw.add_(bias)


def _through_lengths(grad: Tensor, raw: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradient behind a product with `lengths` (O,) → before it, and of `lengths`."""
    if lengths is None or raw is None:
        return grad, None
    return grad * lengths, (grad * raw).sum(0)
