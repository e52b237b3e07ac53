"""Products with frozen matrices and what an adapter adds to them, with hand-written backwards.

A low-rank adapter adds up · (down · x) to a product W · x. Done by itself that is one more pass over the products'
larger side, forward and back. Here it rides along: the adapter's numbers stand beside W, or below it, so that one
product makes both. Nothing is computed for frozen weights, and no input that is not needed is kept.

Letters: N tokens, D hidden width, I inputs, O outputs, R rank of the adapters of all stacked linears together.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd import Function

from settle.model.kernels import activate, activate_backward, inverse_rms, norm_backward


class Matrix(Protocol):
    """Frozen weights (O, I) that make room for an adapter's."""

    outputs: int
    inputs: int

    def numbers(self, like: Tensor, beside: Tensor | None = None, below: Tensor | None = None) -> Tensor:
        """The weights in the type and on the device of `like`, with `beside` (O, R) or `below` (R, I) attached."""


class Beside(NamedTuple):
    """What stands beside a frozen product, in the compute type.

    down (R, I), up (O, R) with the scale in it; lengths (O,) multiplies the result (DoRA); keep (N, I) multiplies the
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
        ctx: Any, x: Tensor, factor: Tensor, eps: float, matrix: Matrix, bias: Tensor | None, *adapter: Tensor | None
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, factor, small, raw, *rest = ctx.saved_tensors
        a = Beside(*rest)
        factor = factor.to(unit.dtype)
        grad_residual, grad = grads
        grad, grad_lengths = _through_lengths(grad, raw, a.lengths)
        grad_x, grad_small = _backward(ctx.matrix, grad, a, ctx.needs_input_grad[0])
        grad_down = None
        if grad_small is not None:
            # the norm's factor is applied on the small side; with dropout the mask stands in between
            kept = unit if a.keep is None else unit * a.keep
            grad_down = (grad_small.t() @ kept).mul_(factor)
        if grad_x is not None:
            grad_x = torch.addcmul(grad_residual, norm_backward(grad_x.mul_(factor), unit), scale)
        grad_up = grad.t() @ small if grad_small is not None else None
        return grad_x, None, None, None, None, grad_down, grad_up, grad_lengths, None


class FrozenAdd(Function):
    """residual (N, O) or nothing + frozen linears of x, or of activation(gate) · up when x is gate and up (N, 2I).

    Of the gated input only gate and up are kept; the rest is computed again on the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor | None,
        x: Tensor,
        activation: str | None,
        matrix: Matrix,
        bias: Tensor | None,
        *adapter: Tensor | None,
    ) -> Tensor:
        a = Beside(*adapter)
        inner = x if activation is None else _gated(x, activation)[1]
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, small, raw, *rest = ctx.saved_tensors
        a = Beside(*rest)
        grad, grad_lengths = _through_lengths(grads[0], raw, a.lengths)
        grad_x, grad_small = _backward(ctx.matrix, grad, a, ctx.needs_input_grad[1])
        inner, activated = x, None
        if ctx.activation is not None:
            activated, inner = _gated(x, ctx.activation)
        grad_down = grad_up = None
        if grad_small is not None:
            grad_down = grad_small.t() @ (inner if a.keep is None else inner * a.keep)
            grad_up = grad.t() @ small
        if grad_x is not None and activated is not None:
            grad_x = _gated_backward(grad_x, x, activated, ctx.activation)
        residual = grads[0] if ctx.needs_input_grad[0] else None
        return residual, grad_x, None, None, None, grad_down, grad_up, grad_lengths, None


def _forward(matrix: Matrix, x: Tensor, a: Beside, residual: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """x (N, I) → residual + W x + up down x (N, O), and down x (N, R)."""
    if a.down is None or a.up is None:
        weight = matrix.numbers(x)
        return (x @ weight.t() if residual is None else torch.addmm(residual, x, weight.t())), None
    if a.keep is not None:
        small = (x * a.keep) @ a.down.t()
        return torch.addmm(_forward(matrix, x, Beside(), residual)[0], small, a.up.t()), small
    if matrix.outputs > matrix.inputs:
        small = x @ a.down.t()
        out = torch.cat([x, small], dim=1) @ matrix.numbers(x, beside=a.up).t()
        return (out if residual is None else out.add_(residual)), small
    both = x @ matrix.numbers(x, below=a.down).t()
    out, small = both[:, : matrix.outputs], both[:, matrix.outputs :].contiguous()
    if residual is not None:
        out = residual + out
    return torch.addmm(out, small, a.up.t()), small


def _backward(matrix: Matrix, grad: Tensor, a: Beside, whole: bool) -> tuple[Tensor | None, Tensor | None]:
    """Gradient (N, O) of the result → of x (N, I), when the `whole` is asked for, and of down x (N, R)."""
    if a.down is None or a.up is None:
        return (grad @ matrix.numbers(grad) if whole else None), None
    if not whole or a.keep is not None or matrix.outputs <= matrix.inputs:
        small = grad @ a.up
        if not whole:
            return None, small
        if a.keep is not None:
            return torch.addcmul(grad @ matrix.numbers(grad), small @ a.down, a.keep), small
        return torch.cat([grad, small], dim=1) @ matrix.numbers(grad, below=a.down), small
    both = grad @ matrix.numbers(grad, beside=a.up)
    small = both[:, matrix.inputs :].contiguous()
    return torch.addmm(both[:, : matrix.inputs], small, a.down), small


def _finish(raw: Tensor, lengths: Tensor | None, bias: Tensor | None) -> Tensor:
    if lengths is not None:
        raw = raw * lengths
    return raw if bias is None else raw.add_(bias)


def _through_lengths(grad: Tensor, raw: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradient behind a product with `lengths` (O,) → before it, and of `lengths`."""
    if lengths is None:
        return grad, None
    return grad * lengths, (grad * raw).sum(0)


def _gated(gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """(N, 2F) → activation(gate), and that times up; (N, F) each."""
    gate, up = gate_up.chunk(2, dim=-1)
    activated = activate(gate, activation)
    return activated, activated * up


def _gated_backward(grad: Tensor, gate_up: Tensor, activated: Tensor, activation: str) -> Tensor:
    """Gradient (N, F) of activation(gate) · up → of gate and up (N, 2F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    out = torch.empty_like(gate_up)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    torch.mul(grad, activated, out=grad_up)
    activate_backward(grad.mul_(up), gate, grad_gate, activation)
    return out
