"""A GGUF file in other types: the one loop that streams a model through the quantizer.

The file is cut into pieces of rows. Threads read a piece, quantize it and return it; the pieces are written in the
file's order, with a few of them under way. So memory does not depend on the model at all, and no core waits at a
tensor's end. The bytes are those of llama.cpp's `llama_model_quantize`: rows are quantized one by one there too.

Letters: E experts (or 1), R rows, C values of a row.
"""

import math
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.errors import FormatError, UsageError
from settle.base.words.amounts import amount
from settle.formats import LazyTensor, Metadata, Weights, beside, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, Layout, layout
from settle.formats.gguf.types import GGML, block_id, block_of, ggml_type
from settle.shrink.types import ggml
from settle.shrink.types.imatrix import Importance
from settle.shrink.types.mixes import MIXES, TypeChoice, mix_types

QUANTIZATION_VERSION = 2  # ggml.h: GGML_QNT_VERSION
_SPLIT = ("split.no", "split.count", "split.tensors.count")
_TOKEN_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")
_COPIED = 1 << 20  # bytes of a piece that is only copied


def quantize_gguf(
    source: Path,
    target: Path,
    kinds: Mapping[str, str],
    importance: Importance | None = None,
    mix: str | None = None,
    metadata: Metadata | None = None,
    progress: Callable[[int, int], None] | None = None,
    requantize: bool = False,
    threads: int | None = None,
    file: Weights | None = None,
    short_scales: bool = False,
) -> Path:
    """Write the model of one GGUF file to another, in other types. Returns `target`.

    kinds: tensor name → ggml's type; a tensor that is not named stays as it is. importance: how much each input of a
    tensor matters. mix: the name under which others show the file; by the most frequent type when None.
    metadata: keys to set, or to drop with None. progress: called with (bytes read, bytes in all). requantize: take a
    source that is quantized already. file: the source, where it was read already. short_scales: those of Q4_0 are
    exact in bfloat16 too. The target is written beside and
    renamed; nothing is left after an error.

    Raises UsageError for a quantized source, a name that is not in the file or a type that does not fit; FormatError
    for a source that is not sound; ResourceError when the disk is too small, before the start where it can be known.
    """
    file = read_gguf(Path(source)) if file is None else file
    if Path(target).exists() and Path(target).samefile(source):
        raise UsageError(f"{target} is the file that is read", "choose another place with --out")
    tensors = [file.tensors[name] for name in sorted(file.tensors, key=order)]
    chosen = _types_by_tensor(file, kinds, requantize)
    weights = {t.name: w for t in tensors if (w := _importance_of(t, chosen[t.name], importance)) is not None}
    for tensor in tensors:
        if chosen[tensor.name] != tensor.dtype:
            _check(tensor, chosen[tensor.name], tensor.name in weights)
    planned = _planned(file, chosen, mix, metadata)
    pieces = (p for t in tensors for p in _pieces(t, chosen[t.name], weights.get(t.name), short_scales))
    streamed = _streamed(pieces, threads or ggml.num_threads())
    with beside(Path(target), planned.total) as path, closing(streamed), path.open("wb") as f:
        f.write(planned.header)
        read, total = 0, sum(t.num_bytes for t in tensors)
        for tensor, done, num_read, out in streamed:
            write_array(f, out)
            read += num_read
            if done:
                f.write(bytes(planned.padding(_num_bytes(tensor, chosen[tensor.name]))))
            if progress is not None:
                progress(read, total)
    return Path(target)


def file_bytes(
    file: Weights,
    kinds: Mapping[str, str],
    mix: str | None = None,
    metadata: Metadata | None = None,
) -> int:
    """Return the exact size of what `quantize_gguf` would write, with header and padding."""
    chosen = {name: kinds.get(name, t.dtype) for name, t in file.tensors.items()}
    return _planned(file, chosen, mix, metadata).total


def order(name: str) -> tuple[int, bytes]:
    """llama.cpp's order of tensors: what is in no block first, then block by block, by name within."""
    block = re.match(r"blk\.(\d+)", name)
    return (int(block[1]) if block else -1), name.encode()


