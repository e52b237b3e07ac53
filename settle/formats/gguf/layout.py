"""The first bytes of a GGUF file that is written: its metadata, and where its tensors will lie.

A file made from another one takes over its metadata unread. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from settle.base.errors import FormatError, UsageError
from settle.formats import Metadata, Weights
from settle.formats.gguf.header import ARRAY, DEFAULT_ALIGNMENT, MAGIC, MAX_NAME, SCALARS, STRING
from settle.formats.gguf.metadata import whole
from settle.formats.gguf.types import block_id

VERSION = 3
_CODES = {np.dtype(code).str[1:]: number for number, code in SCALARS.items()}
_LISTED = {"b": np.bool_, "i": np.int32, "f": np.float32}  # numbers in a list, by numpy's kind


@dataclass(frozen=True)
class Entry:
    """A tensor to be written. shape: outermost first; kind: ggml's name of the type."""

    name: str
    shape: tuple[int, ...]
    kind: str
    num_bytes: int


@dataclass(frozen=True)
class Pieces:
    """A tensor to be written, in pieces along its first axis that are made one at a time."""

    entry: Entry
    pieces: Sequence[Callable[[], np.ndarray]]


@dataclass(frozen=True)
class Layout:
    """header: the file's first bytes, up to the first tensor; total: bytes of the whole file."""

    header: bytes
    alignment: int
    total: int

    def padding(self, num_bytes: int) -> int:
        """Return how many zeros follow that many bytes of a tensor."""
        return -num_bytes % self.alignment


def layout(source: Weights, entries: Sequence[Entry], changes: Metadata) -> Layout:
    """Lay out a file with the metadata of `source` and these tensors.

    changes: keys to set (see `stored`), or to drop with None. Set keys go to the end, in this order; the others stay as
    they are, byte for byte. Of shapes ggml writes only the dimensions that it counts: outermost ones of one are left
    out. Raises FormatError for a value that GGUF has no type for.
    """
    return lay_out(source, [replace(entry, shape=_counted(entry.shape)) for entry in entries], changes)


def lay_out(source: Weights, entries: Sequence[Entry], changes: Metadata, same_types: bool = False) -> Layout:
    """Lay out a file as `layout` does, with shapes as they are. same_types: existing keys keep theirs."""
    keys = [place.bytes().tobytes() for key, place in source.places.items() if key not in changes]
    for key, value in changes.items():
        if value is not None:
            kind = _type_in(source, key) if same_types else None
            keys.append(stored(key, np.float32(value) if same_types and isinstance(value, float) else value, kind))
    key = "general.alignment"
    alignment = whole({key: DEFAULT_ALIGNMENT, **source.metadata, **changes}, key)
    described, at = [], 0
    for entry in entries:
        described.append(_description(entry, at))
        at += entry.num_bytes + -entry.num_bytes % alignment
    header = b"".join([MAGIC, struct.pack("<IQQ", VERSION, len(entries), len(keys)), *keys, *described])
    header += bytes(-len(header) % alignment)
    return Layout(header, alignment, len(header) + at)


def stored(key: str, value: object, kind: int | None = None) -> bytes:
    """Return a key with its value as they lie in a file.

    A number of numpy, or an array of them, keeps its type. Other whole numbers take 32 bits where they fit, fractions
    64, and both 32 in a list. kind: the format's number of the type instead. Raises FormatError for a value that GGUF
    has no type for, UsageError for one that its `kind` cannot hold.
    """
    try:
        return _text(key) + _value(str(value) if kind == STRING else value, kind)
    except (struct.error, KeyError, ValueError, OverflowError):
        error = FormatError if kind is None else UsageError
        fix = "give text, a number that the key's type holds, or a list of them"
        raise error(f"{key} cannot be {value!r} in a GGUF file", fix) from None


def _value(value: object, kind: int | None) -> bytes:
    if kind in SCALARS:
        return struct.pack(f"<I{SCALARS[kind]}", kind, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_text, value))
    number = np.asarray(value)
    if isinstance(value, list | tuple):
        number = number.astype(_LISTED[number.dtype.kind])
    elif type(value) is int and 0 <= value < 1 << 32:
        number = number.astype(np.uint32)
    code = _CODES[number.dtype.str[1:]]
    head = struct.pack("<IIQ", ARRAY, code, len(number)) if number.ndim else struct.pack("<I", code)
    return head + number.astype(number.dtype.newbyteorder("<")).tobytes()


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _type_in(source: Weights, key: str) -> int | None:
    """Return the format's number of the type that a key has in a file; None where it has none, or holds a list."""
    if key not in source.places:
        return None
    at = 8 + len(key.encode())
    kind = int.from_bytes(source.places[key].bytes(at, at + 4).tobytes(), "little")
    return None if kind == ARRAY else kind


def _counted(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without outermost dimensions of one."""
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _description(entry: Entry, offset: int) -> bytes:
    assert 0 < len(entry.name.encode()) <= MAX_NAME and 0 not in entry.shape
    dims = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
    return _text(entry.name) + dims + struct.pack("<IQ", block_id(entry.kind), offset)
