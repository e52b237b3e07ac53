"""Causal attention with rotary positions on packed segments: plain products on a CPU, fused kernels elsewhere.

Letters: N tokens, H query heads, K key/value heads, d head width, B segments of a bucket, T length of the bucket.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import scaled_dot_product_attention

from settle.model.layers.kernels import Context, apply
from settle.model.layers.packed_sequences import Bucket, Packing, RotationTable


@cache
def _varlen_kernel() -> Callable[..., object] | None:
    """torch's attention on packed rows; None before torch 2.10, where the buckets serve CUDA too.

    Imported when a card asks for it: it takes a second and the compiler with it.
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return None
    return varlen.varlen_attn


def attention(
    qkv: Tensor, packing: Packing, table: RotationTable, window: int | None = None, soft_cap: float | None = None
) -> Tensor:
    """Attention within each segment. qkv (N, (H + 2K)·d), query and key heads in interleaved rotation order →
    (N, H·d). window, soft_cap: see `LayerOptions`.
    """
    if packing.is_growing:
        return packing.attend(qkv, table, window, soft_cap)
    return attention_over(qkv, packing, table, window, soft_cap)


def attention_over(
    qkv: Tensor, packing: Packing, table: RotationTable, window: int | None = None, soft_cap: float | None = None
) -> Tensor:
    """The same of a whole batch. The framework's kernels know no soft cap."""
    if qkv.device.type == "cpu" or soft_cap is not None:
        return apply(RotatedAttention, qkv, packing, table, window, soft_cap)
    return fused_attention(qkv, packing, table, window)


def fused_attention(qkv: Tensor, packing: Packing, table: RotationTable, window: int | None = None) -> Tensor:
    """The same through the framework's kernels: variable-length flash attention on CUDA in half precision, else
    scaled_dot_product_attention per bucket.
    """
    heads, kv_heads, width = table.heads, table.kv_heads, table.head_dim
    by_head = qkv.view(-1, heads + 2 * kv_heads, width)
    turn = torch.view_as_real(table.turn(max(b.length for b in packing.buckets))).to(qkv.dtype)
    cos, sin = turn[packing.positions].unbind(-1)
    even, odd = by_head[:, : heads + kv_heads].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2)
    q, k, v = turned[:, :heads], turned[:, heads:], by_head[:, heads + kv_heads :]
    is_half_on_cuda = qkv.device.type == "cuda" and qkv.dtype in (torch.bfloat16, torch.float16)
    if is_half_on_cuda and _varlen_kernel() is not None:
        return _varlen(q, k, v, packing, window)
    out = qkv.new_zeros(qkv.shape[0], heads * width)
    for bucket in packing.buckets:
        rows = [x if bucket.gather is None else x[bucket.gather] for x in (q, k, v)]
        queries, keys, values = (x.unflatten(0, (bucket.segments, bucket.length)).transpose(1, 2) for x in rows)
        is_causal = window is None or window >= bucket.length
        mask = None if is_causal else table.mask(bucket.length, 1, qkv.dtype, window)
        mixed = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=is_causal, scale=1.0, enable_gqa=heads != kv_heads
        )
        mixed = mixed.transpose(1, 2).reshape(-1, heads * width)
        if bucket.gather is None or bucket.packed_rows is None:
            return mixed
        out = out.index_copy(0, bucket.packed_rows, mixed[bucket.padded_rows])
    return out


def _varlen(q: Tensor, k: Tensor, v: Tensor, packing: Packing, window: int | None) -> Tensor:
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    bounds = packing.cu_seqlens.int()
    longest = max(b.length for b in packing.buckets)
    past = -1 if window is None else window - 1
    kernel = _varlen_kernel()
    assert kernel is not None, "chosen only where torch has it"
    out = kernel(q, k, v.contiguous(), bounds, bounds, longest, longest, scale=1.0, window_size=(past, 0))
    assert isinstance(out, Tensor)
    return out.flatten(1)


