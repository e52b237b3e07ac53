"""The differentiable pieces of a decoder layer, each one autograd node with a hand-written backward.

On a CPU the matrix products of a small model are so fast (AMX, AVX-512) that passes over activations decide the
time of a step. So every function here is written to touch activations as few times as it can: the weight of an
RMS norm is folded into the linear behind it, the residual is added by the matrix product, rotations happen as
one complex product, the attention's scale sits in the rotation table (see `attention`).

Letters: N tokens, D hidden width, O outputs of a linear, F feed-forward width, H query heads, K key/value heads,
d head width, B segments of x
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Context = Any  # of a `Function`: torch keeps any attribute on it
Unfold = Callable[[Tensor], Sequence[Tensor]]  # the gradient of stacked weights → one of each
Remake = Callable[..., Tensor] | None  # (dtype, *parameters) → what a product reads, for its backward; None: it is kept


def apply(function: type[Function], *arguments: object) -> Tensor:
    """Call a function with a gradient of its own."""
    out: Tensor = function.apply(*arguments)
    return out


def apply_pair(function: type[Function], *arguments: object) -> tuple[Tensor, Tensor]:
    """Call a function with a gradient of its own and two results."""
    first, second = function.apply(*arguments)
    return first, second


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms along the last dimension. x (…, D) → (…, 1) in fp32 (fp64 stays fp64)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    out: Tensor = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return out


class RmsNorm(Function):
    """x (N, D), weight (D,) → x / rms(x) * weight, as LlamaRMSNorm (arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * unit).sum(0, dtype=weight.dtype) if ctx.needs_input_grad[1] else None
        grad_unit = grad * weight.to(grad.dtype)
        return norm_backward(grad_unit, unit).mul_(scale), grad_weight, None


def norm_backward(grad_unit: Tensor, unit: Tensor) -> Tensor:
    """Gradient through x → x / rms(x), before its factor 1 / rms."""
    shared = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).div_(-unit.shape[-1])
    return torch.addcmul(grad_unit, unit, shared)


class NormLinear(Function):
    """RMS norm and the linears behind it as one matrix product; hands the residual on.

    x (N, D), `folded` (O, D) = the stacked weights times the norm's, bias (O,) or None, then the norm's weight (D,),
    to which `offset` is added, and the stacked weights' owners → (x unchanged, (N, O)). The gradient of the norm's
    weight is computed on the weights' side, where it costs O·D instead of N·D.
    """

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        folded: Tensor,
        bias: Tensor | None,
        unfold: Unfold,
        remake: Remake,
        eps: float,
        offset: float,
        norm: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        scale = inverse_rms(x, eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, folded if remake is None else None, norm, *weights)
        ctx.unfold, ctx.remake, ctx.offset = unfold, remake, offset
        return x.view_as(x), _linear(unit, folded, bias)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, folded, norm, *weights = ctx.saved_tensors
        if folded is None:
            folded = ctx.remake(unit.dtype, norm, *weights)
        grad_residual, grad_out = grads
        grad_x = torch.addcmul(grad_residual, norm_backward(grad_out @ folded, unit), scale)
        grad_folded = (grad_out.t() @ unit).to(norm.dtype)
        pieces: Sequence[Tensor] = ctx.unfold(grad_folded)
        grad_norm = torch.zeros_like(norm)
        for piece, weight in zip(pieces, weights, strict=True):
            grad_norm.add_((piece * weight).sum(0))
        factor = norm + ctx.offset if ctx.offset else norm
        grad_bias = grad_out.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None, None, None, None, grad_norm, *(piece * factor for piece in pieces)


class Product(Function):
    """x (N, I) @ weight.T + bias. `cast` (O, I) is the weight in the compute type, `weight` its owner."""

    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        cast: Tensor,
        bias: Tensor | None,
        unfold: Unfold,
        remake: Remake,
        *weights: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, *((cast,) if remake is None else weights))
        ctx.unfold, ctx.remake, ctx.weight_dtype = unfold, remake, weights[0].dtype
        return _linear(x, cast, bias)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *read = ctx.saved_tensors
        cast = read[0] if ctx.remake is None else ctx.remake(x.dtype, *read)
        grad = grads[0]
        grad_bias = grad.sum(0) if ctx.needs_input_grad[2] else None
        return grad @ cast, None, grad_bias, None, None, *ctx.unfold((grad.t() @ x).to(ctx.weight_dtype))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


class LinearAdd(Function):
    """residual (N, D) + x (N, I) @ weight.T, the addition done by the matrix product.

    `cast` (D, I) is the weight in the compute type, `weight` its owner, which receives the gradient.
    """

    @staticmethod
    def forward(ctx: Context, residual: Tensor, x: Tensor, cast: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, cast)
        ctx.weight_dtype = weight.dtype
        return torch.addmm(residual, x, cast.t())

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, cast = ctx.saved_tensors
        grad = grads[0]
        return grad, grad @ cast, None, (grad.t() @ x).to(ctx.weight_dtype)


