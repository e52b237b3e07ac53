"""Kernels that only a card has, on the CPU: flash attention on packed rows, by its definition.

Letters: N tokens, H heads, d head width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


def _segments(bounds: Tensor, scale: float, past: int, *rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The softmax's scores (H, T, T) of each segment, then its part of each of `rows` (N, H, d) as (H, T, d) fp32;
    the first two are queries and keys."""
    edges = bounds.tolist()
    for a, b in zip(edges, edges[1:], strict=False):
        parts = [t[a:b].transpose(0, 1).float() for t in rows]
        place = torch.arange(b - a)
        unseen = place > place.unsqueeze(1)
        if past >= 0:
            unseen = unseen | (place < place.unsqueeze(1) - past)
        yield (parts[0] @ parts[1].mT * scale).masked_fill(unseen, float("-inf")), *parts


def _forward(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, _keys: Tensor, _q: int, _k: int, is_causal: bool = False,
    scale: float | None = None, window: list[int] | None = None, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    _require_flash(q, k, v, bounds, max(_q, _k))
    outs, sums = [], []
    for scores, _, _, values in _segments(bounds, scale or q.shape[-1] ** -0.5, window[0] if window else -1, q, k, v):
        outs.append((scores.softmax(-1) @ values).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs).to(q.dtype), torch.cat(sums, 1), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _out: Tensor, _sums: Tensor, bounds: Tensor, _keys: Tensor,
    _q: int, _k: int, _causal: bool, _state: Tensor, scale: float | None = None, window: list[int] | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    scale, found = scale or q.shape[-1] ** -0.5, []
    for scores, rows, keys, values, above in _segments(bounds, scale, window[0] if window else -1, q, k, v, grad):
        share = scores.softmax(-1)
        of_share = above @ values.mT
        of_scores = share * (of_share - (of_share * share).sum(-1, keepdim=True)) * scale
        found.append((of_scores @ keys, of_scores.mT @ rows, share.mT @ above))
    dq, dk, dv = (torch.cat([t.transpose(0, 1) for t in parts]).to(q.dtype) for parts in zip(*found, strict=True))
    return dq, dk, dv


def _require_flash(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> None:
    """What the kernel asks of its inputs (aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp)."""
    assert {t.dtype for t in (q, k, v)} <= {torch.bfloat16} or {t.dtype for t in (q, k, v)} <= {torch.float16}
    assert all(t.stride(-1) == 1 for t in (q, k, v)), "the last dimension must be contiguous"
    assert bounds.dtype == torch.int32 and bounds.is_contiguous()
    assert q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and q.shape[1] % k.shape[1] == 0
    assert longest == int(bounds.diff().max())


def _log_sigmoid_backward(grad: Tensor, x: Tensor, _buffer: Tensor) -> Tensor:
    """A card keeps no buffer of the forward pass."""
    aten = torch.ops.aten
    return aten.log_sigmoid_backward(grad, x, aten.log_sigmoid_forward(x)[1])  # type: ignore[no-any-return]


STAND_INS: dict[str, Callable[..., Any]] = {
    "torch_attn::_varlen_attn": _forward,
    "torch_attn::_varlen_attn_backward": _backward,
    "aten::log_sigmoid_backward": _log_sigmoid_backward,
}
