"""What mixes the tokens of a layer: how attention and recurrences read and write the stream, and what a recurrence is.

Letters: N tokens, D hidden width, O width of what the mixer reads, M of what it writes, B sequences of T tokens, C
channels and K taps of a convolution.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import Function

from settle.model.layers.kernels import Context, apply
from settle.model.layers.linear import RMSNorm, Stack, added
from settle.model.layers.packed_sequences import Bucket, Carried, Packing, RotationTable, State


class Mixer(nn.Module):
    """A branch of a layer that lets tokens see earlier ones of their segment.

    inward: its linears that read the layer's input; out: the one that writes to the residual stream. residual_scale:
    multiplies what is added to it.
    """

    residual_scale = 1.0

    inward: Stack
    out: Stack

    @property
    def adds_bias(self) -> bool:
        """Whether `mixed` adds the inward linears' biases, and their product leaves them out."""
        return False

    def forward(self, x: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Mix x (N, D), behind its norm → (N, D)."""
        return self.out.linear(self.mixed(self.inward.linear(x, not self.adds_bias), packing, table, carried))

    def add(
        self,
        x: Tensor,
        norm: RMSNorm | None,
        packing: Packing,
        table: RotationTable,
        carried: Carried,
        after: RMSNorm | None = None,
    ) -> Tensor:
        """Compute x (N, D) → x + mixer(norm(x)), or x + after(mixer(norm(x))), in few passes over x."""
        residual, rows = self.inward.norm_linear(x, norm, not self.adds_bias)
        mixed = self.mixed(rows, packing, table, carried)
        if after is None and self.residual_scale == 1:
            return self.out.linear_add(residual, mixed)
        return added(residual, self.out.linear(mixed), after, self.residual_scale)

    def mixed(self, rows: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        """Mix rows (N, O) of the inward linears within each segment → (N, M)."""
        raise NotImplementedError


class Recurrence(Mixer):
    """A mixer whose past is a state of fixed size: the last inputs of a convolution, a matrix for each head."""

    def mixed(self, rows: Tensor, packing: Packing, table: RotationTable, carried: Carried) -> Tensor:
        return packing.recur(self, rows)

    def whole(self, rows: Tensor, packing: Packing) -> Tensor:
        """Mix rows (N, O) of whole segments, each from an empty state → (N, M)."""
        return apply(OverSegments, self.mix, packing, rows, *self.weights())

    def weights(self) -> list[Tensor]:
        """Return the parameters that `mix` reads."""
        raise NotImplementedError

    def mix(self, rows: Tensor, weights: Sequence[Tensor], state: State = ()) -> tuple[Tensor, State]:
        """Mix the next T rows (B, T, O) of each sequence → (B, T, M) and the states behind them; state (): empty."""
        raise NotImplementedError


Mix = Callable[[Tensor, Sequence[Tensor]], tuple[Tensor, State]]


class OverSegments(Function):
    """`mix` of each segment of rows (N, O) with its weights → (N, M); segments of a bucket are padded at their ends.

    What it computes is computed again in the backward pass: between its products a layer keeps its rows only.
    """

    @staticmethod
    def forward(ctx: Context, mix: Mix, packing: Packing, rows: Tensor, *weights: Tensor) -> Tensor:
        ctx.mix, ctx.packing = mix, packing
        ctx.save_for_backward(rows, *weights)
        out = rows
        for bucket in packing.buckets:
            mixed = mix(_padded(rows, bucket), weights)[0].flatten(0, 1)
            if bucket.rows is None:
                return mixed
            out = rows.new_empty(len(rows), mixed.shape[1]) if out is rows else out
            out.index_copy_(0, bucket.rows.packed, mixed.index_select(0, bucket.rows.padded))
        return out

    @staticmethod
    def backward(ctx: Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        packing, (rows, *weights) = ctx.packing, ctx.saved_tensors
        grad_rows = torch.empty_like(rows)
        wanted = [
            w.detach().requires_grad_(needed) for w, needed in zip(weights, ctx.needs_input_grad[3:], strict=True)
        ]
        trained = [w for w in wanted if w.requires_grad]
        totals = [torch.zeros_like(w) for w in trained]
        for bucket in packing.buckets:
            padded = _padded(rows, bucket).detach().requires_grad_()
            with torch.enable_grad():
                out = ctx.mix(padded, wanted)[0]
            grad = grads[0]
            if bucket.rows is not None:
                grad = grad.new_zeros(bucket.segments * bucket.length, grad.shape[1])
                grad.index_copy_(0, bucket.rows.padded, grads[0].index_select(0, bucket.rows.packed))
            grad_padded, *of_weights = torch.autograd.grad(out, [padded, *trained], grad.view(out.shape))
            for total, piece in zip(totals, of_weights, strict=True):
                total.add_(piece)
            if bucket.rows is None:
                grad_rows = grad_padded.flatten(0, 1)
            else:
                pieces = grad_padded.flatten(0, 1).index_select(0, bucket.rows.padded)
                grad_rows.index_copy_(0, bucket.rows.packed, pieces)
        found = iter(totals)
        return None, None, grad_rows, *(next(found) if w.requires_grad else None for w in wanted)


def _padded(rows: Tensor, bucket: Bucket) -> Tensor:
    """Rows (N, O) of a bucket's segments, (B, T, O)."""
    own = rows if bucket.rows is None else rows.index_select(0, bucket.rows.gather)
    return own.view(bucket.segments, bucket.length, -1)


class Taps(nn.Module):
    """The parameters of a causal convolution of each channel by itself: `weight` (C, 1, K), perhaps a `bias` (C,)."""

    def __init__(self, channels: int, number: int, has_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, number))
        self.bias = nn.Parameter(torch.empty(channels)) if has_bias else None

    def tensors(self) -> list[Tensor]:
        """Return its weight, and its bias if it has one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def convolve(x: Tensor, taps_bias: Sequence[Tensor], before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its inputs so far, the last tap being that of the input itself.

    x (B, T, C), taps_bias: `Taps.tensors`; before: the K - 1 inputs before x, (B, K - 1, C), zeros by default
    → (B, T, C) and the last K - 1 inputs.
    """
    taps = taps_bias[0].squeeze(1).t().to(x.dtype)
    if before is None:
        before = x.new_zeros(x.shape[0], len(taps) - 1, x.shape[2])
    seen, length = torch.cat([before, x], 1), x.shape[1]
    out = x * taps[-1] if len(taps_bias) == 1 else torch.addcmul(taps_bias[1].to(x.dtype), x, taps[-1])
    for place in range(len(taps) - 1):
        out = torch.addcmul(out, seen[:, place : place + length], taps[place])
    return out, seen[:, length:]
