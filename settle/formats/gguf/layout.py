"""A GGUF file written from another one: its metadata copied unread, its tensors in other types.

`export_gguf` writes a model; this writes a file. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from settle.base.errors import FormatError
from settle.formats import Weights
from settle.formats.gguf.header import ARRAY, DEFAULT_ALIGNMENT, MAGIC, MAX_NAME, STRING
from settle.formats.gguf.metadata import whole
from settle.formats.gguf.types import block_id

VERSION = 3
_BOOL, _UINT32, _INT64, _FLOAT64 = 7, 4, 11, 12
_ITEMS = {"u1": 0, "i1": 1, "u2": 2, "i2": 3, "u4": 4, "i4": 5, "f4": 6, "b1": 7, "u8": 10, "i8": 11, "f8": 12}


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. shape: outermost first; kind: ggml's name of the type."""

    name: str
    shape: tuple[int, ...]
    kind: str
    num_bytes: int


@dataclass(frozen=True)
class Layout:
    """header: the file's first bytes, up to the first tensor; total: bytes of the whole file."""

    header: bytes
    alignment: int
    total: int

    def padding(self, num_bytes: int) -> int:
        """Zeros after that many bytes of a tensor."""
        return -num_bytes % self.alignment


def layout(source: Weights, entries: Sequence[Entry], changes: Mapping[str, object]) -> Layout:
    """Lay out a file with the metadata of `source` and these tensors.

    changes: keys to set (str, bool, int, float, a list of str, or numbers as a numpy array whose dtype is theirs in the
    file), or to drop with None. Set keys go to the end, in this order; the others stay as they are, byte for byte.
    Raises FormatError for a value GGUF cannot hold.
    """
    keys = [place.bytes().tobytes() for key, place in source.places.items() if key not in changes]
    keys += [_key(key, value) for key, value in changes.items() if value is not None]
    key = "general.alignment"
    alignment = whole({key: DEFAULT_ALIGNMENT, **source.metadata, **changes}, key)
    described, at = [], 0
    for entry in entries:
        described.append(_description(entry, at))
        at += entry.num_bytes + -entry.num_bytes % alignment
    start = MAGIC + struct.pack("<IQQ", VERSION, len(entries), len(keys))
    header = b"".join([start, *keys, *described])
    header += bytes(-len(header) % alignment)
    return Layout(header, alignment, len(header) + at)


def dimensions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape, outermost first, without outermost dimensions of one: ggml writes only those that it counts."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _description(entry: Entry, offset: int) -> bytes:
    name = entry.name.encode()
    assert 0 < len(name) <= MAX_NAME and 0 not in entry.shape
    dims = tuple(reversed(dimensions(entry.shape)))
    code = block_id(entry.kind)
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def _key(key: str, value: object) -> bytes:
    return _text(key.encode()) + _value(key, value)


def _value(key: str, value: object) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        small = 0 <= value < 1 << 32
        return struct.pack("<II", _UINT32, value) if small else struct.pack("<Iq", _INT64, value)
    if isinstance(value, float):
        return struct.pack("<Id", _FLOAT64, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value.encode())
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.str[1:] in _ITEMS:
        item = _ITEMS[value.dtype.str[1:]]
        return struct.pack("<IIQ", ARRAY, item, len(value)) + value.astype(value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(_text(v.encode()) for v in value)
    raise FormatError(f"{key} cannot be {value!r} in a GGUF file", "give a text, a number, yes or no, or texts")


def _text(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw
