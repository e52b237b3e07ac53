"""Layers of a decoder on packed sequences, in the compute type a machine is fastest in; one set for all families.

Parameters stay fp32 and keep Hugging Face's names and layout; `linear` says what the matrix products read.

Letters: N tokens, D hidden width, F feed-forward width, H query heads, K key/value heads, d head width, E experts.
"""

import torch
from torch import Tensor, nn

from settle.model.config import Experts, LayerOptions
from settle.model.layers.attention import attention
from settle.model.layers.frozen_weights import Owner
from settle.model.layers.kernels import HeadNorm, Lookup, apply
from settle.model.layers.linear import Cast, Linear, RMSNorm, Stack, Turning
from settle.model.layers.packed_sequences import Packing, RotationTable, Scoring


class Embedding(Owner):
    """A table (V, D); `forward(ids (N,), dtype)` → (N, D)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self._cast = Cast(lambda w: w.detach())

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        if self.frozen is not None:
            return self.frozen.rows(ids, dtype)
        return apply(Lookup, ids, self._cast(dtype, self.weight), self.weight)

    def cast(self, dtype: torch.dtype) -> Tensor:
        """Return the table in `dtype`, without gradient; only to be read."""
        return self._cast(dtype, self.weight) if self.frozen is None else self.frozen.dense(dtype)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and K ≤ H key/value heads.

    float32_scores: its scores are too large for a half type, see `score_sizes`. May be set at any time.
    """

    float32_scores = False

    def __init__(self, o: LayerOptions) -> None:
        super().__init__()
        query, key = o.heads * o.head_dim, o.kv_heads * o.head_dim
        self.heads, self.kv_heads, self.window, self.soft_cap = o.heads, o.kv_heads, o.window, o.soft_cap
        if o.fused:
            self.qkv_proj = Linear(o.width, query + 2 * key, o.qkv_bias)
            members = [(self.qkv_proj, query + key)]
        else:
            self.q_proj = Linear(o.width, query, o.qkv_bias)
            self.k_proj = Linear(o.width, key, o.qkv_bias)
            self.v_proj = Linear(o.width, key, o.qkv_bias)
            members = [(self.q_proj, query), (self.k_proj, key), (self.v_proj, 0)]
        self.o_proj = Linear(query, o.width, o.out_bias)
        self.q_norm = RMSNorm(o.head_dim, o.eps, o.norm_offset) if o.head_norms else None
        self.k_norm = RMSNorm(o.head_dim, o.eps, o.norm_offset) if o.head_norms else None
        self.turning = Turning(o.head_dim, o.rope.rotary_dim or o.head_dim)
        self.qkv = Stack(members, self.turning, o.norm_offset)
        self.out = Stack([(self.o_proj, 0)])

    def forward(self, x: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """Compute attention of x (N, D), behind its norm → (N, D)."""
        return self.out.linear(self._mixed(self.qkv.linear(x, not self._adds_bias), packing, table))

    def add(
        self, x: Tensor, norm: RMSNorm, packing: Packing, table: RotationTable, after: RMSNorm | None = None
    ) -> Tensor:
        """Compute x (N, D) → x + attention(norm(x)), or x + after(attention(norm(x))), in few passes over x."""
        residual, qkv = self.qkv.norm_linear(x, norm, not self._adds_bias)
        mixed = self._mixed(qkv, packing, table)
        if after is None:
            return self.out.linear_add(residual, mixed)
        return after.add(residual, self.out.linear(mixed))

    def _mixed(self, qkv: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """Mix the values of qkv (N, (H + 2K)·d) by attention → (N, H·d)."""
        if self.q_norm is not None and self.k_norm is not None:
            qkv = apply(HeadNorm, qkv, self._head_factors(self.q_norm, self.k_norm), self.q_norm.eps)
        bias = self.qkv.bias(table.dtype) if self._adds_bias else None
        return attention(qkv, packing, table, Scoring(self.window, self.soft_cap, self.float32_scores), bias)

    @property
    def _adds_bias(self) -> bool:
        """True when queries and keys get their bias after the product.

        A bias of 200, added in bfloat16, would round what it is added to.
        """
        return self.float32_scores and self.q_norm is None and self.qkv.has_bias_apart

    def _head_factors(self, q_norm: RMSNorm, k_norm: RMSNorm) -> Tensor:
        """Return what each query and key head is multiplied by after its norm, (H + K, d), as the heads lie in qkv."""
        q, k = (self.turning.neighbours(norm.factor()) for norm in (q_norm, k_norm))
        return torch.cat([q.expand(self.heads, -1), k.expand(self.kv_heads, -1)])


class MLP(nn.Module):
    """Gated feed-forward of width F."""

    def __init__(self, o: LayerOptions, inner: int) -> None:
        super().__init__()
        if o.fused:
            self.gate_up_proj = Linear(o.width, 2 * inner, o.mlp_bias)
            members = [self.gate_up_proj]
        else:
            self.gate_proj = Linear(o.width, inner, o.mlp_bias)
            self.up_proj = Linear(o.width, inner, o.mlp_bias)
            members = [self.gate_proj, self.up_proj]
        self.down_proj = Linear(inner, o.width, o.mlp_bias)
        self.activation = o.activation
        self.gate_up = Stack([(linear, 0) for linear in members], None, o.norm_offset)
        self.down = Stack([(self.down_proj, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute mlp of x (N, D), behind its norm → (N, D)."""
        return self.down.gated(None, self.gate_up.linear(x), self.activation)

    def add(self, x: Tensor, norm: RMSNorm, after: RMSNorm | None = None) -> Tensor:
        """Compute x (N, D) → x + mlp(norm(x)), or x + after(mlp(norm(x))), in few passes over x."""
        residual, gate_up = self.gate_up.norm_linear(x, norm)
        if after is None:
            return self.down.gated(residual, gate_up, self.activation)
        return after.add(residual, self.down.gated(None, gate_up, self.activation))


class TopExperts(nn.Module):
    """Which experts a token takes. A module, so that a proof can hold them fixed."""

    def __init__(self, top: int) -> None:
        super().__init__()
        self.top = top

    def forward(self, chances: Tensor) -> tuple[Tensor, Tensor]:
        """Choose by chances (N, E) → those of the likeliest experts (N, K), and which they are (N, K)."""
        largest, chosen = chances.topk(self.top, dim=-1)
        return largest, chosen


class MixtureOfExperts(nn.Module):
    """Feed-forwards, of which a router picks a few for each token (Qwen3-MoE)."""

    def __init__(self, o: LayerOptions, experts: Experts) -> None:
        super().__init__()
        self.gate = Linear(o.width, experts.num)
        self.experts = nn.ModuleList(MLP(o, experts.inner) for _ in range(experts.num))
        self.choice, self.normalised = TopExperts(experts.top), experts.normalised
        self.router = Stack([(self.gate, 0)])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the chosen experts' results of x (N, D), behind its norm, weighted → (N, D)."""
        wide = torch.promote_types(x.dtype, torch.float32)
        chances, chosen = self.choice(self.router.linear(x).softmax(-1, dtype=wide))
        if self.normalised:
            chances = chances / chances.sum(-1, keepdim=True)
        tokens = torch.arange(len(x), device=x.device).repeat_interleave(self.choice.top)
        order = chosen.flatten().argsort(stable=True)
        tokens, shares = tokens[order], chances.to(x.dtype).flatten()[order].unsqueeze(1)
        # bincount would ask the device for the largest number first
        ones = torch.ones_like(order)
        counts = order.new_zeros(len(self.experts)).index_add_(0, chosen.flatten(), ones).tolist()
        # gathered and scattered once, not once an expert
        parts = zip(self.experts, x.index_select(0, tokens).split(counts), strict=True)
        results = torch.cat([expert(rows) for expert, rows in parts if len(rows)])
        return torch.zeros_like(x).index_add(0, tokens, results * shares)

    def add(self, x: Tensor, norm: RMSNorm, after: RMSNorm | None = None) -> Tensor:
        """Compute x (N, D) → x + experts(norm(x)), or x + after(experts(norm(x)))."""
        return x + self(norm(x)) if after is None else after.add(x, self(norm(x)))


class DecoderLayer(nn.Module):
    """The definition of a layer: attention and feed-forward, each behind its norm and added to the residual.

    Gemma's sandwich norms also normalise what is added. The decoder runs `FusedLayer`, which computes the same.
    """

    def __init__(self, o: LayerOptions) -> None:
        super().__init__()
        self.options = o
        self.self_attn = Attention(o)
        self.mlp: MLP | MixtureOfExperts = MLP(o, o.inner) if o.experts is None else MixtureOfExperts(o, o.experts)
        self.input_layernorm = RMSNorm(o.width, o.eps, o.norm_offset)
        self.post_attention_layernorm = RMSNorm(o.width, o.eps, o.norm_offset)
        if o.sandwich_norms:
            self.pre_feedforward_layernorm = RMSNorm(o.width, o.eps, o.norm_offset)
            self.post_feedforward_layernorm = RMSNorm(o.width, o.eps, o.norm_offset)

    def forward(self, x: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """Compute x (N, D) → (N, D)."""
        if self.options.sandwich_norms:
            x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), packing, table))
            x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        else:
            x = x + self.self_attn(self.input_layernorm(x), packing, table)
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class FusedLayer(DecoderLayer):
    """A layer whose norms, products and residuals are computed together, in half as many passes over activations."""

    def forward(self, x: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """Compute x (N, D) → (N, D)."""
        return self.add_mlp(self.add_attention(x, packing, table))

    def add_attention(self, x: Tensor, packing: Packing, table: RotationTable) -> Tensor:
        """Compute x (N, D) → the residual stream after attention (N, D)."""
        after = self.post_attention_layernorm if self.options.sandwich_norms else None
        return self.self_attn.add(x, self.input_layernorm, packing, table, after)

    def add_mlp(self, x: Tensor) -> Tensor:
        """Compute x (N, D), the stream after attention → the stream after the layer (N, D)."""
        if self.options.sandwich_norms:
            return self.mlp.add(x, self.pre_feedforward_layernorm, self.post_feedforward_layernorm)
        return self.mlp.add(x, self.post_attention_layernorm)
