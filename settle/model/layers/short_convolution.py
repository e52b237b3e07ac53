"""Gated short convolutions (LFM2): each channel sees its last few inputs, a gate before and a gate behind.

Letters: B sequences of T tokens, D hidden width.
"""

from collections.abc import Sequence

from torch import Tensor

from settle.model.config import LayerOptions, ShortConvolution
from settle.model.layers.linear import Linear, Stack
from settle.model.layers.mixer import Recurrence, Taps, convolve
from settle.model.layers.packed_sequences import State


class GatedConvolution(Recurrence):
    """out_proj(c · convolution(b · x)), with b, c and x (D each) from one projection."""

    def __init__(self, own: ShortConvolution, o: LayerOptions) -> None:
        super().__init__()
        self.in_proj = Linear(o.width, 3 * o.width, own.bias)
        self.conv = Taps(o.width, own.kernel, own.bias)
        self.out_proj = Linear(o.width, o.width, own.bias)
        self.inward, self.out = Stack([(self.in_proj, 0)], None, o.norm_offset), Stack([(self.out_proj, 0)])

    def weights(self) -> list[Tensor]:
        return self.conv.tensors()

    def mix(self, rows: Tensor, weights: Sequence[Tensor], state: State = ()) -> tuple[Tensor, State]:
        """Mix rows (B, T, 3D): b, c and x → (B, T, D)."""
        before, behind, x = rows.chunk(3, dim=-1)
        out, last = convolve(before * x, weights, *state)
        return behind * out, (last,)
