"""Causal attention with rotary positions on packed segments: plain products on a CPU, fused kernels elsewhere.

Letters: N tokens, H query heads, K key/value heads, d head width, B segments of a bucket, T length of the bucket.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from settle.model.layers.kernels import Context, apply
from settle.model.layers.packed_sequences import Bucket, Packing, RotationTable, Scoring


@cache
def _varlen_kernel() -> Callable[..., Any] | None:
    """Return torch's attention on packed rows; None before torch 2.10, where the buckets serve CUDA too.

    Imported when a card asks for it: it takes a second and the compiler with it.
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    return varlen.varlen_attn


@cache
def _has_varlen(device: torch.device, width: int) -> bool:
    """Return whether flash attention runs there: on cards since Ampere, for heads of at most 256 numbers, in eights."""
    is_cuda = device.type == "cuda"
    return is_cuda and width <= 256 and width % 8 == 0 and torch.cuda.get_device_capability(device) >= (8, 0)


def keeps_no_probabilities(device: str, dtype: str) -> bool:
    """Return whether training there runs flash attention, where a layer's shape and scores allow it."""
    if device != "cuda" or dtype not in ("bfloat16", "float16"):
        return False
    return _has_varlen(torch.device("cuda"), 8) and _varlen_kernel() is not None


def attention(
    qkv: Tensor, packing: Packing, table: RotationTable, scoring: Scoring, bias: Tensor | None = None
) -> Tensor:
    """Attend within each segment.

    qkv (N, (H + 2K)·d), query and key heads in interleaved rotation order → (N, H·d). bias ((H + 2K)·d,): what qkv
    still lacks, in the type in which it is rotated.
    """
    if packing.attends_itself:
        return packing.attend(qkv, table, scoring, bias)
    return attention_over(qkv, packing, table, scoring, bias)


def attention_over(
    qkv: Tensor, packing: Packing, table: RotationTable, scoring: Scoring, bias: Tensor | None = None
) -> Tensor:
    """Attend within each segment of a whole batch, as `attention`.

    The framework's kernels know no soft cap and no sinks, and round queries and keys to half types.
    """
    is_special = scoring.soft_cap is not None or scoring.sinks is not None
    if qkv.device.type == "cpu" or is_special or scoring.in_float32:
        return apply(RotatedAttention, qkv, bias, scoring.sinks, packing, table, scoring)
    return fused_attention(qkv if bias is None else qkv + bias.to(qkv.dtype), packing, table, scoring.window)


def fused_attention(qkv: Tensor, packing: Packing, table: RotationTable, window: int | None = None) -> Tensor:
    """Attend through the framework's kernels, as `attention`.

    Variable-length flash attention on CUDA in half precision, else scaled_dot_product_attention per bucket.
    """
    heads, kv_heads, width = table.heads, table.kv_heads, table.head_dim
    by_head = qkv.view(-1, heads + 2 * kv_heads, width)
    turned = apply(PackedRotation, by_head[:, : heads + kv_heads], *packing.turns(table))
    q, k, v = turned[:, :heads], turned[:, heads:], by_head[:, heads + kv_heads :]
    if qkv.dtype in (torch.bfloat16, torch.float16) and _has_varlen(qkv.device, width) and (kernel := _varlen_kernel()):
        group, longest = heads // kv_heads, packing.longest
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        bounds, seen = packing.cu_seqlens.int(), (-1 if window is None else window - 1, 0)
        flash: Tensor = kernel(q, k, v.contiguous(), bounds, bounds, longest, longest, scale=1.0, window_size=seen)
        return flash.flatten(1)
    out = qkv.new_zeros(qkv.shape[0], heads * width)
    for bucket in packing.buckets:
        rows = [x if bucket.rows is None else x[bucket.rows.gather] for x in (q, k, v)]
        queries, keys, values = (x.unflatten(0, (bucket.segments, bucket.length)).transpose(1, 2) for x in rows)
        is_causal = window is None or window >= bucket.length
        mask = None if is_causal else table.mask(bucket.length, 1, qkv.dtype, window)
        mixed = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=1.0, enable_gqa=heads != kv_heads
        )
        mixed = mixed.transpose(1, 2).reshape(-1, heads * width)
        if bucket.rows is None:
            return mixed
        out = out.index_copy(0, bucket.rows.packed, mixed[bucket.rows.padded])
    return out


