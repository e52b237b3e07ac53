"""The same small model in a larger file: its feed-forward parts are made wider by zeros, and it computes the same."""

from pathlib import Path

import numpy as np

from settle.base.errors import UsageError
from settle.doctor.edited_file import with_file
from settle.doctor.subject import Subject
from settle.formats import LazyTensor, beside, write_array
from settle.formats.gguf import read_gguf
from settle.formats.gguf.layout import Entry, layout
from settle.formats.gguf.types import GGML

ROWS, COLUMNS = ("ffn_gate", "ffn_up"), ("ffn_down",)  # what grows by rows (wide, width), and by columns (width, wide)


def wider_model(healthy: Subject, folder: Path, num_bytes: int) -> Subject:
    """A model with a file of about `num_bytes` at least, written to `folder` where its own is smaller. Raises
    UsageError for a small model that cannot be made wider."""
    assert healthy.model is not None
    path = healthy.model.weights
    missing = num_bytes - path.stat().st_size
    if missing <= 0:
        return healthy
    file = read_gguf(path)
    wide = {name: tensor for name, tensor in file.tensors.items() if _part(name) in (*ROWS, *COLUMNS)}
    if not wide or any(GGML[tensor.dtype].quantized for tensor in wide.values()):
        raise UsageError(f"{path.name} is too small to be felt when it is read again", "choose a larger model")
    columns = sum(tensor.num_bytes // _inner(name, tensor) for name, tensor in wide.items())  # bytes of one, in all
    added = -(-missing // columns // 64) * 64
    entries = [_entry(name, tensor, added if name in wide else 0) for name, tensor in file.tensors.items()]
    key = f"{file.metadata['general.architecture']}.feed_forward_length"
    first = next(iter(wide))
    planned = layout(file, entries, {key: _inner(first, wide[first]) + added})
    out = folder / "wider.gguf"
    with beside(out, planned.total) as part, part.open("wb") as written:
        written.write(planned.header)
        for entry in entries:
            tensor = file.tensors[entry.name]
            write_array(written, _widened(entry, tensor))
            written.write(bytes(planned.padding(entry.num_bytes)))
    return with_file(healthy, out)


def _part(name: str) -> str:
    return name.split(".")[-2] if name.endswith(".weight") else ""


def _inner(name: str, tensor: LazyTensor) -> int:
    return tensor.shape[0 if _part(name) in ROWS else 1]


def _entry(name: str, tensor: LazyTensor, added: int) -> Entry:
    shape = tensor.shape
    if added:
        shape = (shape[0] + added, shape[1]) if _part(name) in ROWS else (shape[0], shape[1] + added)
    return Entry(name, shape, tensor.dtype, GGML[tensor.dtype].num_bytes(shape))


def _widened(entry: Entry, tensor: LazyTensor) -> np.ndarray:
    """Its bytes, uint8, with zeros behind its rows or its columns."""
    rows = tensor.shape[0]
    raw = tensor.place.bytes().reshape(rows, -1)
    if entry.shape == tensor.shape:
        return raw.reshape(-1)
    wide = np.zeros((entry.shape[0], entry.num_bytes // entry.shape[0]), np.uint8)
    wide[:rows, : raw.shape[1]] = raw
    return wide.reshape(-1)
