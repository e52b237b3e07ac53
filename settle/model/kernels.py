"""The differentiable pieces of a decoder layer, each one autograd node with a hand-written backward.

On a CPU the matrix products of a small model are so fast (AMX, AVX-512) that passes over activations decide the
time of a step. So every function here is written to touch activations as few times as it can: the weight of an
RMS norm is folded into the linear behind it, the residual is added by the matrix product, rotations happen as
one complex product, the attention's scale sits in the rotation table (see `attention`).

Letters: N tokens, D hidden width, O outputs of a linear, F feed-forward width, H query heads, K key/value heads,
d head width, B segments of x
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / rms of each row. x (N, D) → (N, 1) in fp32 (fp64 stays fp64)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


class RmsNorm(Function):
    """x (N, D), weight (D,) → x / rms(x) * weight, as LlamaRMSNorm (arXiv:1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(x, eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, weight = ctx.saved_tensors
        grad = grads[0]
        grad_weight = (grad * unit).sum(0, dtype=weight.dtype)
        grad_unit = grad * weight.to(grad.dtype)
        return _norm_backward(grad_unit, unit).mul_(scale), grad_weight, None


def _norm_backward(grad_unit: Tensor, unit: Tensor) -> Tensor:
    """Gradient through x → x / rms(x), before its factor 1 / rms."""
    shared = torch.linalg.vecdot(grad_unit, unit).unsqueeze(-1).div_(-unit.shape[-1])
    return torch.addcmul(grad_unit, unit, shared)


class NormLinear(Function):
    """RMS norm and the linears behind it as one matrix product; hands the residual on.

    x (N, D), `folded` (O, D) = the stacked weights times the norm's weight, then the norm's weight (D,) and the
    stacked weights' owners → (x unchanged, (N, O)). The gradient of the norm's weight is computed on the weight's
    side, where it costs O·D instead of N·D.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, folded: Tensor, unfold: Any, eps: float, norm: Tensor, *weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale = inverse_rms(x, eps).to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, folded, norm, *weights)
        ctx.unfold = unfold
        return x.view_as(x), unit @ folded.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        unit, scale, folded, norm, *weights = ctx.saved_tensors
        grad_residual, grad_out = grads
        grad_x = torch.addcmul(grad_residual, _norm_backward(grad_out @ folded, unit), scale)
        grad_folded = (grad_out.t() @ unit).to(norm.dtype)
        pieces: Sequence[Tensor] = ctx.unfold(grad_folded)
        grad_norm = torch.zeros_like(norm)
        for piece, weight in zip(pieces, weights, strict=True):
            grad_norm.add_((piece * weight).sum(0))
        return grad_x, None, None, None, grad_norm, *(piece * norm for piece in pieces)


class LinearAdd(Function):
    """residual (N, D) + x (N, I) @ weight.T, the addition done by the matrix product.

    `cast` (D, I) is the weight in the compute type, `weight` its owner, which receives the gradient.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, cast: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, cast)
        ctx.weight_dtype = weight.dtype
        return torch.addmm(residual, x, cast.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, cast = ctx.saved_tensors
        grad = grads[0]
        return grad, grad @ cast, None, (grad.t() @ x).to(ctx.weight_dtype)


class SwiGlu(Function):
    """gate_up (N, 2F) → silu(gate) * up (N, F) (arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activated = torch.nn.functional.silu(gate)
        ctx.save_for_backward(gate_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor]:
        gate_up, activated = ctx.saved_tensors
        grad = grads[0]
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, activated, out=grad_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        return (grad_gate_up,)


class Lookup(Function):
    """Rows of a table: ids (N,), `cast` (V, D) in the compute type, its owner `weight` → (N, D)."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, cast: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.dtype = weight.shape, weight.dtype
        return cast.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        table = torch.zeros(ctx.shape, dtype=ctx.dtype, device=ids.device)
        return None, None, table.index_add_(0, ids, grads[0].to(ctx.dtype))
