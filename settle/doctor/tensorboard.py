"""Scalars in TensorBoard's event files: TFRecord frames around protocol buffers, read without either library.

Layouts: tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto and tensor.proto.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from settle.base.errors import DataError

FRAME, CRC = 12, 4  # bytes: length with its checksum, checksum of the data
MOST_BYTES = 256 << 20  # of a file that is read
LONGEST_VARINT = 10  # bytes: seven bits each of 64
Value = int | bytes  # of a field: a number as it lies in the file, or what has a length


class Scalar(NamedTuple):
    tag: str
    step: int
    value: float


def scalars(path: Path) -> Iterator[Scalar]:
    """Yield the scalars of a file in order; a torn record ends it. Raises DataError for another kind of file."""
    with path.open("rb") as file:
        data = file.read(MOST_BYTES)
    at = 0
    while at + FRAME <= len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        record = data[at + FRAME : at + FRAME + size]
        if len(record) < size:
            return
        at += FRAME + size + CRC
        try:
            yield from _of_event(record)
        except (IndexError, OverflowError, struct.error, UnicodeDecodeError):
            raise DataError(f"{path.name} is not an event file of TensorBoard", "check the file") from None


def _of_event(record: bytes) -> Iterator[Scalar]:
    step, summary = 0, b""
    for field, value in _fields(record):
        if field == 2 and isinstance(value, int):
            step = value
        elif field == 5 and isinstance(value, bytes):
            summary = value
    for field, value in _fields(summary):
        if field == 1 and isinstance(value, bytes):
            tag, number = "", None
            for inner, held in _fields(value):
                if inner == 1 and isinstance(held, bytes):
                    tag = held.decode()
                elif inner == 2 and isinstance(held, int):
                    number = struct.unpack("<f", held.to_bytes(4, "little"))[0]
                elif inner == 8 and isinstance(held, bytes):
                    number = _of_tensor(held)
            if number is not None:
                yield Scalar(tag, step, number)


def _of_tensor(data: bytes) -> float | None:
    """Return the number in a tensor of one element; None for another tensor."""
    kinds = {1: "<f", 2: "<d"}  # DT_FLOAT, DT_DOUBLE
    kind = None
    for field, value in _fields(data):
        if field == 1 and isinstance(value, int):
            kind = kinds.get(value)
        elif field in (4, 5, 6) and isinstance(value, bytes) and kind and len(value) == struct.calcsize(kind):
            return float(struct.unpack(kind, value)[0])
        elif field in (5, 6) and isinstance(value, int) and kind:
            return float(struct.unpack(kind, value.to_bytes(struct.calcsize(kind), "little"))[0])
    return None


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """Yield number and value of each field of a message. Raises IndexError where it is torn."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            yield key >> 3, int.from_bytes(data[at : at + size], "little")
            at += size
        elif kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise IndexError
            yield key >> 3, data[at : at + size]
            at += size
        else:
            raise IndexError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of up to 64 bits and the place behind it. Raises IndexError for a longer one."""
    value = 0
    for shift in range(0, LONGEST_VARINT * 7, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError
