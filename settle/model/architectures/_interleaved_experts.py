"""gpt-oss's experts in Hugging Face's files, where those of a layer are stacked and rows of gate and up follow in turn.

`gate_up_proj` and `down_proj` are numbers, with inputs and outputs exchanged: (E, D, 2F) and (E, F, D). In MXFP4 (OCP
Microscaling Formats 1.0) they are `…_blocks` (E, 2F, D/32, 16), two values a byte beside each other, and `…_scales`
(E, 2F, D/32); a GGUF file's block has the scale first and puts the first 16 values into the low halves of its bytes.
Letters: E experts, D hidden width, F feed-forward width, R rows and C columns of an expert's matrix.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from settle.base.errors import FormatError
from settle.formats import LazyTensor, RowsPlace, TensorLike, to_float32
from settle.formats.gguf.types import ggml_type
from settle.model.layers.dequantize import dequantize

_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up_proj|down_proj)(_bias|_blocks|_scales|)")
_APART = re.compile(r"(.*\.mlp\.experts)\.\d+\.(gate|up|down)_proj\.(weight|bias)")
_HALVES = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
_BLOCK, _PACKED = 32, 16  # values of a block, and bytes of their codes


def unstack(
    tensors: Mapping[str, LazyTensor], experts: int, width: int, inner: int, turned: bool = True
) -> dict[str, LazyTensor]:
    """Return a file's tensors with one for each linear of an expert in the place of the stacked ones.

    turned: whether inputs come before outputs, and rows of gate and up follow in turn (gpt-oss). Raises FormatError for
    a stacked one of another shape, or that lacks its scales.
    """
    found: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        module, own, kind = match.groups()
        rows, columns = (2 * inner, width) if own == "gate_up_proj" else (width, inner)
        if kind == "_scales":
            continue
        if kind == "_blocks":
            scales = tensors.get(f"{module}.{own}_scales")
            if scales is None:
                raise FormatError(f"it lacks {module}.{own}_scales", "get the whole model")
            dtype, read = "MXFP4", _blocks(tensor, scales, (experts, rows, columns // _BLOCK))
        else:
            shape = (experts, rows) if kind else (experts, columns, rows) if turned else (experts, rows, columns)
            dtype, read = tensor.dtype, _numbers(tensor, shape, turned)
        parts = _HALVES[own]
        part_shape = (rows // len(parts),) if kind == "_bias" else (rows // len(parts), columns)
        for expert in range(experts):
            for number, part in enumerate(parts):
                linear = f"{module}.{expert}.{part}_proj.{'bias' if kind == '_bias' else 'weight'}"
                first = number * part_shape[0]
                which = slice(number, None, len(parts)) if turned else slice(first, first + part_shape[0])
                own_rows = partial(read, expert, which)
                found[linear] = _lazy(linear, part_shape, dtype, tensor, own_rows)
    return found


Read = Callable[[int, slice, int, int], np.ndarray]  # expert, which of its rows, from one to another → their bytes


def _numbers(tensor: LazyTensor, shape: tuple[int, ...], turned: bool) -> Read:
    """Read rows of numbers: of matrices (E, C, R), or (E, R, C), or of vectors (E, R), each of which is one row."""
    _require(tensor, shape)
    item = ggml_type(tensor.dtype).block_bytes
    whole = tensor.place.bytes().view(f"u{item}").reshape(shape)

    def read(expert: int, which: slice, first: int, last: int) -> np.ndarray:
        own = (whole[expert].T if turned else whole[expert])[which]
        own = own if len(shape) > 2 else own.reshape(1, -1)
        return np.ascontiguousarray(own[first:last]).view(np.uint8)

    return read


def _blocks(tensor: LazyTensor, scales: LazyTensor, shape: tuple[int, int, int]) -> Read:
    """Read rows of MXFP4 blocks (E, R, C/32) as a GGUF file has them."""
    _require(tensor, (*shape, _PACKED))
    _require(scales, shape)
    codes, powers = tensor.place.bytes().reshape(tensor.shape), scales.place.bytes().reshape(shape)

    def read(expert: int, which: slice, first: int, last: int) -> np.ndarray:
        own = codes[expert][which][first:last]
        values = np.stack([own & 15, own >> 4], -1).reshape(*own.shape[:-1], _BLOCK)
        packed = values[..., :_PACKED] | values[..., _PACKED:] << 4
        return np.concatenate([powers[expert][which][first:last, :, None], packed], -1)

    return read


def _require(tensor: LazyTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or (tensor.name.endswith(("_blocks", "_scales")) and tensor.dtype != "U8"):
        raise FormatError(f"{tensor.name} is {tensor.dtype} of the shape {tensor.shape}, {shape} is needed", "")


def _lazy(
    name: str, shape: tuple[int, ...], dtype: str, whole: LazyTensor, rows: Callable[[int, int], np.ndarray]
) -> LazyTensor:
    """Return one linear's matrix or bias, which `rows` reads."""
    kind = ggml_type(dtype)
    size = kind.num_bytes(shape)
    place = RowsPlace(whole.place.data, whole.place.start, size, kind.num_bytes(shape[-1:]), rows)

    def load() -> np.ndarray:
        return dequantize(torch.from_numpy(place.bytes().copy()), dtype, shape).numpy()

    return LazyTensor(name, shape, dtype, size, load, place)


def stack(tensors: Mapping[str, TensorLike]) -> dict[str, TensorLike]:
    """Return tensors by the names of Hugging Face's files, experts as stacked numbers; invert `unstack`."""
    found: dict[str, TensorLike] = {}
    members: dict[str, list[TensorLike]] = {}
    for name, tensor in tensors.items():
        match = _APART.fullmatch(name)
        if match is None:
            found[name] = tensor
            continue
        module, part, kind = match.groups()
        own = next(own for own, parts in _HALVES.items() if part in parts)
        stacked = f"{module}.{own}{'_bias' if kind == 'bias' else ''}"
        members.setdefault(stacked, []).append(tensor)
        found[stacked] = _Stacked(members[stacked], len(_HALVES[own]))
    return found


class _Stacked:
    """Matrices (R, C), or vectors (R,), of a layer's experts as one tensor, which is made when it is written.

    members: of one expert after another, each as many as `parts`, whose rows follow in turn.
    """

    def __init__(self, members: Sequence[TensorLike], parts: int) -> None:
        self._members, self._parts = members, parts

    @property
    def shape(self) -> tuple[int, ...]:
        rows, *columns = self._members[0].shape
        return (len(self._members) // self._parts, *columns, rows * self._parts)

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, np.float32)
        for number, member in enumerate(self._members):
            expert, part = divmod(number, self._parts)
            whole[expert, ..., part :: self._parts] = to_float32(member).T
        return whole
