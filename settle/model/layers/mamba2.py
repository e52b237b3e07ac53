"""Mamba-2, a state space with one decay for each head (arXiv:2405.21060), as Falcon-H1 and Granite 4 have it.

Letters: B sequences of T tokens, I inner width: H heads of d numbers, G groups of heads, S width of a state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from settle.model.config import LayerOptions, Mamba2
from settle.model.layers.chunked_scan import scan
from settle.model.layers.linear import Linear, RMSNorm, Stack
from settle.model.layers.mixer import Recurrence, Taps, convolve
from settle.model.layers.packed_sequences import State


class StateSpace(Recurrence):
    """A matrix for each head that decays by a step drawn from the token, and to which the token adds its input."""

    def __init__(self, own: Mamba2, o: LayerOptions) -> None:
        super().__init__()
        self.own, self.residual_scale = own, o.residual_scale
        self.in_proj = Linear(o.width, sum(own.parts), own.bias)
        self.conv1d = Taps(own.mixed, own.kernel, own.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(own.heads))
        self.A_log = nn.Parameter(torch.empty(own.heads))
        self.D = nn.Parameter(torch.empty(own.heads))
        self.norm = None if own.norm == "none" else RMSNorm(own.inner, o.eps)
        self.out_proj = Linear(own.inner, o.width, own.bias)
        self.inward, self.out = Stack([(self.in_proj, 0)], None, o.norm_offset), Stack([(self.out_proj, 0)])

    def weights(self) -> list[Tensor]:
        norm = [] if self.norm is None else [self.norm.weight]
        return [self.A_log, self.dt_bias, self.D, *norm, *self.conv1d.tensors()]

    def mix(self, rows: Tensor, weights: Sequence[Tensor], state: State = ()) -> tuple[Tensor, State]:
        """Mix rows (B, T, O): gates, inputs with keys and queries, steps → (B, T, I)."""
        own, wide = self.own, torch.promote_types(rows.dtype, torch.float32)
        a_log, dt_bias, skip, *rest = weights
        norm = None if self.norm is None else rest.pop(0)
        if own.scales:
            parts = zip(own.scales, own.parts, strict=True)
            rows = rows * torch.cat([rows.new_full((width,), scale) for scale, width in parts])
        gate, mixed, step = rows.split([own.inner, own.mixed, own.heads], dim=-1)
        mixed, last = convolve(mixed, rest, *state[:1])
        x, key, query = silu(mixed).to(wide).split([own.inner, own.groups * own.state, own.groups * own.state], dim=-1)
        k, q = (self._by_head(part, own.groups).repeat_interleave(own.heads // own.groups, 1) for part in (key, query))
        steps = softplus(step.to(wide) + dt_bias).transpose(1, 2)
        v = self._by_head(x, own.heads)
        out, matrix = scan(q, k, v * steps.unsqueeze(-1), -a_log.exp().unsqueeze(-1) * steps, None, *state[1:])
        out = (out + v * skip.view(-1, 1, 1)).transpose(1, 2).flatten(2)
        return self._gated(out, silu(gate.to(wide)), norm).to(rows.dtype), (last, matrix)

    def _by_head(self, x: Tensor, heads: int) -> Tensor:
        """Split x (B, T, heads · n) → (B, heads, T, n)."""
        split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        return split

    def _gated(self, x: Tensor, gate: Tensor, norm: Tensor | None) -> Tensor:
        """Multiply x (B, T, I) by its gate, before or behind the norm of each group, or without one."""
        if self.norm is None or norm is None:
            return x * gate
        x = x * gate if self.own.norm == "behind gate" else x
        groups = x.unflatten(-1, (self.own.groups, -1))
        x = (groups * (groups.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt()).flatten(-2) * norm
        return x if self.own.norm == "behind gate" else x * gate