class NormAdd(Function):
    """residual (N, D) + y / rms(y) · weight: a branch behind a norm of its own. y (N, D), weight (D,)."""

    @staticmethod
    def forward(ctx: Context, residual: Tensor, y: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(y, eps).to(y.dtype)
        unit = y * scale
        ctx.save_for_backward(unit, scale, weight)
        return torch.addcmul(residual, unit, weight.to(y.dtype))

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * unit).sum(0, dtype=weight.dtype) if ctx.needs_input_grad[2] else None
        grad_y = norm_backward(grad * weight.to(grad.dtype), unit).mul_(scale)
        return grad, grad_y, grad_weight, None


class HeadNorm(Function):
    """RMS norms of queries and keys, in place: qkv (N, (H + 2K)·d), weights (n, w): n norms of w numbers each.

    They follow one another from the first query on: one weight of H + K rows has a norm for each head.
    """

    @staticmethod
    def forward(ctx: Context, qkv: Tensor, eps: float, *weights: Tensor) -> Tensor:
        saved, start = [], 0
        for weight in weights:
            heads = qkv[:, start : start + weight.numel()].unflatten(1, weight.shape)
            scale = inverse_rms(heads, eps).to(qkv.dtype)
            unit = heads * scale
            torch.mul(unit, weight.to(qkv.dtype), out=heads)
            saved += [unit, scale, weight]
            start += weight.numel()
        ctx.save_for_backward(*saved)
        ctx.mark_dirty(qkv)
        return qkv

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, saved, start = grads[0].clone(), ctx.saved_tensors, 0
        grad_weights: list[Tensor | None] = []
        for i in range(len(saved) // 3):
            unit, scale, weight = saved[3 * i : 3 * i + 3]
            heads = grad[:, start : start + weight.numel()].unflatten(1, weight.shape)
            is_needed = ctx.needs_input_grad[2 + i]
            grad_weights.append((heads * unit).sum(0, dtype=weight.dtype) if is_needed else None)
            torch.mul(norm_backward(heads * weight.to(grad.dtype), unit), scale, out=heads)
            start += weight.numel()
        return grad, None, *grad_weights


class Gated(Function):
    """gate_up (N, 2F) → activation(gate) · up (N, F), both as `halves` gives them."""

    @staticmethod
    def forward(ctx: Context, gate_up: Tensor, activation: str) -> Tensor:
        gate, up = halves(gate_up, activation)
        activated = activate(gate, activation)
        ctx.save_for_backward(gate_up, activated)
        ctx.activation = activation
        return activated * up

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate_up, activated = ctx.saved_tensors
        grad = grads[0]
        _, up = halves(gate_up, ctx.activation)
        return gated_backward(grad, gate_up, activated, grad * up, ctx.activation, torch.empty_like(gate_up)), None


_APPROXIMATE = {"gelu": "none", "gelu_tanh": "tanh"}
_STEEPNESS, _LIMIT = 1.702, 7.0  # of gpt-oss (arXiv:2508.10925), as llama.cpp has them too


def halves(gate_up: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return what of gate_up (N, 2F) is activated, and what multiplies that, (N, F) each.

    clamped_swiglu bounds both first, and multiplies by 1 more than the second.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if activation != "clamped_swiglu":
        return gate, up
    return gate.clamp(max=_LIMIT), up.clamp(-_LIMIT, _LIMIT).add_(1)


def activate(gate: Tensor, activation: str) -> Tensor:
    """Compute silu (arXiv:2002.05202), gelu (arXiv:1606.08415), its approximation gelu_tanh, or a steeper silu."""
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    if activation == "clamped_swiglu":
        return torch.sigmoid(gate * _STEEPNESS).mul_(gate)
    return torch.nn.functional.gelu(gate, approximate=_APPROXIMATE[activation])


def gated_backward(
    grad: Tensor, gate_up: Tensor, activated: Tensor, grad_activated: Tensor, activation: str, out: Tensor
) -> Tensor:
    """Gradient (N, F) of activation(gate) · up → of gate_up (N, 2F), into `out`, which may be gate_up itself.

    grad_activated (N, F): the gradient of activation(gate).
    """
    gate, up = gate_up.chunk(2, dim=-1)
    grad_gate, grad_up = out.chunk(2, dim=-1)
    if activation == "silu":
        torch.mul(grad, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad_activated, gate, grad_input=grad_gate)
    elif activation == "clamped_swiglu":
        torch.mul(grad * (up.abs() <= _LIMIT), activated, out=grad_up)
        low = gate.clamp(max=_LIMIT)
        share = torch.sigmoid(low * _STEEPNESS)
        slope = torch.addcmul(share, activated * _STEEPNESS, 1 - share)
        torch.mul(grad_activated * (gate <= _LIMIT), slope, out=grad_gate)
    else:
        torch.mul(grad, activated, out=grad_up)
        kind = _APPROXIMATE[activation]
        torch.ops.aten.gelu_backward.grad_input(grad_activated, gate, approximate=kind, grad_input=grad_gate)
    return out


class Lookup(Function):
    """Rows of a table: ids (N,), `cast` (V, D) in the compute type, its owner `weight` → (N, D)."""

    @staticmethod
    def forward(ctx: Context, ids: Tensor, cast: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return cast.index_select(0, ids)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        table = torch.zeros(ctx.shape, dtype=ctx.dtype, device=ids.device)
        return None, None, table.index_add_(0, ids, grads[0].to(ctx.dtype))
