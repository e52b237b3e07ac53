"""Packed sequences: where segments lie in a flat batch, their positions, and equally long groups of them.

Attention is causal and positions restart in every segment, so a segment padded at its end computes the same
numbers in its real rows. Short segments are therefore padded into buckets; full-length ones (most) never are.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from settle.model.config import Rope
from settle.model.layers.transfer import on_host, to_device

State = tuple[Tensor, ...]  # what a recurrence keeps of each of B sequences, tensors (B, …)


class Recurrent(Protocol):
    """A mixer whose past is a state of fixed size; `Recurrence` says what its methods do."""

    def weights(self) -> list[Tensor]: ...
    def whole(self, rows: Tensor, packing: "Packing") -> Tensor: ...
    def mix(self, rows: Tensor, weights: Sequence[Tensor], state: State = ()) -> tuple[Tensor, State]: ...


class Scoring(NamedTuple):
    """What a layer does with the scores of its attention.

    window, soft_cap: see `LayerOptions`. in_float32: queries, keys and scores are not rounded to a half type, which is
    4 off at a score of 1,000. sinks (H,): a score of each query head that takes part in its softmax and has no value
    (gpt-oss, arXiv:2508.10925).
    """

    window: int | None = None
    soft_cap: float | None = None
    in_float32: bool = False
    sinks: Tensor | None = None


class BucketRows(NamedTuple):
    """Where the rows of a bucket are in the batch."""

    gather: Tensor  # (segments·length,) the packed row behind each padded row
    packed: Tensor  # the real rows, as they lie in the batch
    padded: Tensor  # and in the bucket


class Bucket(NamedTuple):
    """`segments` segments of one padded `length`; `rows` is None where the batch is its own only bucket."""

    segments: int
    length: int
    rows: BucketRows | None = None


class Packing:
    """The layout of one packed batch, computed once and shared by all layers.

    cu_seqlens (S+1,) cumulative segment lengths on any device, from 0 to N. Raises nothing: the batch is ours.
    """

    attends_itself = False  # see `kv_cache` and `score_sizes`

    def attend(self, qkv: Tensor, table: "RotationTable", scoring: Scoring, bias: Tensor | None) -> Tensor:
        """`attention` of a packing that sees every layer's queries and keys; called once a layer, in their order."""
        raise NotImplementedError

    def recur(self, recurrence: Recurrent, rows: Tensor) -> Tensor:
        """Mix rows (N, O) within each segment → (N, M); called once a layer, in their order."""
        return recurrence.whole(rows, self)

    def __init__(self, cu_seqlens: Tensor) -> None:
        self.cu_seqlens = cu_seqlens
        self.bounds: list[int] = on_host(cu_seqlens).tolist()
        self.num_tokens = self.bounds[-1]
        self.device = cu_seqlens.device
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}

    @cached_property
    def positions(self) -> Tensor:
        """Index of each token in its segment, (N,) int64."""
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens[1:].long() - starts
        return torch.arange(self.num_tokens, device=self.device) - starts.repeat_interleave(
            lengths, output_size=self.num_tokens
        )

    def turns(self, table: "RotationTable") -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token's turns, (N, H + K, d/2) each, shared by the layers that turn alike."""
        if id(table) not in self._turns:
            cos, sin = torch.view_as_real(table.turn(self.longest))[self.positions].unbind(-1)
            self._turns[id(table)] = cos.contiguous(), sin.contiguous()
        return self._turns[id(table)]

    @property
    def longest(self) -> int:
        """Tokens of the longest segment."""
        return max(b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False))

    @property
    def is_uniform(self) -> bool:
        """True when every segment has the same length, so that the batch is its own only bucket."""
        return self.buckets[0].rows is None

    @cached_property
    def buckets(self) -> list[Bucket]:
        """Segments grouped by length: one bucket for the longest, the others padded to the next power of two."""
        lengths = [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        longest = max(lengths)
        if min(lengths) == longest:
            return [Bucket(len(lengths), longest)]
        groups: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            if length:
                padded = longest if length == longest else min(longest, 1 << (length - 1).bit_length())
                groups.setdefault(padded, []).append(index)
        return [self._bucket(groups[padded], lengths) for padded in sorted(groups)]

    def _bucket(self, members: list[int], lengths: list[int]) -> Bucket:
        length = max(lengths[i] for i in members)
        starts = torch.tensor([self.bounds[i] for i in members]).unsqueeze(1)
        sizes = torch.tensor([lengths[i] for i in members]).unsqueeze(1)
        steps = torch.arange(length).unsqueeze(0)
        real = (steps < sizes).flatten()
        # A padded row repeats the segment's last one: its result is dropped and its gradient is exactly zero.
        gather = (starts + torch.minimum(steps, sizes - 1)).flatten()
        padded_rows = real.nonzero().squeeze(1)
        rows = (gather, gather[padded_rows], padded_rows)
        return Bucket(len(members), length, BucketRows(*(to_device(r, self.device) for r in rows)))


class Carried:
    """What one pass through a decoder takes from layer to layer beside the residual stream.

    inputs: of each layer alone, (N, P) each; none where a family has none. lent: name → keys, normed and not yet
    turned, and values (N, 2K·d) of a layer that others borrow from.
    """

    def __init__(self, inputs: Sequence[Tensor] = ()) -> None:
        self.inputs = inputs
        self.lent: dict[str, Tensor] = {}


class RotationTable:
    """Rotary embeddings (arXiv:2104.09864) as complex numbers; query heads carry the scale of the scores.

    `dtype` is the real type the rotation is computed in. Tables are kept per length and reused.
    """

    def __init__(
        self,
        head_dim: int,
        heads: int,
        kv_heads: int,
        rope: Rope,
        device: torch.device,
        dtype: torch.dtype,
        query_scale: float | None = None,
    ) -> None:
        self.head_dim, self.heads, self.kv_heads, self.rope = head_dim, heads, kv_heads, rope
        self.device, self.dtype = device, dtype
        self.query_scale = head_dim**-0.5 if query_scale is None else query_scale
        self.rotary_dim = rope.rotary_dim or head_dim
        self._turns: dict[tuple[int, bool], Tensor] = {}
        self._masks: dict[tuple[int, int, torch.dtype, int | None], Tensor] = {}

    def angles(self, length: int) -> Tensor:
        """Angle of each position and pair, (length, d/2), fp64 where the device has it; zero for what does not turn."""
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        positions = torch.arange(length, device=self.device).to(wide).unsqueeze(1)
        rope = self.rope
        frequencies = rope.frequencies
        if rope.long_after is not None and length > rope.long_after:
            frequencies = rope.long_frequencies
        if frequencies is None:
            exponent = torch.arange(0, self.rotary_dim, 2, dtype=wide, device=self.device) / self.rotary_dim
            angles = positions / rope.theta**exponent
        else:
            angles = positions * torch.tensor(frequencies, dtype=wide, device=self.device)
        return torch.nn.functional.pad(angles, (0, (self.head_dim - self.rotary_dim) // 2))

    def turn(self, length: int, back: bool = False) -> Tensor:
        """Return the turns of positions 0 … length - 1, (length, H + K, d/2) complex; `back` carries gradients back."""
        key = (length, back)
        if key not in self._turns:
            angles = self.angles(length)
            scale = angles.new_ones(self.heads + self.kv_heads, self.head_dim // 2)
            scale[:, : self.rotary_dim // 2] = self.rope.attention_factor
            scale[: self.heads] *= self.query_scale
            angles = angles.unsqueeze(1).expand(-1, len(scale), -1)
            turn = torch.polar(scale.expand_as(angles).contiguous(), (-angles if back else angles).contiguous())
            self._turns[key] = turn.to(torch.complex128 if self.dtype == torch.float64 else torch.complex64)
        return self._turns[key]

    def mask(self, length: int, group: int, dtype: torch.dtype, window: int | None = None) -> Tensor:
        """0 where a query may look and -inf where not, (group·length, length), for `group` queries per key head.

        window: a query sees itself and the window - 1 tokens before it.
        """
        window = None if window is None or window >= length else window
        key = (length, group, dtype, window)
        if key not in self._masks:
            unseen = torch.full((length, length), float("-inf"), dtype=dtype, device=self.device)
            past = unseen.tril(-window) if window else 0  # tril and triu leave zeros, also of -inf
            self._masks[key] = (unseen.triu(1) + past).repeat(group, 1)
        return self._masks[key]
