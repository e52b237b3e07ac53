"""Gated delta nets (arXiv:2412.06464), as Qwen3-Next and Qwen3.5 have them.

Letters: B sequences of T tokens, D hidden width, H heads of values, k width of a key, v of a value.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from settle.model.config import DeltaNet, LayerOptions
from settle.model.layers.chunked_scan import scan
from settle.model.layers.linear import Linear, RMSNorm, Stack
from settle.model.layers.mixer import Recurrence, Taps, convolve
from settle.model.layers.packed_sequences import State

_KEY_EPS = 1e-6  # of the length of queries and keys


class GatedDeltaNet(Recurrence):
    """A matrix for each head, which forgets by a gate, and into which each token writes what it lacks."""

    def __init__(self, own: DeltaNet, o: LayerOptions) -> None:
        super().__init__()
        self.own = own
        self.conv1d = Taps(2 * own.keys + own.values, own.kernel, False)
        self.dt_bias = nn.Parameter(torch.empty(own.value_heads))
        self.A_log = nn.Parameter(torch.empty(own.value_heads))
        self.norm = RMSNorm(own.value_dim, o.eps)
        self.out_proj = Linear(own.values, o.width)
        inward = {name: Linear(o.width, rows) for name, rows in own.inward.items()}
        for name, linear in inward.items():
            self.add_module(name, linear)
        members = [(linear, 0) for linear in inward.values()]
        self.inward, self.out = Stack(members, None, o.norm_offset), Stack([(self.out_proj, 0)])

    def weights(self) -> list[Tensor]:
        return [*self.conv1d.tensors(), self.A_log, self.dt_bias, self.norm.weight]

    def mix(self, rows: Tensor, weights: Sequence[Tensor], state: State = ()) -> tuple[Tensor, State]:
        """Mix rows (B, T, O) of the inward linears → (B, T, H·v)."""
        own, (taps, a_log, dt_bias, norm) = self.own, weights
        wide = torch.promote_types(rows.dtype, torch.float32)
        if own.fused:
            rows = self._apart(rows)
        mixed, gate, rate, step = rows.split([taps.shape[0], own.values, own.value_heads, own.value_heads], dim=-1)
        mixed, last = convolve(mixed, [taps], *state[:1])
        q, k, v = silu(mixed).to(wide).split([own.keys, own.keys, own.values], dim=-1)
        q, k = (self._unit(x) for x in (q, k))
        log_decay = -a_log.exp() * softplus(step.to(wide) + dt_bias)
        v = v.unflatten(-1, (own.value_heads, -1)).transpose(1, 2)
        out, matrix = scan(
            q * own.key_dim**-0.5, k, v, log_decay.transpose(1, 2), rate.to(wide).sigmoid().transpose(1, 2), *state[1:]
        )
        out = out.transpose(1, 2)
        out = out * (out.square().mean(-1, keepdim=True) + self.norm.eps).rsqrt() * norm
        return (out.flatten(2) * silu(gate.to(wide))).to(rows.dtype), (last, matrix)

    def _apart(self, rows: Tensor) -> Tensor:
        """Order rows (B, T, O) of one key head after another as those of all queries, keys, values, gates and rates."""
        own = self.own
        values, heads = own.values // own.key_heads, own.value_heads // own.key_heads
        mixed, rates = rows.split([2 * (own.keys + own.values), 2 * own.value_heads], dim=-1)
        parts = mixed.unflatten(-1, (own.key_heads, -1)).split([own.key_dim, own.key_dim, values, values], dim=-1)
        parts += rates.unflatten(-1, (own.key_heads, -1)).split(heads, dim=-1)
        return torch.cat([part.flatten(-2) for part in parts], dim=-1)

    def _unit(self, x: Tensor) -> Tensor:
        """Scale queries or keys (B, T, ·) to length 1 → (B, H, T, k), those of a group of values repeated."""
        heads: Tensor = x.unflatten(-1, (self.own.key_heads, -1)).transpose(1, 2)
        heads = heads * (heads.square().sum(-1, keepdim=True) + _KEY_EPS).rsqrt()
        return heads.repeat_interleave(self.own.value_heads // self.own.key_heads, dim=1)
