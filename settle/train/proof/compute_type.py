"""How far the gradient in a half type may be from the exact one: as far as this model's own rounding puts it.

The exact computation is done again with the operands and results of every matrix product rounded to the type, and the
results of what is done number by number between them. What that changes is the rounding that any machine has, whatever
its kernels for that type do.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from settle.base.errors import ProofError
from settle.base.statistics import student_quantile

_ATEN = torch.ops.aten
PRODUCTS = {
    op for packet in (_ATEN.mm, _ATEN.bmm, _ATEN.addmm, _ATEN.baddbmm) for op in (packet.default, packet.out)
}  # fmt: skip
# What a layer does between its products, forth and back, in the type that it computes in
BETWEEN = {
    _ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.mul.Tensor, _ATEN.mul_.Tensor, _ATEN.mul.out, _ATEN.addcmul.default,
    _ATEN.rsqrt_.default, _ATEN.silu.default, _ATEN.gelu.default, _ATEN.silu_backward.grad_input,
    _ATEN.gelu_backward.grad_input, _ATEN._softmax_backward_data.default,
}  # fmt: skip
LARGE = 1 << 22  # numbers of an operand that are rounded at a time: a whole copy of a large table is no small memory
# How often the emulated error is allowed, and how much in any case, where rounding is so small that sums in another
# order count (bench/proof.py bars has what sound recipes need). scale: of the length along the exact gradient.
TIMES = 3.0
# The errors of a loss and of a length have a sign, and one draw of such an error may be next to nothing: before either
# is called too large, it is held against that of more roundings, each on other grids, at this level.
DRAWS, DRAWS_LEVEL = 5, 0.99
LEAST = {torch.bfloat16: 0.03, torch.float16: 0.01, torch.float32: 1e-5, torch.float64: 1e-8}
LEAST_OF_SCALE = {torch.bfloat16: 0.02, torch.float16: 5e-3, torch.float32: 1e-5, torch.float64: 1e-8}
# The gradient from few tokens of a tensor may be nearly zero, so a tensor's bar is wider than that of all together
LEAST_OF_TENSOR = 3.0


class EmulatedRounding(TorchDispatchMode):
    """Rounding of the operands and results of matrix products to `dtype`, and of the results BETWEEN them.

    They stay in the type that they have. vocabulary: width of logits, which are wide in any type. seed: each time on
    another grid of as many digits, so that one rounding is as good as another; None: on the type's own.
    """

    def __init__(self, dtype: torch.dtype, vocabulary: int, seed: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch gives it no types
        self.dtype, self.vocabulary = dtype, vocabulary
        self._grids = None if seed is None else random.Random(seed)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False, or torch imports its compiler for this mode: 75 MB that nothing here uses."""
        return False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in BETWEEN:
            if function == _ATEN._softmax_backward_data.default:
                args = (*map(self._rounded, args[:2]), *args[2:])
            out = function(*args, **kwargs)
            is_of_layer = out.dim() > 1 and out.shape[-1] != self.vocabulary
            return out.copy_(self._rounded(out)) if is_of_layer else out
        if function not in PRODUCTS:
            return function(*args, **kwargs)
        if function in (_ATEN.mm.default, _ATEN.mm.out):
            product = self._product(*args)
            return kwargs["out"].copy_(product) if "out" in kwargs else product
        out = function(*(self._rounded(a) if isinstance(a, Tensor) else a for a in args), **kwargs)
        return out.copy_(self._rounded(out)) if isinstance(out, Tensor) else out

    def _product(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute a (M, K) @ b (K, N), in pieces along the longest of the three where an operand is large."""
        (m, k), n = a.shape, b.shape[1]
        pieces = -(-max(a.numel(), b.numel()) // LARGE)
        if pieces == 1 or k >= max(m, n):
            out = a.new_zeros(m, n)
            for left, right in zip(a.chunk(pieces, 1), b.chunk(pieces, 0), strict=True):
                out.addmm_(self._rounded(left), self._rounded(right))
            return out.copy_(self._rounded(out))
        out, whole = a.new_empty(m, n), self._rounded(a if n >= m else b)
        if n >= m:
            for right, place in zip(b.chunk(pieces, 1), out.chunk(pieces, 1), strict=True):
                place.copy_(self._rounded(whole @ self._rounded(right)))
        else:
            for left, place in zip(a.chunk(pieces, 0), out.chunk(pieces, 0), strict=True):
                place.copy_(self._rounded(self._rounded(left) @ whole))
        return out

    def _rounded(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        rounded = x.to(self.dtype).to(x.dtype)
        if self._grids is None or torch.equal(rounded, x):  # weights that came in the type are not rounded by anyone
            return rounded
        grid = self._grids.uniform(1.0, 2.0)
        return (x * grid).to(self.dtype).to(x.dtype) / grid


class RoundingError(ProofError):
    """The gradient in the compute type is not the exact one. A slower type may help."""

    def __init__(self, what: str) -> None:
        super().__init__(what, "leave --dtype out, and the run chooses float32")


@dataclass(frozen=True)
class Deviation:
    """How far one computation of loss and gradient is from the exact one, all relative.

    loss: of the mean loss. of_all: norm of the difference of all gradients. scale: how much longer the gradient is
    along the exact one, which rounding leaves nearly as it is. tensors: norm of the difference of each. chances: norm
    of the difference of the experts' chances, where there are experts.
    """

    loss: float
    of_all: float
    scale: float
    tensors: Mapping[str, float] = field(default_factory=dict)
    chances: float = 0.0

    @property
    def worst(self) -> str:
        """The tensor that is furthest off; NaN is further than any."""
        return max(self.tensors, key=lambda name: _order(self.tensors[name]))


def deviation(there: Mapping[str, Tensor], exact: Mapping[str, Tensor], loss: float, exact_loss: float) -> Deviation:
    """How gradients differ from the exact ones of the same names, and a mean loss from the exact one."""
    tensors, gap, along, size = {}, 0.0, 0.0, 0.0
    for name, whole in exact.items():
        wanted = whole.cpu()
        difference = there[name].cpu().to(wanted.dtype) - wanted
        norm, own = float(difference.norm()), float(wanted.norm())
        tensors[name] = norm / own if own > 1e-9 else 0.0  # rounding decides what is so small
        gap, size, along = gap + norm**2, size + own**2, along + float((difference * wanted).sum())
    return Deviation(abs(loss - exact_loss) / abs(exact_loss), math.sqrt(gap / size), along / size, tensors)


def require_within(
    dtype: torch.dtype,
    measured: Deviation,
    emulated: Deviation,
    most: float,
    most_of_tensor: float,
    draw: Callable[[int], Deviation],
) -> str:
    """Check that the gradient in `dtype` is as near to the exact one as its rounding allows; say how far off it is.

    emulated: of the exact computation with emulated rounding. most, most_of_tensor: what is too much in any case. draw:
    the same as `emulated` with other grids, by their seed. Raises RoundingError.
    """
    kind = str(dtype).removeprefix("torch.")
    draws = [emulated]

    def signed(value: float, of: Callable[[Deviation], float], least: float, most: float) -> float:
        """Return what is allowed of an error that has a sign."""
        if abs(value) > bar(of(emulated), least, most) and math.isfinite(value):
            draws.extend(draw(seed) for seed in range(len(draws), 1 + DRAWS))
        squares = [of(each) ** 2 for each in draws]
        times = student_quantile((1 + DRAWS_LEVEL) / 2, len(draws)) if len(draws) > 1 else TIMES
        return min(most, max(times * math.sqrt(sum(squares) / len(squares)), least))

    def bar(emulated_error: float, least: float, most: float) -> float:
        return min(most, max(TIMES * abs(emulated_error), least))

    allowed = signed(measured.loss, lambda each: each.loss, LEAST[dtype] / 10, 0.1 * most)
    if not measured.loss <= allowed:
        raise RoundingError(
            f"the loss in {kind} is {measured.loss:.1e} off the exact one, and its rounding explains {allowed:.1e}"
        )
    allowed = bar(emulated.chances, LEAST[dtype], most)
    if not measured.chances <= allowed:
        raise RoundingError(
            f"the chances of the experts in {kind} are {measured.chances:.1e} off the exact ones, and their rounding "
            f"explains {allowed:.1e}"
        )
    name = max(measured.tensors, key=lambda n: _order(measured.tensors[n]) / (emulated.tensors[n] + LEAST[dtype]))
    allowed = bar(emulated.tensors[name], LEAST_OF_TENSOR * LEAST[dtype], most_of_tensor)
    if not measured.tensors[name] <= allowed:
        raise RoundingError(
            f"{name}: its gradient in {kind} is {measured.tensors[name]:.1e} off the exact one, and its rounding "
            f"explains {allowed:.1e}"
        )
    allowed = bar(emulated.of_all, LEAST[dtype], most)
    if not measured.of_all <= allowed:
        raise RoundingError(
            f"the gradient in {kind} is {measured.of_all:.1e} off the exact one, and its rounding explains "
            f"{allowed:.1e}"
        )
    allowed = signed(measured.scale, lambda each: each.scale, LEAST_OF_SCALE[dtype], most)
    if not abs(measured.scale) <= allowed:
        raise RoundingError(
            f"the gradient in {kind} is {measured.scale:+.1%} longer than the exact one, and its rounding explains "
            f"{allowed:.1%}"
        )
    return (
        f"{kind}, {measured.of_all:.1e} off ({emulated.of_all:.1e} by emulated rounding), worst tensor "
        f"{measured.worst}: {measured.tensors[measured.worst]:.1e}"
    )


def _order(error: float) -> float:
    return error if math.isfinite(error) else math.inf
