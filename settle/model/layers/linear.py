"""Linears and the norms before them: linears that read the same input are multiplied as one.

Letters: N tokens, D width, I inputs, O outputs of a linear.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from settle.model.config import LayerOptions
from settle.model.layers.frozen_weights import Joined, Order, Owner, unchanged
from settle.model.layers.kernels import (
    Gated,
    LinearAdd,
    NormAdd,
    NormLinear,
    Product,
    RmsNorm,
    apply,
    apply_pair,
)
from settle.model.layers.linear_adapter import Beside, FrozenAdd, FrozenNormLinear, LinearAdapter, Member, beside


class RMSNorm(nn.Module):
    """A norm that multiplies by `offset` + its weight (D,), times `scale`; it begins as multiplying by `scale`.

    is_folded: whether products may take its weight into theirs.
    """

    is_folded = True

    def __init__(self, width: int, eps: float, offset: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), 1.0 - offset))
        self.eps, self.offset, self.scale = eps, offset, scale

    def factor(self) -> Tensor:
        """Return what the unit is multiplied by, (D,)."""
        factor = self.weight + self.offset if self.offset else self.weight
        return factor if self.scale == 1 else factor * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, D) → (N, D)."""
        return apply(RmsNorm, x, self.factor(), self.eps)

    def add(self, residual: Tensor, y: Tensor) -> Tensor:
        """Compute residual (N, D) + norm(y (N, D))."""
        return apply(NormAdd, residual, y, self.factor(), self.eps)


class LayerNorm(RMSNorm):
    """A norm that subtracts the mean first, and adds a bias (D,) (arXiv:1607.06450), where it has one, or a weight."""

    is_folded = False

    def __init__(self, o: LayerOptions, width: int, scale: float = 1.0) -> None:
        super().__init__(width, o.eps, o.norm_offset, scale)
        self.bias = nn.Parameter(torch.zeros(width)) if o.norm_bias else None
        if not o.norm_weight:
            self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        factor = None if self.weight is None else self.factor().to(x.dtype)
        bias = None if self.bias is None else (self.bias * self.scale).to(x.dtype)
        return torch.layer_norm(x, x.shape[-1:], factor, bias, self.eps)

    def add(self, residual: Tensor, y: Tensor) -> Tensor:
        return residual + self.forward(y)


def norm_of(o: LayerOptions, width: int | None = None, scale: float = 1.0) -> RMSNorm:
    """Return a new norm of a layer's kind, of the stream's width unless another is given."""
    width = o.width if width is None else width
    return LayerNorm(o, width, scale) if o.centred_norms else RMSNorm(width, o.eps, o.norm_offset, scale)


def added(residual: Tensor, branch: Tensor, after: RMSNorm | None, scale: float) -> Tensor:
    """Compute residual + scale · branch, or residual + after(branch); all (N, D)."""
    return torch.add(residual, branch, alpha=scale) if after is None else after.add(residual, branch)


class Constant(nn.Module):
    """A number (1,), or several, of a file that is never trained; one multiplies."""

    def __init__(self, number: int = 1, start: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((number,), start), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply x (N, D) → (N, D)."""
        return x * self.weight.to(x.dtype)


class Cast:
    """Cache of `make(*parameters)`, made again after `refresh_casts`, and when a parameter was changed otherwise.

    Whoever changes a parameter outside a step does it in place, under autograd's eyes (`add_`, `copy_`), or puts
    another tensor in its place: then its version counter or its address is another one.

    is_kept: False where parameters are whole for the length of a product only (sharded ones): every call makes the
    value, and a backward pass makes it again by `remake`.
    """

    def __init__(self, make: Callable[..., Tensor]) -> None:
        self.make, self.is_kept = make, True
        self.key: tuple[object, ...] = ()
        self.value: Tensor | None = None

    @property
    def remake(self) -> Callable[..., Tensor] | None:
        """What a backward pass makes the value with; None where it is kept until then."""
        return None if self.is_kept else self

    def __call__(self, dtype: torch.dtype, *parameters: Tensor) -> Tensor:
        if not self.is_kept:
            with torch.no_grad():
                return self.make(*parameters).to(dtype)
        key = (dtype, *((p._version, p.data_ptr()) for p in parameters))
        if self.value is None or key != self.key:
            with torch.no_grad():
                self.value = self.make(*parameters).to(dtype)
            self.key = key
        return self.value


class Linear(Owner):
    """A matrix (O, I) and perhaps a `bias` (O,), in Hugging Face's layout; left to be initialised.

    adapter: what is trained beside the matrix when that is frozen. only_named: as of `LinearShape`.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False, only_named: bool = False) -> None:
        super().__init__(outputs, inputs)
        self.only_named = only_named
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.adapter: LinearAdapter | None = None


