"""Causal self-attention as a layer's mixer.

Letters: N tokens, D hidden width, H query heads, K key/value heads, d head width.
"""

import torch
from torch import Tensor, nn

from settle.model.config import LayerOptions
from settle.model.layers.attention import attention
from settle.model.layers.kernels import HeadNorm, apply
from settle.model.layers.linear import Linear, RMSNorm, Stack, Turning
from settle.model.layers.mixer import Mixer
from settle.model.layers.packed_sequences import Carried, Packing, RotationTable, Scoring


class Attention(Mixer):
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
        elif o.borrows:
            self.q_proj = Linear(o.width, query, o.qkv_bias)
            members = [(self.q_proj, query)]
        else:
            self.q_proj = Linear(o.width, 2 * query if o.attention_gates else query, o.qkv_bias)
            self.k_proj = Linear(o.width, key, o.qkv_bias)
            self.v_proj = Linear(o.width, key, o.qkv_bias)
            members = [(self.q_proj, query), (self.k_proj, key), (self.v_proj, 0)]
        self.o_proj = Linear(query, o.width, o.out_bias)
        self.sinks = nn.Parameter(torch.empty(o.heads)) if o.sinks else None
        widths = (query, key) if o.whole_norms else (o.head_dim, o.head_dim) if o.head_norms else ()
        norms: list[RMSNorm | None] = [RMSNorm(width, o.eps, o.norm_offset) for width in widths]
        self.q_norm, self.k_norm = norms or [None, None]
        if o.borrows:
            self.k_norm = None
        self.are_norms_whole, self.residual_scale = o.whole_norms, o.residual_scale
        self.value_norms, self.lends, self.borrows, self.queries = o.value_norms, o.lends, o.borrows, query
        rotary_dim = o.rope.rotary_dim or o.head_dim
        self.turning = Turning(o.head_dim, rotary_dim, o.fused_by_head, o.rope.is_interleaved)
        self.clip = o.clip_qkv
        self.inward = Stack(members, self.turning, o.norm_offset, o.attention_gates)
        self.gates = query if o.attention_gates else 0
        self.out = Stack([(self.o_proj, 0)])

    def mixed(self, rows: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Mix the values of rows (N, (H + 2K)·d), queries, keys and values, by attention → (N, H·d).

        Where there are gates, as many as queries, they come first.
        """
        gates, rows = rows[:, : self.gates], rows[:, self.gates :].contiguous() if self.gates else rows
        if self.clip is not None:
            rows = rows.clamp(-self.clip, self.clip)
        if self.q_norm is not None:
            rows = apply(HeadNorm, rows, self.q_norm.eps, *self._head_factors(self.q_norm))
        if self.borrows:
            rows = torch.cat([rows, carried.lent[self.borrows]], dim=1)
        if self.lends:
            carried.lent[self.lends] = rows[:, self.queries :]
        bias = self.inward.bias(table.dtype) if self.adds_bias else None
        scoring = Scoring(self.window, self.soft_cap, self.float32_scores, self.sinks)
        mixed = attention(rows, packing, table, scoring, bias)
        return mixed * torch.sigmoid(gates) if self.gates else mixed

    @property
    def adds_bias(self) -> bool:
        """Whether queries and keys get their bias after the product: a bias of 200 rounds what it is added to."""
        reads_rows = self.q_norm is not None or self.clip is not None or self.gates
        return self.float32_scores and not reads_rows and self.inward.has_bias_apart

    def _head_factors(self, q_norm: RMSNorm) -> tuple[Tensor, ...]:
        """Return what each normed head is multiplied by, (H + K, d), as the heads lie in qkv.

        (H, d) where keys are borrowed, (H + 2K, d) where values are normed too; (1, H·d) and (1, K·d) where all queries
        are normed together, and all keys.
        """
        norms = [q_norm] if self.k_norm is None else [q_norm, self.k_norm]
        factors = [self.turning.neighbours(norm.factor()).unsqueeze(0) for norm in norms]
        if self.are_norms_whole:
            return tuple(factors)
        factors = [
            factor.expand(heads, -1) for factor, heads in zip(factors, (self.heads, self.kv_heads), strict=False)
        ]
        if self.k_norm is not None and self.value_norms:
            factors.append(torch.ones_like(factors[-1]))
        return (torch.cat(factors),)
