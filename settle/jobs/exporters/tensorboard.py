"""TensorBoard's event files: TFRecord frames around protocol buffers, written and read without either library.

Layouts: tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto and tensor.proto;
CRC-32C: RFC 3720, section 12.1.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from settle.base.errors import DataError
from settle.base.run import Run
from settle.jobs.exporters import Exporter, history

CASTAGNOLI = 0x82F63B78  # the polynomial, its bits reversed
MASK_DELTA = 0xA282EAD8  # TensorFlow stores checksums rotated and with this added
NUMBER, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types of protocol buffers
FRAME, CRC = 12, 4  # bytes: length with its checksum, checksum of the data
MOST_BYTES = 256 << 20  # of a file that is read
LONGEST_VARINT = 10  # bytes: seven bits each of 64


class TensorBoard(Exporter):
    """A folder for `tensorboard --logdir FOLDER`."""

    def write(self, run: Run, folder: Path) -> Path:
        place = folder / run.name
        place.mkdir(parents=True, exist_ok=True)
        events = (Figures(time, step, figures) for time, step, figures, _ in history(run))
        write_scalars(place / f"events.out.tfevents.{run.path.name}", events)
        return place


class Figures(NamedTuple):
    """Scalars of one step. time: seconds since 1970."""

    time: float
    step: int
    values: Mapping[str, float]


class Scalar(NamedTuple):
    tag: str
    step: int
    value: float


def write_scalars(path: Path, figures: Iterable[Figures]) -> None:
    """Write an event file: its version, then an event for the figures of each step."""
    with path.open("wb") as file:
        for number, (time, step, values) in enumerate(figures):
            at = _field(1, DOUBLE, struct.pack("<d", time))
            if number == 0:
                file.write(_record(at + _field(3, BYTES, b"brain.Event:2")))
            summary = b"".join(
                _field(1, BYTES, _field(1, BYTES, tag.encode()) + _field(2, FLOAT, struct.pack("<f", value)))
                for tag, value in values.items()
            )
            file.write(_record(at + _field(2, NUMBER, _encoded(step)) + _field(5, BYTES, summary)))


def scalars(path: Path) -> Iterator[Scalar]:
    """Yield the scalars of a file in order; a record that a crash tore ends it. Raises DataError for another file."""
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
    numbers, texts = _message(record)
    step = numbers.get(2, [0])[-1]
    for value in _message(texts.get(5, [b""])[-1])[1].get(1, ()):
        found, named = _message(value)
        number = struct.unpack("<f", found[2][-1].to_bytes(4, "little"))[0] if 2 in found else None
        if 8 in named:
            number = _of_tensor(named[8][-1])
        if number is not None:
            yield Scalar(named.get(1, [b""])[-1].decode(), step, number)


def _of_tensor(data: bytes) -> float | None:
    """Return the number in a tensor of one; None for another."""
    numbers, texts = _message(data)
    kind = {1: "<f", 2: "<d"}.get(numbers.get(1, [0])[-1])  # DT_FLOAT, DT_DOUBLE
    if kind is None:
        return None
    size = struct.calcsize(kind)
    packed = [text for field in (4, 5, 6) for text in texts.get(field, ()) if len(text) == size]
    packed += [number.to_bytes(size, "little") for field in (5, 6) for number in numbers.get(field, ())]
    return float(struct.unpack(kind, packed[0])[0]) if packed else None


def _message(data: bytes) -> tuple[dict[int, list[int]], dict[int, list[bytes]]]:
    """Return the numbers of a message by field, as they lie in the file, and what has a length.

    Raises IndexError where it is torn.
    """
    numbers: dict[int, list[int]] = {}
    texts: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == NUMBER:
            value, at = _varint(data, at)
            numbers.setdefault(field, []).append(value)
        elif kind in (DOUBLE, FLOAT):
            size = 8 if kind == DOUBLE else 4
            numbers.setdefault(field, []).append(int.from_bytes(data[at : at + size], "little"))
            at += size
        elif kind == BYTES:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise IndexError
            texts.setdefault(field, []).append(data[at : at + size])
            at += size
        else:
            raise IndexError
    return numbers, texts


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, and the place behind it. Raises IndexError for a longer one."""
    value = 0
    for shift in range(0, LONGEST_VARINT * 7, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise IndexError


def _field(number: int, kind: int, data: bytes) -> bytes:
    size = _encoded(len(data)) if kind == BYTES else b""
    return _encoded(number << 3 | kind) + size + data


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _record(data: bytes) -> bytes:
    size = struct.pack("<Q", len(data))
    return size + _checksum(size) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF)


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()
