"""TensorBoard's event files, written without its library, which brings a server and three more packages.

Layouts: tensorflow/core/lib/io/record_writer.h, core/util/event.proto, core/framework/summary.proto; CRC-32C: RFC 3720,
section 12.1.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from settle.base.run import Run
from settle.jobs.exporters import Exporter
from settle.jobs.exporters._history import history

CASTAGNOLI = 0x82F63B78  # the polynomial, its bits reversed
MASK_DELTA = 0xA282EAD8  # TensorFlow stores checksums rotated and with this added
NUMBER, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types of protocol buffers


class TensorBoard(Exporter):
    """A folder for `tensorboard --logdir FOLDER`."""

    def write(self, run: Run, folder: Path) -> Path:
        place = folder / run.name
        place.mkdir(parents=True, exist_ok=True)
        with (place / f"events.out.tfevents.{run.path.name}").open("wb") as file:
            for event in _events(run):
                file.write(_record(event))
        return place


def _events(run: Run) -> Iterator[bytes]:
    """Messages of type Event: the version of the file, then one a figure."""
    is_first = True
    for time, step, figures, _ in history(run):
        if is_first:
            yield _field(1, DOUBLE, struct.pack("<d", time)) + _field(3, BYTES, b"brain.Event:2")
            is_first = False
        values = b"".join(
            _field(1, BYTES, _field(1, BYTES, tag.encode()) + _field(2, FLOAT, struct.pack("<f", value)))
            for tag, value in figures.items()
        )
        head = _field(1, DOUBLE, struct.pack("<d", time)) + _field(2, NUMBER, _varint(step))
        yield head + _field(5, BYTES, values)


def _field(number: int, kind: int, data: bytes) -> bytes:
    size = _varint(len(data)) if kind == BYTES else b""
    return _varint(number << 3 | kind) + size + data


def _varint(value: int) -> bytes:
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
