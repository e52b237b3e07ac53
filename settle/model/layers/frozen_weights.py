"""Weights that are not trained, in their original form: dense, in a GGUF file's blocks, or in NF4.

Nothing here is ever copied to fp32 as a whole. What is quantized is turned into numbers on the way to a product.
Letters: O rows and I columns of a matrix, N tokens.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from settle.base.errors import FormatError
from settle.model.layers.dequantize import Nf4, dequantize, dequantize_nf4

Order = Callable[[Tensor], Tensor]


class Frozen(ABC):
    """A matrix (O, I) that no optimizer touches."""

    shape: tuple[int, ...]
    tensors: tuple[Tensor, ...]  # in which it lies
    dtype: torch.dtype | None = None  # of its numbers, None when it is quantized

    @abstractmethod
    def dense(self, dtype: torch.dtype) -> Tensor:
        """All numbers (O, I); may be the very tensor that is kept, so it is only to be read."""

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the rows `ids` (N,) → (N, I)."""
        return self.dense(dtype).index_select(0, ids)

    def into(self, out: Tensor) -> None:
        """All numbers into `out` (O, I)."""
        out.copy_(self.dense(out.dtype))

    @property
    def num_bytes(self) -> int:
        """Memory it takes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @abstractmethod
    def to(self, device: torch.device) -> "Frozen":
        """Return a copy on another device."""

    def __deepcopy__(self, memo: dict[int, object]) -> "Frozen":
        return self  # nobody writes to it


class FrozenDense(Frozen):
    """A matrix (or a norm's vector) in the type that is computed in, so that products read it as it lies."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.shape = weight.detach(), tuple(weight.shape)
        self.tensors, self.dtype = (self.weight,), weight.dtype

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.weight.to(dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        return self.weight.index_select(0, ids).to(dtype)

    def to(self, device: torch.device) -> "FrozenDense":
        return FrozenDense(self.weight.to(device))


class FrozenBlocks(Frozen):
    """A matrix in GGUF blocks. raw: uint8, the tensor's bytes in the file's order; kind: ggml's name of the type."""

    def __init__(self, raw: Tensor, kind: str, shape: tuple[int, ...]) -> None:
        self.raw, self.kind, self.shape = raw, kind, shape
        self.tensors = (raw,)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return dequantize(self.raw, self.kind, self.shape, dtype)

    def into(self, out: Tensor) -> None:
        if out.is_contiguous():
            dequantize(self.raw, self.kind, self.shape, out.dtype, out)
        else:
            super().into(out)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        chosen = self.raw.view(self.shape[0], -1).index_select(0, ids)
        return dequantize(chosen, self.kind, (len(ids), self.shape[1]), dtype)

    def to(self, device: torch.device) -> "FrozenBlocks":
        return FrozenBlocks(self.raw.to(device), self.kind, self.shape)


class FrozenNf4(Frozen):
    """A matrix in NF4 with double quantization (QLoRA, arXiv:2305.14314)."""

    def __init__(self, packed: Nf4) -> None:
        self.packed, self.shape = packed, (packed.shape[0], packed.shape[1])
        self.tensors = (packed.codes, packed.scales, packed.seconds, packed.mean)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return dequantize_nf4(self.packed, dtype)

    def into(self, out: Tensor) -> None:
        if out.is_contiguous():
            dequantize_nf4(self.packed, out.dtype, out)
        else:
            super().into(out)

    def to(self, device: torch.device) -> "FrozenNf4":
        codes, scales, seconds, mean = (tensor.to(device) for tensor in self.tensors)
        return FrozenNf4(Nf4(codes, scales, seconds, mean, self.packed.shape))


class FrozenView(Frozen):
    """Part of a larger matrix that holds several, `restore` bringing its rows back to Hugging Face's order."""

    def __init__(self, rows: Tensor, restore: Callable[[Tensor], Tensor]) -> None:
        self.view, self.restore, self.shape = rows, restore, (rows.shape[0], rows.shape[1])
        self.tensors, self.dtype = (rows,), rows.dtype

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self.restore(self.view).to(dtype).contiguous()

    def to(self, device: torch.device) -> "FrozenDense":
        return FrozenDense(self.dense(self.view.dtype).to(device))


class Owner(nn.Module):
    """The owner of a matrix (O, I): a trainable `weight`, which is None where there is a `frozen` one."""

    weight: nn.Parameter

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.frozen: Frozen | None = None

    def put(self, value: Tensor | Frozen) -> None:
        """Take over a matrix (O, I) in Hugging Face's layout: a tensor to be trained in fp32, or a frozen one."""
        if tuple(value.shape) != (self.outputs, self.inputs):
            raise FormatError(f"a matrix of {tuple(value.shape)} where {(self.outputs, self.inputs)} belongs", "")
        if isinstance(value, Frozen):
            self.register_parameter("weight", None)
            self.frozen = value
        else:
            self.weight, self.frozen = nn.Parameter(value.detach().float()), None

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix (O, I) in Hugging Face's layout, without gradient; only to be read."""
        return self.weight.detach().to(dtype) if self.frozen is None else self.frozen.dense(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Owner":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self.frozen is not None:
            device = fn(torch.empty(0, device=self.frozen.device)).device
            if device != self.frozen.device:
                self.frozen = self.frozen.to(device)
        return self


def unchanged(rows: Tensor) -> Tensor:
    """Identity row order."""
    return rows


class Joined:
    """Frozen matrices of owners that read the same input, one below another as they are multiplied: W (O, I).

    owners: (owner, its rows from Hugging Face's order to the one multiplied, and back). Dense ones of the type that
    is computed in move in here at the first use, with room for an adapter; their owners keep views. A wide W is kept
    transposed: a product with it is a third quicker than with W and its gradient no slower, measured on AMX at the
    shapes of 0.5B; a tall one is quickest as it is. Others are turned into numbers at every use.
    """

    def __init__(self, owners: Sequence[tuple[Owner, Order, Order]]) -> None:
        self.owners = list(owners)
        self.outputs = sum(owner.outputs for owner, _, _ in owners)
        self.inputs = owners[0][0].inputs
        self.is_wide = self.outputs > self.inputs
        self._kept: Tensor | None = None

    def weight(self, like: Tensor) -> Tensor:
        """W (O, I) in the type and on the device of `like`; only to be read, until the next call."""
        whole = self.numbers(like)
        return whole.t() if self.is_wide else whole

    def numbers(self, like: Tensor, below: Tensor | None = None, beside: Tensor | None = None) -> Tensor:
        """Return W, or its transpose when it is wide, with more rows or columns; as `weight`.

        below: rows after its last one. beside: columns right of its last one.
        """
        size, length = sorted((self.outputs, self.inputs))
        rows = size + (0 if below is None else below.shape[0])
        columns = length + (0 if beside is None else beside.shape[1])
        whole = self._held(like, rows, columns)[:rows, :columns]
        if below is not None:
            whole[size:] = below
        if beside is not None:
            whole[:, length:] = beside
        return whole

    def make_room(self, like: Tensor, rank: int) -> None:
        """Lie from now on as a product with an adapter of that rank needs it.

        Where numbers lie decides how sums over them are rounded, and a resumed run must round as the one that it
        continues.
        """
        if any(owner.frozen is None or owner.frozen.dtype != like.dtype for owner, _, _ in self.owners):
            return  # made anew at every use
        size, length = sorted((self.outputs, self.inputs))
        self._held(like, *((size + rank, length) if self.is_wide else (size, length + rank)))

    def _held(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """Return a matrix of at least that size, with W or its transpose in it."""
        cached = self._kept
        fits = cached is not None and cached.dtype == like.dtype and cached.device == like.device
        if cached is None or not fits or cached.shape[0] < rows or cached.shape[1] < columns:
            cached = self._fill(like, rows, columns)
        return cached

    def _fill(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """W or its transpose in a matrix of at least that size; kept when it need not be made again."""
        frozen = [owner.frozen for owner, _, _ in self.owners if owner.frozen is not None]
        stays = all(f.dtype == like.dtype for f in frozen)
        if (rows, columns) == frozen[0].shape and self.owners[0][1] is unchanged and not self.is_wide:
            whole = frozen[0].dense(like.dtype)
        else:
            if stays and not self.is_wide:
                # an adapter's numbers lie beside W on the way there and below it on the way back
                rows = max(rows, self.outputs + columns - self.inputs)
            # what is made for one use lies as its rows come; turning it round would cost more than it gains
            turned = self.is_wide and not stays
            whole = like.new_empty(columns, rows).t() if turned else like.new_empty(rows, columns)
            weight = whole[: self.inputs].t() if self.is_wide else whole[: self.outputs, : self.inputs]
            start = 0
            for (owner, order, restore), matrix in zip(self.owners, frozen, strict=True):
                part = weight[start : start + owner.outputs]
                if order is unchanged:
                    matrix.into(part)
                else:
                    part.copy_(order(matrix.dense(like.dtype)))
                if stays:
                    owner.frozen = FrozenView(part, restore)
                start += owner.outputs
        if stays:
            self._kept = whole
        return whole

    def __deepcopy__(self, memo: dict[int, object]) -> "Joined":
        copied = Joined.__new__(Joined)
        copied.__dict__ |= self.__dict__ | {"owners": copy.deepcopy(self.owners, memo)}
        return copied
