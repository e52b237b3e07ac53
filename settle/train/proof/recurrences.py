"""What a layer's recurrence is by its definition: token by token in float64 on the CPU, slow and plain.

It shares no code with the layers. Letters: N tokens of a packed batch, S segments, O width of what a recurrence reads,
C channels and K taps of a convolution, H heads, G groups of them, k and v width of a key and of a value.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from settle.model.config import DeltaNet, LayerOptions, Mamba2, ShortConvolution
from settle.model.layers.packed_sequences import Recurrent


@torch.no_grad()
def recurrence_by_definition(rows: Tensor, bounds: Sequence[int], layer: LayerOptions, recurrence: Recurrent) -> Tensor:
    """Compute a layer's recurrence of rows (N, O), segment by segment, bounds (S + 1,) → (N, ·) in float64."""
    weights = [weight.detach().cpu().double() for weight in recurrence.weights()]
    segments = [rows[first:last].cpu().double() for first, last in zip(bounds, bounds[1:], strict=False)]
    definition = _DEFINITIONS[type(layer.recurrence)]
    return torch.cat([definition(segment, weights, layer.recurrence, layer.eps) for segment in segments])


def _convolved(x: Tensor, taps: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve x (T, C) with taps (C, 1, K), the last that of the token itself."""
    out = torch.zeros_like(x) if bias is None else bias.expand_as(x).clone()
    for token in range(len(x)):
        for back in range(min(taps.shape[2], token + 1)):
            out[token] += taps[:, 0, taps.shape[2] - 1 - back] * x[token - back]
    return out


def _short_convolution(rows: Tensor, weights: Sequence[Tensor], o: ShortConvolution, eps: float) -> Tensor:
    """Compute c · convolution(b · x) of rows (T, 3D): b, c, x (LFM2, arXiv:2511.23404)."""
    before, behind, x = rows.chunk(3, dim=1)
    return behind * _convolved(before * x, *weights)


def _delta_net(rows: Tensor, weights: Sequence[Tensor], o: DeltaNet, eps: float) -> Tensor:
    """Compute the gated delta rule (arXiv:2412.06464): S = αS + β k (v - αSᵀk)ᵀ, and Sᵀq is read.

    rows (T, O): what becomes queries, keys and values; gates; β; α, each before its function. Fused: q, k, values and
    gates of one key head after another, then β and α of one after another.
    """
    taps, a_log, dt_bias, norm = weights
    if o.fused:
        rows = _apart(rows, o)
    mixed, gate, rate, step = rows.split([2 * o.keys + o.values, o.values, o.value_heads, o.value_heads], dim=1)
    q, k, v = silu(_convolved(mixed, taps)).split([o.keys, o.keys, o.values], dim=1)
    group = o.value_heads // o.key_heads
    q, k = (x.unflatten(1, (o.key_heads, -1)).repeat_interleave(group, 1) for x in (q, k))
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (q, k))
    v = v.unflatten(1, (o.value_heads, -1))
    keep, rate = torch.exp(-a_log.exp() * softplus(step + dt_bias)), rate.sigmoid()
    state, out = torch.zeros(o.value_heads, o.key_dim, o.value_dim, dtype=rows.dtype), torch.zeros_like(v)
    for t in range(len(rows)):
        state = state * keep[t, :, None, None]
        wrong = v[t] - torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], wrong * rate[t, :, None])
        out[t] = torch.einsum("hkv,hk->hv", state, q[t]) / o.key_dim**0.5
    out = out * (out.square().mean(-1, keepdim=True) + eps).rsqrt() * norm
    return (out * silu(gate.unflatten(1, (o.value_heads, -1)))).flatten(1)


def _apart(rows: Tensor, o: DeltaNet) -> Tensor:
    """Order rows (T, O) of one key head after another, first q, k, values and gates, then β and α, as kinds."""
    group = o.value_heads // o.key_heads
    columns, first = [], 0
    for widths in ((o.key_dim, o.key_dim, group * o.value_dim, group * o.value_dim), (group, group)):
        for before, width in ((sum(widths[:i]), width) for i, width in enumerate(widths)):
            starts = (first + head * sum(widths) + before for head in range(o.key_heads))
            columns += [start + i for start in starts for i in range(width)]
        first += o.key_heads * sum(widths)
    return rows[:, columns]


def _state_space(rows: Tensor, weights: Sequence[Tensor], o: Mamba2, eps: float) -> Tensor:
    """Compute Mamba-2 (arXiv:2405.21060): S = exp(Δ A) S + Δ k xᵀ, of which Sᵀq is read, and D x is added.

    rows (T, O): gates; what becomes x, k and q; Δ before its function.
    """
    a_log, dt_bias, skip, *rest = weights
    norm = None if o.norm == "none" else rest.pop(0)
    gate, x, k, q, step = (
        part * scale for part, scale in zip(rows.split(o.parts, 1), o.scales or [1.0] * 5, strict=True)
    )
    mixed = silu(_convolved(torch.cat([x, k, q], 1), *rest))
    x, k, q = mixed.split(o.parts[1:4], 1)
    x = x.unflatten(1, (o.heads, -1))
    k, q = (part.unflatten(1, (o.groups, -1)).repeat_interleave(o.heads // o.groups, 1) for part in (k, q))
    delta, gate = softplus(step + dt_bias), silu(gate)
    state, out = torch.zeros(o.heads, o.state, o.head_dim, dtype=rows.dtype), torch.zeros_like(x)
    for t in range(len(rows)):
        keep = torch.exp(-delta[t] * a_log.exp())[:, None, None]
        state = keep * state + torch.einsum("hk,hv->hkv", k[t], x[t] * delta[t, :, None])
        out[t] = torch.einsum("hkv,hk->hv", state, q[t]) + skip[:, None] * x[t]
    y = out.flatten(1) if o.norm == "before gate" else out.flatten(1) * gate
    if norm is not None:
        groups = y.unflatten(1, (o.groups, -1))
        y = (groups / (groups.square().mean(-1, keepdim=True) + eps).sqrt()).flatten(1) * norm
    return y * gate if o.norm == "before gate" else y


_DEFINITIONS: dict[type, Callable[..., Tensor]] = {
    ShortConvolution: _short_convolution,
    DeltaNet: _delta_net,
    Mamba2: _state_space,
}
