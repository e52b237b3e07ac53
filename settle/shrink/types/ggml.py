"""llama.cpp's own quantizer, called in its library: a type's bytes are the same as in every file of llama.cpp.

The library `ggml-base` comes with the package `llama-cpp-py-sync` (extra `shrink`); of it the functions of `ggml.h` and
`ggml-quants.h` are called. A call gives the interpreter free, so threads of ours fill all cores.

Letters: R rows, C values of a row.
"""

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from settle import machine
from settle.base.errors import FormatError, UsageError
from settle.base.python_command import extra_command
from settle.formats import from_bfloat16, to_bfloat16
from settle.formats.gguf.types import GGML, block_id, block_of, is_float

PACKAGE = "llama_cpp_py_sync"
# values that are quantized in one call: a megabyte of float32, which stays in a core's cache
PIECE = 1 << 18
_LARGEST_FP16 = 65504.0


def num_bytes(kind: str, num_values: int) -> int:
    """Bytes of that many values, which the type's block must divide. Raises UsageError for an unknown type."""
    _, values, size = _block(kind)
    return num_values // values * size


def quantize(
    values: np.ndarray,
    kind: str,
    importance: np.ndarray | None = None,
    threads: int | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Rows in the blocks of a type.

    values: (R, C) float32. kind: ggml's name ("Q4_K", "IQ4_XS", "F16" …). importance: (C,) float32, how much an error
    counts at each place of a row. threads: as many as there are cores when None. out: (R, bytes of a row) uint8,
    contiguous, filled instead of a new one. Returns (R, bytes of a row) uint8. Raises UsageError for a type that
    needs an importance and has none or that the row does not fit, FormatError for NaN and infinity.
    """
    values = np.ascontiguousarray(values, np.float32)
    num_rows, row = values.shape
    check(kind, row, importance is not None)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != (row,):
        raise UsageError(f"the importance has the shape {weights.shape}, the rows have {row} values", "")
    if out is None:
        out = np.empty((num_rows, num_bytes(kind, row)), np.uint8)
    step = max(1, PIECE // row)
    code = code_of(kind)

    def piece(first: int) -> None:
        quantize_piece(values[first : first + step], code, weights, out[first : first + step])

    starts = range(0, num_rows, step)
    workers = min(threads or num_threads(), len(starts))
    if workers < 2:
        for first in starts:
            piece(first)
    else:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(piece, starts):
                pass
    return out


def dequantize(raw: np.ndarray, kind: str, out: np.ndarray) -> np.ndarray:
    """Blocks of a type as numbers. raw: uint8, contiguous; out: float32, contiguous, filled and returned."""
    _to_float(kind)(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize_piece(values: np.ndarray, code: int, weights: np.ndarray | None, out: np.ndarray) -> None:
    """`quantize` in this thread, unchecked but for the numbers. values: (R, C); code: ggml's number of the type."""
    num_rows, row = values.shape
    low, high = values.min(initial=0), values.max(initial=0)  # NaN comes through both
    if not np.isfinite(low) or not np.isfinite(high):
        raise FormatError("there are NaN or infinity", "get the file again, or export it again")
    pointer = None if weights is None else weights.ctypes.data
    written = _library().ggml_quantize_chunk(code, values.ctypes.data, out.ctypes.data, 0, num_rows, row, pointer)
    assert written == out.nbytes, (written, out.nbytes)
    # scales are fp16: only values beyond its range can make one infinite
    if max(-low, high) > _LARGEST_FP16 and not _library().ggml_validate_row_data(code, out.ctypes.data, out.nbytes):
        raise FormatError(f"there are values as large as {max(-low, high):.3g}", "choose another type, such as BF16")


def shorten_scales(values: np.ndarray, raw: np.ndarray, weights: np.ndarray | None, rounds: int = 2) -> None:
    """Give Q4_0 blocks scales that are exact in float16 and in bfloat16, and round their values to them anew.

    values: (R, C). raw: (R, bytes of a row) uint8, changed in place. weights: (C,), how much an error counts. Each of
    the rounds takes the scales of least squares, and then the nearest codes.
    """
    blocks, values = raw.reshape(-1, num_bytes("Q4_0", 32)), values.reshape(-1, 32)
    weights = np.ones_like(values) if weights is None else np.resize(weights.reshape(-1, 32), values.shape)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        for number in range(rounds + 1):
            shorter = from_bfloat16(to_bfloat16(scales)).astype("<f2").astype(np.float32)
            codes = np.clip(np.rint(np.nan_to_num(values / shorter)), -8, 7)
            if number < rounds:
                fitted = (weights * codes * values).sum(1) / (weights * codes * codes).sum(1)
                scales = np.where(np.isfinite(fitted), fitted, 0.0)[:, None].astype(np.float32)
    blocks[:, :2] = shorter.astype("<f2").view(np.uint8)
    shifted = (codes + 8).astype(np.uint8)
    blocks[:, 2:] = shifted[:, :16] | shifted[:, 16:] << 4


def check(kind: str, row: int, has_importance: bool) -> None:
    """Raise UsageError where rows of that many values cannot get the type."""
    _, values, _ = _block(kind)
    if row % values:
        fix = f"a row must be a multiple of {values} values; choose another type"
        raise UsageError(f"rows of {row} values cannot be {kind}", fix)
    if kind in GGML and GGML[kind].needs_importance and not has_importance:
        raise UsageError(f"{kind} needs to know how much each input matters", "give an importance file (imatrix)")
    if not is_float(kind) and not hasattr(_library(), _dequantizer(kind)):
        raise UsageError(f"{kind} is no type of weights", "choose another type, such as Q4_K")


def num_threads() -> int:
    """Hardware threads that we may run on: unlike the matrix units, the quantizer's arithmetic gains from each."""
    if machine.is_asked():
        return machine.num_threads()
    usable = machine.cores()
    return max(1, usable.allowed if usable.quota is None else min(usable.allowed, math.ceil(usable.quota)))


def code_of(kind: str) -> int:
    """Return ggml's number of a type. Raises UsageError for an unknown one."""
    try:
        return block_id(kind)
    except KeyError:
        raise UsageError(f"there is no type {kind!r}", "choose another, such as Q4_K or IQ4_XS") from None


def _block(kind: str) -> tuple[str, int, int]:
    """Return a type's name, and the values and bytes of its block. Raises UsageError for an unknown type."""
    if (block := block_of(code_of(kind))) is None:
        raise UsageError(f"there is no type {kind!r}", "choose another, such as Q4_K or IQ4_XS")
    return block


def _dequantizer(kind: str) -> str:
    """Return ggml's function for a type: K-quants keep their capital, the others have none."""
    name = kind.lower()
    return f"dequantize_row_{name[:-1]}K" if name.endswith("_k") else f"dequantize_row_{name}"


@cache
def _to_float(kind: str) -> Callable[[int, int, int], object]:
    name = {"F16": "ggml_fp16_to_fp32_row", "BF16": "ggml_bf16_to_fp32_row"}.get(kind) or _dequantizer(kind)
    if not hasattr(_library(), name):
        raise FormatError(f"the type {kind} is not read here", "use a file of another type")
    prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return prototype((name, _library()))


@cache
def _library() -> ctypes.CDLL:
    """ggml-base. The package itself is not imported: it would load llama.cpp whole."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise UsageError("shrinking needs llama-cpp-py-sync", extra_command("shrink"))
    folder = Path(package.origin).parent
    names = {"win32": ["ggml-base.dll"], "darwin": ["libggml-base.dylib", "libggml-base.0.dylib"]}
    for name in names.get(sys.platform, ["libggml-base.so", "libggml-base.so.0"]):
        if (folder / name).is_file():
            return _load(folder / name)
    raise UsageError(f"llama-cpp-py-sync has no ggml-base in {folder}", extra_command("shrink"))


def _load(path: Path) -> ctypes.CDLL:
    try:
        if sys.platform == "win32":
            os.add_dll_directory(str(path.parent))
        library = ctypes.CDLL(str(path))
    except OSError as e:
        raise UsageError(f"{path.name} cannot be loaded: {e}", extra_command("shrink")) from None
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    library.ggml_validate_row_data.restype = ctypes.c_bool
    return library