class RotatedAttention(Function):
    """Rotary positions and causal attention within each segment, with plain matrix products.

    qkv (N, (H + 2K)·d), query and key heads in interleaved rotation order → (N, H·d). On a CPU this is far
    quicker than scaled_dot_product_attention, whose bf16 backward takes several times as long as these products.
    """

    @staticmethod
    def forward(
        ctx: Context, qkv: Tensor, packing: Packing, table: RotationTable, window: int | None, soft_cap: float | None
    ) -> Tensor:
        ctx.packing, ctx.table, ctx.width, ctx.soft_cap = packing, table, qkv.shape[-1], soft_cap
        if packing.is_uniform:
            out, saved = _attend(qkv, packing.buckets[0], table, window, soft_cap)
        else:
            out = qkv.new_empty(qkv.shape[0], table.heads * table.head_dim)
            saved = ()
            for bucket in packing.buckets:
                assert bucket.gather is not None and bucket.packed_rows is not None and bucket.padded_rows is not None
                padded, of_bucket = _attend(qkv.index_select(0, bucket.gather), bucket, table, window, soft_cap)
                out.index_copy_(0, bucket.packed_rows, padded.index_select(0, bucket.padded_rows))
                saved += of_bucket
        ctx.save_for_backward(*saved)
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad, packing, table = grads[0], ctx.packing, ctx.table
        saved = ctx.saved_tensors
        if packing.is_uniform:
            return _attend_backward(grad, saved, packing.buckets[0], table, ctx.soft_cap), None, None, None, None
        grad_qkv = grad.new_empty(grad.shape[0], ctx.width)
        each = len(saved) // len(packing.buckets)
        for i, bucket in enumerate(packing.buckets):
            padded = grad.new_zeros(bucket.segments * bucket.length, grad.shape[-1])
            padded.index_copy_(0, bucket.padded_rows, grad.index_select(0, bucket.packed_rows))
            piece = _attend_backward(padded, saved[each * i : each * (i + 1)], bucket, table, ctx.soft_cap)
            grad_qkv.index_copy_(0, bucket.packed_rows, piece.index_select(0, bucket.padded_rows))
        return grad_qkv, None, None, None, None


def _attend(
    qkv: Tensor, bucket: Bucket, table: RotationTable, window: int | None, soft_cap: float | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One bucket: qkv (B*T, (H + 2K)·d) → (B*T, H·d) and what the backward needs."""
    size, length, width = bucket.segments, bucket.length, table.head_dim
    heads, kv_heads = table.heads, table.kv_heads
    turned = (heads + kv_heads) * width
    by_head = rotate(qkv[:, :turned], table.turn(length), size).transpose(1, 2)
    q = qkv.new_empty(size, heads, length, width).copy_(by_head[:, :heads])
    k = qkv.new_empty(size, kv_heads, length, width).copy_(by_head[:, heads:])
    v = qkv[:, turned:].view(size, length, kv_heads, width).transpose(1, 2).contiguous()
    # The query heads that share a key head lie below one another, so that one product serves them all.
    q, k, v = q.view(size * kv_heads, -1, width), k.view(-1, length, width), v.view(-1, length, width)
    mask = table.mask(length, heads // kv_heads, qkv.dtype, window)
    saved: tuple[Tensor, ...] = ()
    if soft_cap is None:
        scores = torch.baddbmm(mask, q, k.transpose(1, 2))
    else:
        capped = torch.bmm(q, k.transpose(1, 2)).div_(soft_cap).tanh_()
        scores = torch.add(mask, capped, alpha=soft_cap)
        saved = (capped,)
    probabilities = torch.softmax(scores, dim=-1)
    out = torch.bmm(probabilities, v).view(size, heads, length, width).transpose(1, 2)
    return out.reshape(size * length, heads * width), (q, k, v, probabilities, *saved)


def _attend_backward(
    grad: Tensor, saved: Sequence[Tensor], bucket: Bucket, table: RotationTable, soft_cap: float | None
) -> Tensor:
    """Gradient of `_attend`: grad (B*T, H·d) → (B*T, (H + 2K)·d)."""
    q, k, v, probabilities = saved[:4]
    size, length, width = bucket.segments, bucket.length, table.head_dim
    heads, kv_heads = table.heads, table.kv_heads
    grad = grad.view(size, length, heads, width).transpose(1, 2).reshape(q.shape)
    grad_v = torch.bmm(probabilities.transpose(1, 2), grad)
    grad_scores = torch.bmm(grad, v.transpose(1, 2))
    grad_scores = torch._softmax_backward_data(grad_scores, probabilities, -1, grad.dtype)
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


def rotate(rows: Tensor, turn: Tensor, segments: int) -> Tensor:
    """Turn pairs of neighbours as complex numbers. rows (B*T, n·d), turn (T, n, d/2) complex → (B, T, n, d) in
    the real type of `turn`.
    """
    length, heads, half = turn.shape
    wide = rows.to(turn.real.dtype, copy=True, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(wide.view(segments, length, heads, half, 2))
    pairs.mul_(turn)
    return wide.view(segments, length, heads, 2 * half)
