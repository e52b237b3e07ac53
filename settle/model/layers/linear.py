"""Linears: who owns a weight, and how linears that read the same input are multiplied as one.

Letters: N tokens, I inputs, O outputs of a linear, H query heads, K key/value heads, d head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from settle.model.layers.frozen_weights import Joined, Order, Owner, unchanged
from settle.model.layers.kernels import Gated, LinearAdd, NormLinear, Product
from settle.model.layers.lora_kernels import Beside, FrozenAdd, FrozenNormLinear
from settle.model.layers.low_rank import LowRank, RowLengths
from settle.model.layers.norm import RMSNorm


class Cast:
    """What `make` computes from parameters, kept until one of them changes.

    A change is seen by the tensor's version counter and address; writing through `.data` escapes both.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make = make
        self.key: tuple[object, ...] = ()
        self.value: Tensor | None = None

    def __call__(self, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        key = (dtype, *((p._version, p.data_ptr()) for p in parameters))
        if self.value is None or key != self.key:
            with torch.no_grad():
                self.value = self.make(*parameters).to(dtype)
            self.key = key
        return self.value


class Linear(Owner):
    """A matrix (O, I) and perhaps a `bias` (O,), in Hugging Face's layout; left to be initialised.

    adapter: what is trained beside the matrix when that is frozen.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(outputs, inputs)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.adapter: LowRank | None = None


@dataclass(frozen=True)
class Turning:
    """Heads whose pairs turn: width of a head, and how many of its numbers do."""

    head_dim: int
    rotary_dim: int

    def neighbours(self, rows: Tensor) -> Tensor:
        """Rows of each head from halves (Hugging Face: i pairs with i + rotary/2) to neighbours (2i with 2i + 1)."""
        return self._swap(rows, 2, self.rotary_dim // 2)

    def halves(self, rows: Tensor) -> Tensor:
        """The inverse of `neighbours`."""
        return self._swap(rows, self.rotary_dim // 2, 2)

    def _swap(self, rows: Tensor, outer: int, inner: int) -> Tensor:
        """Rows (n·d, …) with the turning part of each head seen as (outer, inner) and transposed."""
        if self.rotary_dim == self.head_dim:
            return rows.reshape(-1, outer, inner, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        turning, still = heads[:, : self.rotary_dim], heads[:, self.rotary_dim :]
        turning = turning.reshape(-1, outer, inner, *rows.shape[1:]).transpose(1, 2).reshape(turning.shape)
        return torch.cat([turning, still], dim=1).reshape(rows.shape)


class Stack:
    """Linears that read the same input, as one product. A view of modules that live elsewhere.

    members: (linear, how many of its first rows belong to heads that turn). norm_offset: of the norm before them.
    All are trained, or all are frozen. What the product reads of trained ones is a copy in the compute type, made
    again when a parameter has changed, so once a step and not once a micro-batch.
    """

    def __init__(
        self, members: Sequence[tuple[Linear, int]], turning: Turning | None = None, norm_offset: float = 0.0
    ) -> None:
        self.linears = [linear for linear, _ in members]
        self.turned = [rows if turning is not None else 0 for _, rows in members]
        self.turning, self.norm_offset = turning, norm_offset
        self._folded = Cast(self._fold)
        self._plain = Cast(self._join)
        self._joined: Joined | None = None

    def norm_linear(self, x: Tensor, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """x (N, I) → (x for the residual, norm(x) through the linears (N, O))."""
        if self._is_frozen() and norm.weight.requires_grad:
            return x, self.linear(norm(x))
        bias = self._bias(x.dtype)
        if self._is_frozen():
            residual, out = FrozenNormLinear.apply(x, norm.factor(), norm.eps, self._matrix(), bias, *self._beside(x))
            return residual, out
        weights = self._weights()
        folded = self._folded(x.dtype, norm.weight, *weights)
        residual, out = NormLinear.apply(x, folded, bias, self._split, norm.eps, norm.offset, norm.weight, *weights)
        return residual, out

    def linear(self, x: Tensor) -> Tensor:
        """x (N, I) → (N, O)."""
        bias = self._bias(x.dtype)
        if self._is_frozen():
            out: Tensor = FrozenAdd.apply(None, x, None, self._matrix(), bias, *self._beside(x))
        else:
            weights = self._weights()
            out = Product.apply(x, self._plain(x.dtype, *weights), bias, self._split, *weights)
        return out

    def linear_add(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual (N, O) + x (N, I) through the linears. Only for one linear that does not turn."""
        bias = self._bias(x.dtype)
        if self._is_frozen():
            out: Tensor = FrozenAdd.apply(residual, x, None, self._matrix(), bias, *self._beside(x))
            return out
        (weight,) = self._weights()
        out = LinearAdd.apply(residual, x, self._plain(x.dtype, weight), weight)
        return out if bias is None else out + bias

    def gated(self, residual: Tensor | None, gate_up: Tensor, activation: str) -> Tensor:
        """residual (N, O) or nothing + activation(gate) · up through the linears; gate_up (N, 2I)."""
        if self._is_frozen():
            inner = gate_up[:, : self.linears[0].inputs]  # only its size and type are looked at
            beside = self._beside(inner)
            bias = self._bias(gate_up.dtype)
            out: Tensor = FrozenAdd.apply(residual, gate_up, activation, self._matrix(), bias, *beside)
            return out
        inner = Gated.apply(gate_up, activation)
        return self.linear(inner) if residual is None else self.linear_add(residual, inner)

    # --- frozen ---

    def _is_frozen(self) -> bool:
        return self.linears[0].frozen is not None

    def _matrix(self) -> Joined:
        if self._joined is None:
            members = zip(self.linears, self.turned, strict=True)
            self._joined = Joined([(linear, *self._orders(turned)) for linear, turned in members])
        return self._joined

    def _orders(self, turned: int) -> tuple[Order, Order]:
        if not turned:
            return unchanged, unchanged
        return partial(self._ordered, turned=turned), partial(self._restored, turned=turned)

    def _beside(self, x: Tensor) -> Beside:
        """What the linears' adapters add, in the type of x (N, I), with gradients back to the adapters."""
        pairs = [linear.adapter for linear in self.linears]
        adapted = [p for p in pairs if p is not None]
        if not adapted:
            return Beside()
        down = torch.cat([p.lora_A for p in adapted]).to(x.dtype)
        if adapted[0].lora_magnitude_vector is not None:
            self._matrix().make_room(x, len(down))
        ups, lengths, start = [], [], 0
        for linear, turned, pair in zip(self.linears, self.turned, pairs, strict=True):
            if pair is None or not pair.active:
                # switched off it adds zeros: the same products, so the base's numbers are rounded alike
                ups.append(x.new_zeros(0 if pair is None else len(pair.lora_A), linear.outputs))
                lengths.append(x.new_ones(linear.outputs))
            else:
                ups.append((self._ordered(pair.lora_B, turned).t() * pair.scale).to(x.dtype))
                lengths.append(self._lengths(pair, x, slice(start, start + linear.outputs), turned))
            start += linear.outputs
        up = ups[0].contiguous() if len(ups) == 1 else torch.block_diag(*ups)
        rows = None if adapted[0].lora_magnitude_vector is None else torch.cat(lengths)
        return Beside(down, up, rows, adapted[0].keep(x))

    def _lengths(self, pair: LowRank, x: Tensor, rows: slice, turned: int) -> Tensor:
        """What a member's results are multiplied by, (O,): magnitude ÷ length of the row that is computed with."""
        if pair.lora_magnitude_vector is None:
            return x.new_ones(rows.stop - rows.start)
        up = self._ordered(pair.lora_B, turned) * pair.scale
        length = RowLengths.apply(pair.lora_A, up, x, self._matrix(), rows)
        return (self._ordered(pair.lora_magnitude_vector, turned) / length).to(x.dtype)

    # --- trained ---

    def _weights(self) -> list[Tensor]:
        return [linear.weight for linear in self.linears]

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        if self.linears[0].bias is None:
            return None
        biases = [self._ordered(linear.bias, turned) for linear, turned in zip(self.linears, self.turned, strict=True)]
        return torch.cat(biases).to(dtype)

    def _fold(self, norm: Tensor, *weights: Tensor) -> Tensor:
        """Stacked weight (O, I) with the norm's weight folded in."""
        factor = norm + self.norm_offset if self.norm_offset else norm
        return self._join(*weights, fresh=True).mul_(factor)

    def _join(self, *weights: Tensor, fresh: bool = False) -> Tensor:
        """Stacked weight (O, I); may be a weight itself when there is but one, unless it must be `fresh`."""
        ordered = [self._ordered(w, turned) for w, turned in zip(weights, self.turned, strict=True)]
        return torch.cat(ordered) if fresh or len(ordered) > 1 else ordered[0].detach()

    def _ordered(self, rows: Tensor, turned: int) -> Tensor:
        """Rows of one member from Hugging Face's order to the one that is multiplied."""
        if not turned or self.turning is None:
            return rows
        front = self.turning.neighbours(rows[:turned])
        return front if turned == len(rows) else torch.cat([front, rows[turned:]])

    def _restored(self, rows: Tensor, turned: int) -> Tensor:
        """The inverse of `_ordered`."""
        if not turned or self.turning is None:
            return rows
        front = self.turning.halves(rows[:turned])
        return front if turned == len(rows) else torch.cat([front, rows[turned:]])

    def _split(self, grad: Tensor) -> list[Tensor]:
        """Gradient of the stacked weight (O, I) → of each member's."""
        pieces = grad.split([linear.outputs for linear in self.linears])
        return [self._restored(piece, turned) for piece, turned in zip(pieces, self.turned, strict=True)]
