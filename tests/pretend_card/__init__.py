"""A card that is not there: FakeTensorMode's rules for a device, and the true numbers beside them on the CPU.

Every operation on the card is run twice. torch's fake tensors say on which device, in which type and shape its result
is, and refuse what a card would refuse: tensors of two devices in one operation, a kernel that does not exist. The same
operation on CPU tensors gives the numbers, so that what depends on data (lengths, routes of experts, sampled tokens)
goes the way that it goes in a run. What waits for the card, or copies to it or from it, is counted with its line.

torch's CPU build has no guard for a device "cuda", so there the card is the device "meta": everything is as on a card
but for what asks for "cuda" by name. `DEVICES` are those that can be pretended here.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._functorch.config
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

import settle
from settle.model.layers import attention, dequantize
from tests.pretend_card.stand_ins import STAND_INS

ROOT = Path(settle.__file__).parent
MOST_STORAGES = 10_000  # before those that are gone are dropped
DEVICES = ("cuda", "meta") if torch.version.cuda else ("meta",)
aten = torch.ops.aten
# operations whose result or its size the host has to know, so that it waits for the card; with the argument that
# spares it the wait
WAITS: dict[Any, str | None] = {
    aten._local_scalar_dense.default: None,
    aten.nonzero.default: None,
    aten.masked_select.default: None,
    aten.bincount.default: None,
    aten.equal.default: None,
    aten.is_nonzero.default: None,
    aten.repeat_interleave.Tensor: "output_size",
}
COPIES = {aten._to_copy.default, aten.copy_.default, aten._copy_from.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


@dataclass(frozen=True)
class Wait:
    """What makes the host wait for the card. what: "wait", "to the CPU" or "to the card"; line: where in settle."""

    what: str
    operation: str
    line: str


@dataclass
class Trace:
    """What happened on the card. operations: with the types of the tensors that they took and gave."""

    waits: Counter[Wait] = field(default_factory=Counter)
    operations: Counter[tuple[str, tuple[torch.dtype, ...]]] = field(default_factory=Counter)

    def number(self, what: str) -> int:
        return sum(times for wait, times in self.waits.items() if wait.what == what)


class PretendCard(FakeTensorMode):
    """device: "cuda" or "meta". numbers: whether results are computed, without which only sizes are known; then what
    the host asks for is made up: 1 of a float, and an error of anything else."""

    def __init__(self, device: str = DEVICES[0], numbers: bool = True) -> None:
        with torch._functorch.config.patch(fake_tensor_allow_meta=True):
            super().__init__(allow_non_fake_inputs=True)
        self.card = torch.device(device, 0) if device == "cuda" else torch.device(device)
        self.numbers, self.trace = numbers, Trace()
        self._is_within = False
        self._storages: dict[int, tuple[StorageWeakRef, torch.UntypedStorage]] = {}

    # --- one operation ---

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self._is_within:
            return super().dispatch(func, types, args, kwargs or {})
        kwargs = dict(kwargs or {})
        flat, spec = tree_flatten((tuple(args), kwargs))
        is_here = not any(isinstance(leaf, FakeTensor) for leaf in flat)
        target = kwargs.get("device")
        if is_here and (target is None or torch.device(target).type == "cpu"):
            return func(*args, **kwargs)
        if not isinstance(func, torch._ops.OpOverload):
            return super().dispatch(func, types, args, kwargs)
        if func.namespace == "prim":  # asks a tensor for its device or its layout
            return super().dispatch(func, types, args, kwargs)
        self._note(func, args, kwargs, flat)
        if func in COPIES and self._is_to_cpu(func, args, kwargs):
            return self._to_cpu(func, flat, spec)
        depends_on_data = False
        try:
            self._is_within = True  # what torch makes of it are fake tensors of its own
            out = super().dispatch(func, types, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            depends_on_data = True
        finally:
            self._is_within = False
        if depends_on_data:
            return self._found_by_numbers(func, flat, spec)
        if self.numbers:
            self._remember(out, self._computed(func, flat, spec))
        return out

    def _computed(self, func: Any, flat: list[Any], spec: Any) -> Any:
        """The operation's result on the CPU."""
        (args, kwargs) = tree_unflatten([self._number(leaf) for leaf in flat], spec)
        return STAND_INS.get(func.name(), func)(*args, **kwargs)

    def _number(self, leaf: Any) -> Any:
        if isinstance(leaf, FakeTensor):
            return self.numbers_of(leaf)
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    def _remember(self, out: Any, computed: Any) -> None:
        """Keep the numbers of tensors of the card, which must be of the same shape and type."""
        if out is None or computed is None:
            return  # written in place
        fakes, reals = tree_flatten(out)[0], tree_flatten(computed)[0]
        for fake, real in zip(fakes, reals, strict=True):
            if isinstance(fake, FakeTensor):
                if not fake.numel():
                    real = torch.empty(fake.shape, dtype=fake.dtype)  # a buffer that only the CPU's kernel keeps
                assert (fake.shape, fake.dtype) == (real.shape, real.dtype), "torch's rules and its kernels differ"
                self._keep(fake, real)

    def _keep(self, fake: FakeTensor, real: Tensor) -> None:
        storage = fake.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is not None and not known[0].expired():
            return  # a view, or what was written in place
        if fake.numel() and (fake.stride() != real.stride() or fake.storage_offset() != real.storage_offset()):
            offset, size = fake.storage_offset(), storage.nbytes() // fake.element_size()
            whole = torch.empty(size, dtype=real.dtype)
            real = whole.as_strided(fake.shape, fake.stride(), offset).copy_(real)
        if len(self._storages) > MOST_STORAGES:
            self._storages = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        self._storages[storage._cdata] = StorageWeakRef(storage), real.untyped_storage()

    def numbers_of(self, tensor: Tensor) -> Tensor:
        """The numbers of a tensor of the card, on the CPU: they share memory where those of the card do."""
        known = self._storages.get(tensor.untyped_storage()._cdata)
        if known is None or known[0].expired():
            raise AssertionError(f"the numbers of {tensor} are not known")
        offset, shape, stride = tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
        return torch.empty(0, dtype=tensor.dtype).set_(known[1], offset, shape, stride)  # type: ignore[call-overload]

    def _found_by_numbers(self, func: Any, flat: list[Any], spec: Any) -> Any:
        if not self.numbers and func is aten._local_scalar_dense.default and flat[0].is_floating_point():
            return 1.0
        return tree_map_only(Tensor, self.upload, self._computed(func, flat, spec))

    def _to_cpu(self, func: Any, flat: list[Any], spec: Any) -> Any:
        if func is aten._to_copy.default and not self.numbers:
            return torch.zeros(flat[0].shape, dtype=tree_unflatten(flat, spec)[1].get("dtype") or flat[0].dtype)
        return self._computed(func, flat, spec)

    def upload(self, real: Tensor) -> FakeTensor:
        """A tensor of the card with these numbers."""
        fake = FakeTensor(self, real.to("meta"), self.card)
        self._keep(fake, real)
        return fake

    # --- what it costs ---

    def _note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], flat: list[Any]) -> None:
        tensors = [leaf for leaf in flat if isinstance(leaf, FakeTensor)]
        self.trace.operations[func.name(), tuple(dict.fromkeys(t.dtype for t in tensors))] += 1
        if func in WAITS and (WAITS[func] is None or kwargs.get(WAITS[func]) is None):
            self._wait("wait", func)
        elif func in COPIES:
            if self._is_to_cpu(func, args, kwargs):
                self._wait("to the CPU", func)
            elif self._is_from_cpu(func, args) and not _is_queued(func, args, kwargs):
                self._wait("to the card", func)
        elif func in INDEXED:
            for index in args[1]:
                if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                    self._wait("wait", func)
                elif isinstance(index, Tensor) and not isinstance(index, FakeTensor):
                    self._wait("to the card", func)

    def _is_to_cpu(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        if func is aten._to_copy.default:
            target = kwargs.get("device")
            return isinstance(args[0], FakeTensor) and target is not None and torch.device(target).type == "cpu"
        return not isinstance(args[0], FakeTensor) and isinstance(args[1], FakeTensor)

    def _is_from_cpu(self, func: Any, args: Sequence[Any]) -> bool:
        source = args[0] if func is aten._to_copy.default else args[1]
        return not isinstance(source, FakeTensor)

    def _wait(self, what: str, func: Any) -> None:
        self.trace.waits[Wait(what, func.name().removeprefix("aten::"), place())] += 1


def _is_queued(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a copy to the card is only queued: from pinned memory, or of a number that goes along with the kernel."""
    is_copy = func is aten.copy_.default
    source = args[1] if is_copy else args[0]
    return bool(kwargs.get("non_blocking") or (is_copy and (source.dim() == 0 or len(args) > 2 and args[2])))


def place() -> str:
    """The innermost line of settle that is being run."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


def _tolist(tensor: FakeTensor) -> Any:
    return tensor.cpu().tolist()


def _pinned(tensor: Tensor) -> Tensor:
    return tensor


def _math_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float, enable_gqa: bool
) -> Tensor:
    """What torch chooses on a card asks its driver; by plain products it is the same."""
    out, _ = aten._scaled_dot_product_attention_math(
        q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return out


@contextmanager
def pretend_card(device: str = DEVICES[0], numbers: bool = True, is_newer: bool = True) -> Iterator[PretendCard]:
    """As long as this lasts, there is a card of that name. is_newer: it has flash attention, as cards since Ampere."""
    dequantize.CONSTANTS.clear()
    with (
        warnings.catch_warnings(),
        patch.object(FakeTensor, "tolist", _tolist),
        patch.object(Tensor, "pin_memory", _pinned),
        patch.object(attention, "_has_varlen", lambda where, width: is_newer and where.type != "cpu"),
        patch.object(attention, "scaled_dot_product_attention", _math_attention),
        patch.object(torch.cuda, "is_available", lambda: False),
        PretendCard(device, numbers) as card,
    ):
        warnings.filterwarnings("ignore", "Accessing the data pointer")
        yield card
    dequantize.CONSTANTS.clear()
