"""How much each input of each tensor matters: llama.cpp's importance matrix, read and written as its tools do it.

Two layouts: GGUF with a sum of squares and a count for each tensor ("NAME.in_sum2", "NAME.counts"; what `llama-imatrix`
writes today), and the older .dat. Facts: llama.cpp's tools/imatrix/imatrix.cpp.

Letters: E experts (or 1), C inputs of a tensor.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from settle.base.errors import FormatError
from settle.formats import Metadata, Weights, beside, write_array
from settle.formats.gguf import read_tensors
from settle.formats.gguf.header import MAGIC, MAX_NAME
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.metadata import texts

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512  # tokens: llama-imatrix counts in chunks of its context, and this is its default
_MOST_ENTRIES, _MOST_VALUES = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Importance:
    """means: tensor name in GGUF → mean square of each of its inputs, float32 (C,), or (E · C,) for experts.

    num_tokens: on how many they were measured; datasets: on what; counts: how often each expert of a tensor was used,
    (E,), where that is known.
    """

    means: Mapping[str, np.ndarray]
    num_tokens: int = 0
    datasets: Sequence[str] = field(default_factory=list)
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)


def read_imatrix(path: Path) -> Importance:
    """Read an importance file of either layout.

    An expert that was never used counts as llama.cpp has it: all inputs alike. Raises FormatError for a file that is
    neither, is cut short, or holds what is no mean of squares.
    """
    path = Path(path)
    try:
        with path.open("rb") as f:
            start = f.read(4)
    except OSError as e:
        raise FormatError(f"{path} cannot be read: {e.strerror}", "check the path and its permissions") from None
    with np.errstate(invalid="ignore", over="ignore"):  # whatever bytes say; looked at below
        importance = _read_gguf(path) if start == MAGIC else _read_dat(path)
    for name, values in importance.means.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise _unsound(path, f"{name} holds what is no mean of squares")
    return importance


def write_imatrix(path: Path, importance: Importance) -> Importance:
    """Write it as `llama-imatrix` would; a .dat when the name ends so. Beside and renamed.

    Returns what the file says: a sum and a count hold a mean up to its last bit, so that whoever wants the bytes that
    others get from the file quantizes with this. Raises FormatError for a name that is too long, ResourceError when the
    disk is full.
    """
    path = Path(path)
    if path.suffix == ".dat":
        _write_dat(path, importance)
    else:
        _write_gguf(path, importance)
    return read_imatrix(path)


def metadata_of(importance: Importance, name: str = "") -> Metadata:
    """Return the keys by which `llama-quantize` records in a file its importance. name: of the importance file."""
    values = {
        "file": name,
        "dataset": next(iter(importance.datasets), ""),
        "entries_count": len(importance.means),
        "chunks_count": -(-importance.num_tokens // CHUNK),
    }
    return {f"quantize.imatrix.{key}": value for key, value in values.items() if value or key == "entries_count"}


def _read_gguf(path: Path) -> Importance:
    file = read_tensors(path)
    if file.metadata.get("general.type") != "imatrix":
        raise _unsound(path, "it is a GGUF file of another kind")
    means, counts = {}, {}
    for key, tensor in file.tensors.items():
        if not key.endswith(SUMS):
            continue
        name = key.removesuffix(SUMS)
        counted = file.tensors.get(name + COUNTS)
        if counted is None or tensor.dtype != "F32" or counted.dtype != "F32":
            raise _unsound(path, f"{name} has sums and no counts, or not in F32")
        used = np.round(counted.load().reshape(-1, 1))
        sums = tensor.load().reshape(-1)
        if sums.size % used.size or not np.isfinite(used).all():
            raise _unsound(path, f"{name} has {sums.size} sums and {used.size} counts")
        rows = sums.reshape(used.size, -1)
        means[name] = np.where(used > 0, rows / np.maximum(used, 1), np.float32(1)).astype(np.float32).reshape(-1)
        counts[name] = used.reshape(-1).astype(np.int64)
    if not means:
        raise _unsound(path, "nothing is in it")
    datasets = texts(file.metadata, "imatrix.datasets")
    return Importance(means, max(int(c.max()) for c in counts.values()), datasets, counts)


def _write_gguf(path: Path, importance: Importance) -> None:
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(importance.means, key=str.encode):
        values = np.asarray(importance.means[name], np.float32).reshape(-1)
        counts = importance.counts.get(name, np.array([max(importance.num_tokens, 1)]))
        used = np.asarray(counts, np.float32).reshape(-1, 1)
        tensors[name + SUMS] = values.reshape(len(used), -1) * used
        tensors[name + COUNTS] = used
    if any(len(name.encode()) > MAX_NAME for name in tensors):
        raise FormatError(f"a name is too long for GGUF: {max(tensors, key=len)}", "write a .dat instead")
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": list(importance.datasets),
        "imatrix.chunk_count": -(-importance.num_tokens // CHUNK),
        "imatrix.chunk_size": CHUNK,
    }
    entries = [Entry(name, values.shape, "F32", values.nbytes) for name, values in tensors.items()]
    planned = layout(Weights({}, {}), entries, metadata)
    with beside(path, planned.total) as part, part.open("wb") as f:
        f.write(planned.header)
        for values in tensors.values():
            write_array(f, values)
            f.write(bytes(planned.padding(values.nbytes)))


def _read_dat(path: Path) -> Importance:
    """Entries of (name, calls, values that are sums over the calls), then the calls in all and the data's name."""
    raw = path.read_bytes()
    at = 0

    def number() -> int:
        nonlocal at
        if at + 4 > len(raw):
            raise _unsound(path, "it is cut short")
        at += 4
        return int(struct.unpack_from("<i", raw, at - 4)[0])

    def piece(size: int, what: str, most: int) -> bytes:
        nonlocal at
        if not 0 <= size <= min(most, len(raw) - at):
            raise _unsound(path, f"{what} takes {size} bytes, {len(raw) - at} are left")
        at += size
        return raw[at - size : at]

    entries = number()
    if not 1 <= entries <= _MOST_ENTRIES:
        raise _unsound(path, f"it says it has {entries} tensors")
    means = {}
    for _ in range(entries):
        name = piece(number(), "a name", 4096).decode("utf-8", "replace")
        calls = number()
        sums = np.frombuffer(piece(4 * number(), name, _MOST_VALUES), "<f4")
        means[name] = (sums / np.float32(calls) if calls > 0 else sums).astype(np.float32)
    calls = number() if at < len(raw) else 0
    data = piece(number(), "the data's name", 1 << 16).decode("utf-8", "replace") if at < len(raw) else ""
    return Importance(means, max(calls, 0) * CHUNK, [data] if data else [])


def _write_dat(path: Path, importance: Importance) -> None:
    calls = max(1, -(-importance.num_tokens // CHUNK))
    parts = [struct.pack("<i", len(importance.means))]
    for name in sorted(importance.means, key=str.encode):
        values = np.asarray(importance.means[name], np.float32).reshape(-1) * np.float32(calls)
        parts += [struct.pack("<i", len(name.encode())), name.encode(), struct.pack("<ii", calls, values.size)]
        parts.append(values.astype("<f4").tobytes())
    data = (importance.datasets[-1] if importance.datasets else "").encode()
    parts += [struct.pack("<ii", calls, len(data)), data]
    raw = b"".join(parts)
    with beside(path, len(raw)) as part:
        part.write_bytes(raw)


def _unsound(path: Path, what: str) -> FormatError:
    return FormatError(
        f"{path.name} is no importance file: {what}", "measure the importance again, or get another file"
    )
