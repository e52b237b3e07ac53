"""Layers of a Llama-family decoder on packed sequences, in the compute type a machine is fastest in.

Parameters stay fp32 and keep Hugging Face's names and layout. What the matrix products read is a copy: stacked
(q, k, v as one; gate, up as one), with the norm's weight folded in, in the compute type. A copy is made again
when its parameters have changed, so once a step and not once a micro-batch.

Letters: N tokens, D hidden width, F feed-forward width, H query heads, K key/value heads, d head width.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from settle.model.attention import attention
from settle.model.kernels import LinearAdd, Lookup, NormLinear, RmsNorm, SwiGlu
from settle.model.packing import Packing, RotationTable


class Cast:
    """What `make` computes from parameters, kept until one of them changes.

    A change is seen by the tensor's version counter and address; writing through `.data` escapes both.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        self.key: tuple[object, ...] = ()
        self.value: Tensor | None = None

    def __call__(self, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        key = (dtype, *((p._version, p.data_ptr()) for p in parameters))
        if self.value is None or key != self.key:
            with torch.no_grad():
                self.value = self.make(*parameters).to(dtype)
            self.key = key
        return self.value


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight (D,), initialised to ones."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x (N, D) → (N, D)."""
        return RmsNorm.apply(x, self.weight, self.eps)


class Embedding(nn.Module):
    """A table (V, D); `forward(ids (N,), dtype)` → (N, D)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, width))
        self._cast = Cast(lambda w: w.detach())

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return Lookup.apply(ids, self._cast(dtype, self.weight), self.weight)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and K ≤ H key/value heads."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.q_proj = _linear(width, heads * head_dim)
        self.k_proj = _linear(width, kv_heads * head_dim)
        self.v_proj = _linear(width, kv_heads * head_dim)
        self.o_proj = _linear(heads * head_dim, width)
        self._qkv = Cast(self._stack)
        self._out = Cast(lambda w: w.detach())

    def _stack(self, norm: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Stacked and folded weight ((H + 2K)·d, D), with rotation pairs as neighbours."""
        return torch.cat([_interleave(q, self.head_dim), _interleave(k, self.head_dim), v]).mul_(norm)

    def _unstack(self, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = grad.split([p.weight.shape[0] for p in (self.q_proj, self.k_proj, self.v_proj)])
        return _halves(q, self.head_dim), _halves(k, self.head_dim), v

    def forward(self, x: Tensor, norm: RMSNorm, packing: Packing, table: RotationTable) -> Tensor:
        """x (N, D) → x + attention(norm(x))."""
        weights = (norm.weight, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        folded = self._qkv(x.dtype, *weights)
        residual, qkv = NormLinear.apply(x, folded, self._unstack, norm.eps, *weights)
        mixed = attention(qkv, packing, table)
        return LinearAdd.apply(residual, mixed, self._out(x.dtype, self.o_proj.weight), self.o_proj.weight)


class MLP(nn.Module):
    """SwiGLU feed-forward of width F."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = _linear(width, inner)
        self.up_proj = _linear(width, inner)
        self.down_proj = _linear(inner, width)
        self._gate_up = Cast(lambda norm, gate, up: torch.cat([gate, up]).mul_(norm))
        self._down = Cast(lambda w: w.detach())

    def forward(self, x: Tensor, norm: RMSNorm) -> Tensor:
        """x (N, D) → x + mlp(norm(x))."""
        weights = (norm.weight, self.gate_proj.weight, self.up_proj.weight)
        folded = self._gate_up(x.dtype, *weights)
        residual, gate_up = NormLinear.apply(x, folded, _two, norm.eps, *weights)
        inner = SwiGlu.apply(gate_up)
        return LinearAdd.apply(residual, inner, self._down(x.dtype, self.down_proj.weight), self.down_proj.weight)


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each behind its norm and added to the residual."""

    def __init__(self, width: int, inner: int, heads: int, kv_heads: int, head_dim: int, eps: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, kv_heads, head_dim)
        self.mlp = MLP(width, inner)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def forward(self, x: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """x (N, D) → (N, D)."""
        x = self.self_attn(x, self.input_layernorm, packing, table)
        return self.mlp(x, self.post_attention_layernorm)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear without bias whose weight is left for the architecture to initialise."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
    return made


def _interleave(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from halves (Hugging Face: i pairs with i + d/2) to neighbours (2i with 2i + 1)."""
    rows, width = weight.shape
    return weight.view(-1, 2, head_dim // 2, width).transpose(1, 2).reshape(rows, width)


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `_interleave`."""
    rows, width = weight.shape
    return weight.view(-1, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _two(grad: Tensor) -> Sequence[Tensor]:
    return grad.chunk(2)