class PackedRotation(Function):
    """Heads of packed rows turned by their positions, rounded once; no row is kept.

    rows (N, n, d), cos and sin (N, n, d/2) in a wider type → (N, n, d).
    """

    @staticmethod
    def forward(ctx: Context, rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(rows, cos, sin)

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(grads[0], cos, -sin), None, None


def _turned(rows: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = rows.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(rows.dtype)


class RotatedAttention(Function):
    """Rotary positions and causal attention within each segment, with plain matrix products.

    qkv (N, (H + 2K)·d), query and key heads in interleaved rotation order, its bias ((H + 2K)·d,) or None, the sinks of
    `scoring` (H,) or None → (N, H·d). On a CPU this is far quicker than scaled_dot_product_attention, whose bf16
    backward takes several times as long as these products.
    """

    @staticmethod
    def forward(
        ctx: Context,
        qkv: Tensor,
        bias: Tensor | None,
        sinks: Tensor | None,
        packing: Packing,
        table: RotationTable,
        scoring: Scoring,
    ) -> Tensor:
        ctx.packing, ctx.table, ctx.width, ctx.soft_cap = packing, table, qkv.shape[-1], scoring.soft_cap
        out = qkv if packing.is_uniform else qkv.new_empty(qkv.shape[0], table.heads * table.head_dim)
        saved: tuple[Tensor, ...] = ()
        for bucket in packing.buckets:
            rows = qkv if bucket.rows is None else qkv.index_select(0, bucket.rows.gather)
            attended, of_bucket = attend_bucket(rows, bias, bucket, table, scoring._replace(sinks=sinks))
            saved += of_bucket
            if bucket.rows is None:
                out = attended
            else:
                out.index_copy_(0, bucket.rows.packed, attended.index_select(0, bucket.rows.padded))
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, packing, table = grads[0], ctx.packing, ctx.table
        saved = ctx.saved_tensors
        grad_qkv = grad if packing.is_uniform else grad.new_empty(grad.shape[0], ctx.width)
        grad_sinks = grad.new_zeros(table.heads, dtype=table.dtype) if ctx.needs_input_grad[2] else None
        each = len(saved) // len(packing.buckets)
        for i, bucket in enumerate(packing.buckets):
            of_bucket, rows = saved[each * i : each * (i + 1)], bucket.rows
            if rows is None:
                grad_qkv = _attend_backward(grad, of_bucket, bucket, table, ctx.soft_cap, grad_sinks)
            else:
                padded = grad.new_zeros(bucket.segments * bucket.length, grad.shape[-1])
                padded.index_copy_(0, rows.padded, grad.index_select(0, rows.packed))
                piece = _attend_backward(padded, of_bucket, bucket, table, ctx.soft_cap, grad_sinks)
                grad_qkv.index_copy_(0, rows.packed, piece.index_select(0, rows.padded))
        grad_bias = grad_qkv.sum(0, dtype=table.dtype) if ctx.needs_input_grad[1] else None
        return grad_qkv, grad_bias, grad_sinks, None, None, None


def attend_bucket(
    qkv: Tensor, bias: Tensor | None, bucket: Bucket, table: RotationTable, scoring: Scoring
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One bucket: qkv (B*T, (H + 2K)·d) → (B*T, H·d) and what the backward needs."""
    size, length, width = bucket.segments, bucket.length, table.head_dim
    heads, kv_heads, soft_cap = table.heads, table.kv_heads, scoring.soft_cap
    turned = (heads + kv_heads) * width
    turned_bias, value_bias = (None, None) if bias is None else (bias[:turned], bias[turned:])
    by_head = rotate(qkv[:, :turned], table.turn(length), size, turned_bias).transpose(1, 2)
    dtype = by_head.dtype if scoring.in_float32 else qkv.dtype
    q = by_head.new_empty(size, heads, length, width, dtype=dtype).copy_(by_head[:, :heads])
    k = by_head.new_empty(size, kv_heads, length, width, dtype=dtype).copy_(by_head[:, heads:])
    values = qkv[:, turned:] if value_bias is None else (qkv[:, turned:] + value_bias).to(qkv.dtype)
    v = values.view(size, length, kv_heads, width).transpose(1, 2).contiguous()
    # The query heads that share a key head lie below one another, so that one product serves them all.
    q, k, v = q.view(size * kv_heads, -1, width), k.view(-1, length, width), v.view(-1, length, width)
    mask = table.mask(length, heads // kv_heads, dtype, scoring.window)
    saved: tuple[Tensor, ...] = ()
    if soft_cap is None:
        scores = torch.baddbmm(mask, q, k.transpose(1, 2))
    else:
        capped = torch.bmm(q, k.transpose(1, 2)).div_(soft_cap).tanh_()
        scores = torch.add(mask, capped, alpha=soft_cap)
        saved = (capped,)
    probabilities = torch.softmax(scores, dim=-1)
    if scoring.sinks is not None:
        probabilities.mul_(_share_of_keys(scores, probabilities, scoring.sinks.to(table.dtype), kv_heads))
    probabilities = probabilities.to(qkv.dtype)
    out = torch.bmm(probabilities, v).view(size, heads, length, width).transpose(1, 2)
    return out.reshape(size * length, heads * width), (q, k, v, probabilities, *saved)


def _share_of_keys(scores: Tensor, probabilities: Tensor, sinks: Tensor, kv_heads: int) -> Tensor:
    """Return what a sink leaves to the keys of each query, (B·K, H/K·T, 1).

    scores and their softmax without sinks (B·K, H/K·T, T), sinks (H,) in the type that is computed in.
    """
    largest, of_largest = (rows.amax(-1, keepdim=True).to(sinks.dtype) for rows in (scores, probabilities))
    of_heads = sinks.view(kv_heads, -1, 1).repeat_interleave(scores.shape[-1], 1)
    total = (largest - of_largest.log()).unflatten(0, (-1, kv_heads))  # the logarithm of the sum of exponentials
    return torch.sigmoid(total - of_heads).flatten(0, 1)


def _attend_backward(
    grad: Tensor,
    saved: Sequence[Tensor],
    bucket: Bucket,
    table: RotationTable,
    soft_cap: float | None,
    grad_sinks: Tensor | None,
) -> Tensor:
    """Gradient of `attend_bucket`: grad (B*T, H·d) → (B*T, (H + 2K)·d); that of sinks is added to `grad_sinks` (H,)."""
    q, k, v, probabilities = saved[:4]
    size, length, width = bucket.segments, bucket.length, table.head_dim
    heads, kv_heads = table.heads, table.kv_heads
    grad = grad.view(size, length, heads, width).transpose(1, 2).reshape(q.shape)
    grad_v = torch.bmm(probabilities.transpose(1, 2), grad)
    grad_scores = torch.bmm(grad, v.transpose(1, 2)).to(q.dtype)
    if grad_sinks is not None:
        left = 1 - probabilities.sum(-1, dtype=table.dtype)
        lost = (grad_scores * probabilities).sum(-1, dtype=table.dtype) * left
        grad_sinks.sub_(lost.view(size, heads, length).sum((0, 2)))
    grad_scores = torch._softmax_backward_data(grad_scores, probabilities.to(q.dtype), -1, q.dtype)
    if soft_cap is not None:
        grad_scores = torch.ops.aten.tanh_backward(grad_scores, saved[4])
    grad_q = torch.bmm(grad_scores, k).view(size, heads, length, width)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), q).view(size, kv_heads, length, width)

    turned = torch.cat([grad_q, grad_k], dim=1).transpose(1, 2).reshape(size * length, -1)
    grad_qkv = grad.new_empty(size * length, (heads + 2 * kv_heads) * width)
    split = turned.shape[-1]
    grad_qkv[:, :split].view(size, length, heads + kv_heads, width).copy_(
        rotate(turned, table.turn(length, back=True), size)
    )
    grad_qkv[:, split:].view(size, length, kv_heads, width).copy_(
        grad_v.view(size, kv_heads, length, width).transpose(1, 2)
    )
    return grad_qkv


def rotate(rows: Tensor, turn: Tensor, segments: int, bias: Tensor | None = None) -> Tensor:
    """Turn pairs of neighbours as complex numbers, after their bias (n·d,) is added.

    rows (B*T, n·d), turn (T, n, d/2) complex → (B, T, n, d) in the real type of `turn`.
    """
    length, heads, half = turn.shape
    wide = rows.to(turn.real.dtype, copy=True, memory_format=torch.contiguous_format)
    if bias is not None:
        wide.add_(bias)
    pairs = torch.view_as_complex(wide.view(segments, length, heads, half, 2))
    pairs.mul_(turn)
    return wide.view(segments, length, heads, 2 * half)