def _planned(file: Weights, chosen: Mapping[str, str], mix: str | None, metadata: Metadata | None) -> Layout:
    """Lay out the header, and the size of the whole. chosen: the type of every tensor."""
    entries = [
        Entry(name, file.tensors[name].shape, chosen[name], _num_bytes(file.tensors[name], chosen[name]))
        for name in sorted(file.tensors, key=order)
    ]
    changes = {
        "general.quantization_version": QUANTIZATION_VERSION,
        "general.file_type": MIXES[mix] if mix else guessed_file_type(chosen, file),
        **dict.fromkeys(_SPLIT),
        **(metadata or {}),
    }
    return layout(file, entries, changes)


def guessed_file_type(chosen: Mapping[str, str], file: Weights) -> int:
    """Return the recipe whose base type holds the most values: the name under which others show the file."""
    held: Counter[str] = Counter()
    for name, kind in chosen.items():
        held[kind] += math.prod(file.tensors[name].shape)
    kind = held.most_common(1)[0][0]
    return MIXES.get(f"{kind}_M", MIXES.get(kind, 1024))  # 1024: llama.cpp's "guessed"


def quantized_already(file: Weights) -> dict[str, int]:
    """How many tensors of each quantized type a file has; empty for one of plain floats."""
    kinds = Counter(t.dtype for t in file.tensors.values())
    return {k: n for k, n in kinds.items() if (block := block_of(block_id(k))) is not None and block[1] > 1}


def _types_by_tensor(file: Weights, kinds: Mapping[str, str], requantize: bool) -> dict[str, str]:
    """Return the type of every tensor, once the request makes sense."""
    parts = file.metadata.get("split.count", 1)
    if isinstance(parts, int) and parts > 1:
        raise UsageError(
            f"the file is one of {parts} parts of a model", "join them first, with `llama-gguf-split --merge`"
        )
    stray = sorted(set(kinds) - set(file.tensors))
    if stray:
        raise UsageError(f"the file has no tensor {stray[0]}", "choose the types for this file")
    chosen = {name: kinds.get(name, tensor.dtype) for name, tensor in file.tensors.items()}
    again = [t for t in file.tensors.values() if t.dtype in quantized_already(file) and chosen[t.name] != t.dtype]
    if again and not requantize:
        bits = 8 * sum(t.num_bytes for t in again) / sum(math.prod(t.shape) for t in again)
        kind = Counter(t.dtype for t in again).most_common(1)[0][0]
        raise UsageError(
            f"{len(again)} tensors are quantized already (most of them {kind}, {bits:.1f} bits a weight): what was "
            "rounded away is lost, and rounding again adds to it",
            "start from the model in F16 or BF16; or insist with --requantize",
        )
    return chosen


def _check(tensor: LazyTensor, kind: str, has_importance: bool) -> None:
    try:
        ggml.check(kind, tensor.shape[-1], has_importance)
    except UsageError as e:
        raise UsageError(f"{tensor.name}: {e.what}", e.fix) from None
    if kind != tensor.dtype and re.fullmatch(r"I\d+|F64", tensor.dtype):
        raise UsageError(f"{tensor.name} holds {tensor.dtype}, which is not quantized", "leave it as it is")


def _importance_of(tensor: LazyTensor, kind: str, importance: Importance | None) -> np.ndarray | None:
    """(E, C) float32 for a tensor that is going to be quantized. None where nothing is known of it."""
    means = None if importance is None or kind == tensor.dtype else importance.means.get(tensor.name)
    if means is None:
        return None
    num_experts = tensor.shape[-3] if len(tensor.shape) > 2 else 1
    if means.size != num_experts * tensor.shape[-1]:
        if tensor.name in _TOKEN_TABLES:
            return None  # a table of tokens is looked up, so most files have no inputs for it
        raise UsageError(
            f"the importance of {tensor.name} has {means.size} values, the tensor takes "
            f"{num_experts * tensor.shape[-1]} inputs",
            "use the importance that was measured on this model",
        )
    if not np.isfinite(means).all():
        raise UsageError(f"the importance of {tensor.name} holds NaN or infinity", "measure it again")
    return np.ascontiguousarray(means, np.float32).reshape(num_experts, tensor.shape[-1])