@dataclass(frozen=True)
class Turning:
    """Heads whose pairs turn: width of a head, and how many of its numbers do.

    by_head: the rows are query, key and value of one head after another; multiplied are those of all heads together.
    is_interleaved: pairs are neighbours in Hugging Face's order too.
    """

    head_dim: int
    rotary_dim: int
    by_head: bool = False
    is_interleaved: bool = False

    def neighbours(self, rows: Tensor) -> Tensor:
        """Rows of each head from halves (Hugging Face: i pairs with i + rotary/2) to neighbours (2i with 2i + 1)."""
        return self._swap(rows, 2, self.rotary_dim // 2)

    def halves(self, rows: Tensor) -> Tensor:
        """Invert `neighbours`."""
        return self._swap(rows, self.rotary_dim // 2, 2)

    def _swap(self, rows: Tensor, outer: int, inner: int) -> Tensor:
        """Rows (n·d, …) with the turning part of each head seen as (outer, inner) and transposed."""
        if self.is_interleaved:
            return rows
        if self.rotary_dim == self.head_dim:
            return rows.reshape(-1, outer, inner, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
        heads = rows.reshape(-1, self.head_dim, *rows.shape[1:])
        turning, still = heads[:, : self.rotary_dim], heads[:, self.rotary_dim :]
        turning = turning.reshape(-1, outer, inner, *rows.shape[1:]).transpose(1, 2).reshape(turning.shape)
        return torch.cat([turning, still], dim=1).reshape(rows.shape)


@dataclass(frozen=True)
class RowOrder:
    """The order in which one linear's rows are multiplied: its first `turned` rows belong to heads whose pairs turn.

    has_gates: as many rows more are gates, in Hugging Face's order behind each head, here before all heads.
    """

    turning: Turning | None
    turned: int
    has_gates: bool = False

    def functions(self) -> tuple[Order, Order]:
        """From Hugging Face's order to the one that is multiplied, and back."""
        return (self.ordered, self.restored) if self.turned and self.turning is not None else (unchanged, unchanged)

    def ordered(self, rows: Tensor) -> Tensor:
        """Rows (O, …) from Hugging Face's order to the one that is multiplied."""
        if not self.turned or self.turning is None:
            return rows
        if self.has_gates:
            heads = rows.reshape(-1, 2, self.turning.head_dim, *rows.shape[1:]).transpose(0, 1).flatten(1, 2)
            return torch.cat([heads[1], self.turning.neighbours(heads[0])])
        if self.turning.by_head:
            rows = rows.unflatten(0, (-1, 3, self.turning.head_dim)).transpose(0, 1).flatten(0, 2)
        front = self.turning.neighbours(rows[: self.turned])
        return front if self.turned == len(rows) else torch.cat([front, rows[self.turned :]])

    def restored(self, rows: Tensor) -> Tensor:
        """Invert `ordered`."""
        if not self.turned or self.turning is None:
            return rows
        if self.has_gates:
            gates, heads = rows.chunk(2)
            both = torch.stack([self.turning.halves(heads), gates])
            restored: Tensor = both.unflatten(1, (-1, self.turning.head_dim)).transpose(0, 1).reshape(rows.shape)
            return restored
        front = self.turning.halves(rows[: self.turned])
        whole = front if self.turned == len(rows) else torch.cat([front, rows[self.turned :]])
        if self.turning.by_head:
            whole = whole.unflatten(0, (3, -1, self.turning.head_dim)).transpose(0, 1).flatten(0, 2)
        return whole


class Stack:
    """Linears that read the same input, as one product. A view of modules that live elsewhere.

    members: (linear, how many of its first rows belong to heads that turn). norm_offset: of the norm before them.
    has_gates: whether the first linear's heads have gates.
    All are trained, or all are frozen. What the product reads of trained ones is a copy in the compute type, made
    again when a parameter has changed, so once a step and not once a micro-batch. Frozen ones may have adapters:
    low-rank pairs are part of the product; with any other method each linear is multiplied by itself.
    """

    def __init__(
        self,
        members: Sequence[tuple[Linear, int]],
        turning: Turning | None = None,
        norm_offset: float = 0.0,
        has_gates: bool = False,
    ) -> None:
        self.linears = [linear for linear, _ in members]
        self.orders = [RowOrder(turning, rows, has_gates and i == 0) for i, (_, rows) in enumerate(members)]
        self.norm_offset = norm_offset
        self._folded = Cast(self._fold)
        self._plain = Cast(self._join)
        self._joined: list[Joined] = []
        self._is_apart = False

    def norm_linear(self, x: Tensor, norm: RMSNorm | None, biased: bool = True) -> tuple[Tensor, Tensor]:
        """Compute x (N, I) → (x for the residual, norm(x) through the linears (N, O)). biased: with `bias` added."""
        if norm is None:
            return x, self.linear(x, biased)
        if not norm.is_folded or (self._is_frozen() and (norm.weight.requires_grad or self._is_wrapped())):
            return x, self.linear(norm(x), biased)
        bias = self.bias(x.dtype) if biased else None
        if self._is_frozen():
            residual, out = apply_pair(
                FrozenNormLinear, x, norm.factor(), norm.eps, self._matrices()[0], bias, *self._beside(x)
            )
            return residual, out
        weights = self._weights()
        folded = self._folded(x.dtype, norm.weight, *weights)
        residual, out = apply_pair(
            NormLinear, x, folded, bias, self._split, self._folded.remake, norm.eps, norm.offset, norm.weight, *weights
        )
        return residual, out

    def linear(self, x: Tensor, biased: bool = True) -> Tensor:
        """Compute x (N, I) → (N, O). biased: with `bias` added."""
        if self._is_wrapped():
            members = zip(self.linears, self.orders, self._matrices(), strict=True)
            return torch.cat([order.ordered(_wrapped(linear, matrix, x).t()) for linear, order, matrix in members]).t()
        bias = self.bias(x.dtype) if biased else None
        if self._is_frozen():
            out: Tensor = apply(FrozenAdd, None, x, None, self._matrices()[0], bias, *self._beside(x))
        else:
            weights = self._weights()
            plain = self._plain(x.dtype, *weights)
            out = apply(Product, x, plain, bias, self._split, self._plain.remake, *weights)
        return out

    def linear_add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Compute residual (N, O) + x (N, I) through the linears. Only for one linear that does not turn."""
        if self._is_wrapped():
            return residual + self.linear(x)
        bias = self.bias(x.dtype)
        if self._is_frozen():
            return apply(FrozenAdd, residual, x, None, self._matrices()[0], bias, *self._beside(x))
        (weight,) = self._weights()
        out = apply(LinearAdd, residual, x, self._plain(x.dtype, weight), weight)
        return out if bias is None else out + bias

    def gated(self, residual: Tensor | None, gate_up: Tensor, activation: str) -> Tensor:
        """Compute residual (N, O) or nothing + activation(gate) · up through the linears; gate_up (N, 2I)."""
        if self._is_frozen() and not self._is_wrapped():
            inner = gate_up[:, : self.linears[0].inputs]  # only its size and type are looked at
            beside = self._beside(inner)
            bias = self.bias(gate_up.dtype)
            return apply(FrozenAdd, residual, gate_up, activation, self._matrices()[0], bias, *beside)
        inner = apply(Gated, gate_up, activation)
        return self.linear(inner) if residual is None else self.linear_add(residual, inner)

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return the linears' biases in the order of the product, (O,); None without any."""
        biases = [linear.bias for linear in self.linears if linear.bias is not None]
        if not biases:
            return None
        return torch.cat([o.ordered(bias) for o, bias in zip(self.orders, biases, strict=True)]).to(dtype)

    @property
    def has_bias_apart(self) -> bool:
        """True when a product without `bias` can be had: an adapter that wraps its linear adds it on its own."""
        return not self._is_wrapped()

    # --- frozen ---

    def _is_frozen(self) -> bool:
        return self.linears[0].frozen is not None

    def _is_wrapped(self) -> bool:
        """Return whether an adapter wraps its linear, so that each linear is multiplied by itself."""
        return any(linear.adapter is not None and linear.adapter.pair is None for linear in self.linears)

    def _matrices(self) -> list[Joined]:
        """Return the frozen matrices as they are multiplied: one of all linears, or each in Hugging Face's order."""
        if not self._joined or self._is_apart != self._is_wrapped():
            self._is_apart = self._is_wrapped()
            if self._is_apart:
                self._joined = [Joined([(linear, unchanged, unchanged)]) for linear in self.linears]
            else:
                members = zip(self.linears, self.orders, strict=True)
                self._joined = [Joined([(linear, *order.functions()) for linear, order in members])]
        return self._joined

    def _beside(self, x: Tensor) -> Beside:
        """Join what the linears' low-rank pairs add, in the type of x (N, I)."""
        members = []
        for linear, order in zip(self.linears, self.orders, strict=True):
            pair = None if linear.adapter is None else linear.adapter.pair
            members.append(Member(pair, linear.outputs, order.ordered))
        return beside(members, self._matrices()[0], x)

    # --- trained ---

    def _weights(self) -> list[Tensor]:
        return [linear.weight for linear in self.linears]

    def _fold(self, norm: Tensor, *weights: Tensor) -> Tensor:
        """Stacked weight (O, I) with the norm's weight folded in."""
        factor = norm + self.norm_offset if self.norm_offset else norm
        return self._join(*weights, fresh=True).mul_(factor)

    def _join(self, *weights: Tensor, fresh: bool = False) -> Tensor:
        """Stacked weight (O, I); may be a weight itself when there is but one, unless it must be `fresh`."""
        ordered = [order.ordered(w) for w, order in zip(weights, self.orders, strict=True)]
        return torch.cat(ordered) if fresh or len(ordered) > 1 else ordered[0].detach()

    def _split(self, grad: Tensor) -> list[Tensor]:
        """Gradient of the stacked weight (O, I) → of each member's."""
        pieces = grad.split([linear.outputs for linear in self.linears])
        return [order.restored(piece) for piece, order in zip(pieces, self.orders, strict=True)]


def keep_casts(model: nn.Module, is_kept: bool) -> None:
    """Set whether the copies of a model's weights in the compute type outlive a product."""
    for cast in casts_of(model):
        cast.is_kept, cast.value = is_kept, None


def refresh_casts(casts: Iterable[Cast]) -> None:
    """Drop the copies of a model's weights after an optimizer's step.

    A sharding framework may keep version counters, and hands out the same storage again.
    """
    for cast in casts:
        cast.value = None


def casts_of(model: nn.Module) -> list[Cast]:
    """Return every cache of a model's weights; to find them takes as long as a layer of a small model."""
    parts = (part for module in model.modules() for part in vars(module).values())
    within = (vars(part).values() if isinstance(part, Stack) else (part,) for part in parts)
    return [cast for found in within for cast in found if isinstance(cast, Cast)]


def _wrapped(linear: Linear, matrix: Joined, x: Tensor) -> Tensor:
    """Compute x (N, I) → (N, O) through one frozen linear and its adapter, rows in Hugging Face's order."""

    def product(inner: Tensor) -> Tensor:
        bias = None if linear.bias is None else linear.bias.to(inner.dtype)
        return apply(FrozenAdd, None, inner, None, matrix, bias, *Beside())

    adapter = linear.adapter
    out: Tensor = adapter(x, product) if adapter is not None and adapter.active else product(x)
    return out
