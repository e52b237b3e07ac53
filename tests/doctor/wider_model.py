"""The same small model in a larger file: its feed-forward parts are made wider by zeros, and it computes the same."""

from pathlib import Path

import numpy as np

from settle.base.errors import UsageError
from settle.doctor.model_files import with_file
from settle.doctor.subject import ModelFile
from settle.formats import LazyTensor, beside, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.types import GGML

# what grows by rows (wide, width), and by columns (width, wide); Phi-3's "ffn_up" is both gates above one another
ROWS, COLUMNS = ("ffn_gate", "ffn_up"), ("ffn_down",)


def wider_model(healthy: ModelFile, folder: Path, num_bytes: int) -> ModelFile:
    """Return a model with a file of about `num_bytes` at least, written to `folder` where its own is smaller.

    Raises UsageError for a small model that cannot be made wider.
    """
    path = healthy.model.weights
    missing = num_bytes - path.stat().st_size
    if missing <= 0:
        return healthy
    file = read_gguf(path)
    wide = {name: tensor for name, tensor in file.tensors.items() if _part(name) in (*ROWS, *COLUMNS)}
    if not wide or any(GGML[tensor.dtype].quantized for tensor in wide.values()):
        raise UsageError(f"{path.name} is too small to be felt when it is read again", "choose a larger model")
    inner = next(tensor.shape[1] for name, tensor in wide.items() if _part(name) in COLUMNS)
    columns = sum(tensor.num_bytes // inner for tensor in wide.values())  # bytes of one, in all
    added = -(-missing // columns // 64) * 64
    entries = [_entry(name, tensor, inner, added if name in wide else 0) for name, tensor in file.tensors.items()]
    key = f"{file.metadata['general.architecture']}.feed_forward_length"
    planned = layout(file, entries, {key: inner + added})
    out = folder / "wider.gguf"
    with beside(out, planned.total) as part, part.open("wb") as written:
        written.write(planned.header)
        for entry in entries:
            tensor = file.tensors[entry.name]
            write_array(written, _widened(entry, tensor, inner))
            written.write(bytes(planned.padding(entry.num_bytes)))
    return with_file(healthy, out)


def _part(name: str) -> str:
    return name.split(".")[-2] if name.endswith(".weight") else ""


def _entry(name: str, tensor: LazyTensor, inner: int, added: int) -> Entry:
    shape = tensor.shape
    if added:
        rows = shape[0] // inner * (inner + added)
        shape = (rows, shape[1]) if _part(name) in ROWS else (shape[0], shape[1] + added)
    return Entry(name, shape, tensor.dtype, GGML[tensor.dtype].num_bytes(shape))


def _widened(entry: Entry, tensor: LazyTensor, inner: int) -> np.ndarray:
    """Return its bytes, uint8, with zeros behind each `inner` of its rows, or behind its columns."""
    raw = tensor.place.bytes().reshape(tensor.shape[0], -1)
    if entry.shape == tensor.shape:
        return raw.reshape(-1)
    if entry.shape[0] == tensor.shape[0]:
        return np.pad(raw, ((0, 0), (0, entry.num_bytes // entry.shape[0] - raw.shape[1]))).reshape(-1)
    matrices = raw.reshape(-1, inner, raw.shape[1])
    added = entry.shape[0] // len(matrices) - inner
    return np.pad(matrices, ((0, 0), (0, added), (0, 0))).reshape(-1)