def _num_bytes(tensor: LazyTensor, kind: str) -> int:
    return tensor.num_bytes if kind == tensor.dtype else ggml.num_bytes(kind, math.prod(tensor.shape))


@dataclass(frozen=True)
class _Piece:
    """Bytes [first, last) of a tensor in the source, of one expert when it is quantized.

    kind: None when they are only copied. is_last: of its tensor. short_scales: as of `quantize_gguf`.
    """

    tensor: LazyTensor
    first: int
    last: int
    kind: str | None
    weights: np.ndarray | None
    is_last: bool
    short_scales: bool = False


def _streamed(
    pieces: Iterator[_Piece], threads: int
) -> Generator[tuple[LazyTensor, bool, int, np.ndarray], None, None]:
    """(tensor, whether this is its end, bytes read, bytes to write) in the file's order."""
    under_way: deque[tuple[_Piece, Future[np.ndarray]]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for piece in pieces:
            under_way.append((piece, pool.submit(_encode, piece)))
            if len(under_way) > 4 * threads:
                yield _finished(*under_way.popleft())
        while under_way:
            yield _finished(*under_way.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(piece: _Piece, encoded: "Future[np.ndarray]") -> tuple[LazyTensor, bool, int, np.ndarray]:
    try:
        out = encoded.result()
    except FormatError as e:
        raise FormatError(f"{piece.tensor.name}: {e.what}", e.fix) from None
    return piece.tensor, piece.is_last, piece.last - piece.first, out


def _pieces(tensor: LazyTensor, kind: str, weights: np.ndarray | None, short_scales: bool) -> Iterator[_Piece]:
    if kind == tensor.dtype:
        for first in range(0, tensor.num_bytes, _COPIED):
            last = min(first + _COPIED, tensor.num_bytes)
            yield _Piece(tensor, first, last, None, None, last == tensor.num_bytes)
        return
    row_bytes = ggml.num_bytes(tensor.dtype, tensor.shape[-1])
    num_rows = tensor.num_bytes // row_bytes
    # experts have an importance each, so no piece spans two of them
    per_expert = tensor.shape[-2] if len(tensor.shape) > 2 else num_rows
    step = max(1, ggml.PIECE // tensor.shape[-1])
    for expert in range(num_rows // per_expert):
        for row in range(0, per_expert, step):
            first = expert * per_expert + row
            last = first + min(step, per_expert - row)
            own = None if weights is None else weights[expert % len(weights)]
            is_last = last == num_rows
            yield _Piece(tensor, first * row_bytes, last * row_bytes, kind, own, is_last, short_scales)


_scratch = threading.local()


def _encode(piece: _Piece) -> np.ndarray:
    """Return the bytes of a piece in its new type. In a thread of the pool."""
    raw = piece.tensor.place.bytes(piece.first, piece.last)
    if piece.kind is None:
        return _sound(raw.copy(), piece.tensor.dtype)
    row = piece.tensor.shape[-1]
    num_rows = len(raw) // ggml.num_bytes(piece.tensor.dtype, row)
    values = _numbers(raw, piece.tensor.dtype, num_rows * row).reshape(num_rows, row)
    out = np.empty((num_rows, ggml.num_bytes(piece.kind, row)), np.uint8)
    ggml.quantize_piece(values, ggml.code_of(piece.kind), piece.weights, out)
    if piece.short_scales and piece.kind == "Q4_0":
        ggml.shorten_scales(values, out, piece.weights)
    piece.tensor.place.forget(piece.first, piece.last)
    return out


def _sound(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Check that what is only copied holds no NaN and no infinity either."""
    top = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}.get(dtype)
    if top is not None and (raw.view(top[0]) & top[1] == top[1]).any():
        raise FormatError("there are NaN or infinity", "get the file again, or export it again")
    return raw


def _numbers(raw: np.ndarray, dtype: str, num_values: int) -> np.ndarray:
    """float32 of a piece; in a buffer that the thread keeps."""
    if dtype == "F32":
        return raw.view("<f4")
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.size < num_values:
        buffer = _scratch.buffer = np.empty(num_values, np.float32)
    return ggml.dequantize(raw, dtype, buffer[:num_values])


@dataclass(frozen=True)
class Fallback:
    """What a mix really gives a model whose rows are no multiple of 256, and what is better.

    A K-quant that does not fit is replaced by a larger type, so a file can become larger than one of a plainer type
    that is more precise. That is known before anything is written.

    tensors: those that fell back. num_bytes: size of the file; promised: its size without the fallback.
    better: a mix that is more precise in a file that is no larger, and the bytes of that file; None, 0 without one.
    """

    mix: str
    tensors: Mapping[str, TypeChoice]
    num_tensors: int
    num_bytes: int
    promised: int
    better: str | None
    better_bytes: int

    def __str__(self) -> str:
        """One sentence, with numbers."""
        ways = Counter(f"{c.wanted} → {c.kind}" for c in self.tensors.values())
        kinds = ", ".join(f"{number} × {way}" for way, number in ways.most_common())
        text = (
            f"{self.mix}: rows of {len(self.tensors)} of {self.num_tensors} tensors are no whole number of blocks "
            f"({kinds}), so the file is {amount(self.num_bytes - self.promised, 'bytes')} larger: "
            f"{amount(self.num_bytes, 'bytes')}"
        )
        if self.better is not None:
            text += f"; {self.better} is more precise and has {amount(self.better_bytes, 'bytes')}"
        for kind, other in self.more_precise.items():
            text += f"; {other} in place of {kind} is more precise in as many bytes"
        return text

    @property
    def more_precise(self) -> dict[str, str]:
        """Types that tensors fell back to → the most precise one of as many bytes, where that is another."""
        best = {}
        for kind in sorted({choice.kind for choice in self.tensors.values()}):
            own = ggml_type(kind)
            same = [row for row in GGML.values() if (row.block, row.block_bytes) == (own.block, own.block_bytes)]
            best[kind] = min(same, key=lambda row: math.inf if row.error is None else row.error).name
        return {kind: other for kind, other in best.items() if other != kind}


def find_fallback(file: Weights, mix: str, has_importance: bool = False) -> Fallback | None:
    """Which tensors of a file fall back under a mix, and what is better; None when none does."""
    chosen = mix_types(file, mix, has_importance)
    tensors = {name: choice for name, choice in chosen.items() if choice.fell_back}
    if not tensors:
        return None
    size = file_bytes(file, {name: choice.kind for name, choice in chosen.items()})
    saved = sum(c.num_bytes - _bytes_if_fitting(file, name, c.wanted) for name, c in tensors.items())
    better, better_bytes = _better_mix(file, chosen, size, has_importance)
    return Fallback(mix, tensors, len(chosen), size, round(size - saved), better, better_bytes)


def expected_error(file: Weights, chosen: Mapping[str, TypeChoice]) -> float:
    """Return the share of the squares of all weights that rounding to these types loses.

    It holds were they normally distributed and alike: it orders mixes by how precise they are.
    """
    sizes = {name: math.prod(file.tensors[name].shape) for name in chosen}
    errors = {name: row.error or 0.0 for name, row in GGML.items()}
    return sum(errors.get(c.kind, 0.0) * sizes[name] for name, c in chosen.items()) / sum(sizes.values())


def _better_mix(
    file: Weights, chosen: Mapping[str, TypeChoice], size: int, has_importance: bool
) -> tuple[str | None, int]:
    """Return the most precise mix of those that are more precise and no larger; the smaller one of two alike."""
    no_larger: list[tuple[float, int, str]] = []
    for mix in MIXES:
        other = mix_types(file, mix, has_importance)
        num_bytes = file_bytes(file, {name: choice.kind for name, choice in other.items()})
        if num_bytes <= size:
            no_larger.append((expected_error(file, other), num_bytes, mix))
    error, num_bytes, mix = min(no_larger)
    return (mix, num_bytes) if error < expected_error(file, chosen) else (None, 0)


def _bytes_if_fitting(file: Weights, name: str, kind: str) -> float:
    """Bytes of a tensor if its rows were a whole number of blocks."""
    return math.prod(file.tensors[name].shape) * ggml_type(kind).bits / 8
