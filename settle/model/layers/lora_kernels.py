"""Products with frozen matrices and what an adapter adds to them, with hand-written backwards.

A low-rank adapter adds up · (down · x) to a product W · x. Done by itself that is one more pass over the products'
larger side, forward and back. Here it rides along: the adapter's numbers lie below or beside W, or its transpose when
that is the wider one, so that one product makes both. Nothing is computed for frozen weights, and no input that is not
needed is kept.

Letters: N tokens, D hidden width, I inputs, O outputs, R rank of the adapters of all stacked linears together.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from settle.model.layers.kernels import Context, activate, activate_backward, inverse_rms, norm_backward


class Matrix(Protocol):
    """Frozen weights W (O, I) that make room for an adapter's."""

    is_wide: bool  # O > I

    def numbers(self, like: Tensor, below: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """W, or its transpose when it is wide, in the type and on the device of `like`; then more rows, or columns."""


class Beside(NamedTuple):
    """The adapter's operands beside a frozen product, in the compute type.

    down (R, I), up (R, O) with the scale in it; lengths (O,) multiplies the result (DoRA); keep (N, I) multiplies the
    inputs of `down` (dropout).
    """

    down: Tensor | None = None
    up: Tensor | None = None
    lengths: Tensor | None = None
    keep: Tensor | None = None


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
        matrix: Matrix,
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
        matrix: Matrix,
        bias: Tensor | None,
        *adapter: Tensor | None,
    ) -> Tensor:
        a = Beside(*adapter)
        inner = x
        if activation is not None:
            gate, up = x.chunk(2, dim=-1)
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
        inner, activated = x, None
        if ctx.activation is not None:
            gate, up = x.chunk(2, dim=-1)
            activated = activate(gate, ctx.activation)
            inner = activated * up
        grad_down = grad_up = None
        if grad_small is not None:
            grad_down = grad_small.t() @ (inner if a.keep is None else inner * a.keep)
            grad_up = small.t() @ grad
        if grad_x is not None and activated is not None:
            grad_x = _gated_backward(grad_x, x, activated, inner, ctx.activation)
        residual = grads[0] if ctx.needs_input_grad[0] else None
        return residual, grad_x, None, None, None, grad_down, grad_up, grad_lengths, None


def _forward(matrix: Matrix, x: Tensor, a: Beside, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
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


def _backward(matrix: Matrix, grad: Tensor, a: Beside, whole: bool) -> tuple[Tensor | None, Tensor | None]:
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


def _gated_backward(grad: Tensor, gate_up: Tensor, activated: Tensor, spare: Tensor, activation: str) -> Tensor:
    """Gradient (N, F) of activation(gate) · up → of gate and up (N, 2F), in the place of `gate_up` itself.

    Nothing else needs that any more, and fresh memory of its size would cost more than the arithmetic. spare (N, F) is
    overwritten.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    torch.mul(grad, up, out=spare)
    torch.mul(grad, activated, out=up)
    activate_backward(spare, gate, gate, activation)
    return gate_up
