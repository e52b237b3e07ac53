"""A GGUF file with other metadata: the header is written anew, the weights are copied as they are."""

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path

from settle.base.errors import UsageError
from settle.formats import beside, map_file
from settle.formats.gguf.header import ARRAY, DEFAULT_ALIGNMENT, SCALARS, STRING, read_header, weights_begin

COPIED = 16 << 20  # bytes at a time
_BOOL, _FLOAT, _INT, _COUNT = 7, 6, 5, 4


def write_edited(path: Path, out: Path, changes: Mapping[str, object]) -> Path:
    """Write the file at `path` to `out`, beside and renamed, with `changes` of its metadata.

    changes: a value by key; None leaves the key out. An existing key keeps its type. Raises FormatError for a file that
    is not sound, UsageError for a value that GGUF has no type for, ResourceError when the disk is full.
    """
    data = map_file(path)
    header = read_header(data, path.name)
    keys = [
        bytes(data[first:last]) for key, (first, last) in header.places.items() if key not in changes
    ]  # as they lie in the file
    for key, value in changes.items():
        if value is not None:
            place = header.places.get(key)
            keys.append(_encoded(key, value, _type_at(data, place[0], key) if place else None))
    after_keys = max((last for _, last in header.places.values()), default=24)
    infos, begin = weights_begin(data, path.name, after_keys, len(header.tensors), _alignment(header.metadata))
    alignment = _alignment({**header.metadata, **changes})
    head = bytes(data[:8]) + struct.pack("<QQ", len(header.tensors), len(keys)) + b"".join(keys) + infos
    head += b"\0" * (-len(head) % alignment)
    with beside(out, len(head) + len(data) - begin) as written, written.open("wb") as file:
        file.write(head)
        for at in range(begin, len(data), COPIED):
            file.write(data[at : at + COPIED])
    return out


def _alignment(metadata: Mapping[str, object]) -> int:
    value = metadata.get("general.alignment")
    return value if isinstance(value, int) else DEFAULT_ALIGNMENT


def _type_at(data: mmap.mmap | bytes, first: int, key: str) -> int:
    """Return the type of the value of a key that begins at byte `first`."""
    at = first + 8 + len(key.encode())
    return int.from_bytes(data[at : at + 4], "little")


def _encoded(key: str, value: object, code: int | None) -> bytes:
    """Encode a key with its value. code: the type; None chooses it by the value."""
    name = key.encode()
    kind = code if code is not None and code != ARRAY else _code(key, value)
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + _bytes(key, value, kind)


def _bytes(key: str, value: object, code: int) -> bytes:
    if code == STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    if code == ARRAY and isinstance(value, list | tuple):
        inner = _code(key, value[0]) if value else _INT
        return struct.pack("<IQ", inner, len(value)) + b"".join(_bytes(key, item, inner) for item in value)
    try:
        return struct.pack("<" + SCALARS[code], value)
    except struct.error:
        raise UsageError(f"{key} cannot be {value!r} in a GGUF file", "give a value of the type that it has") from None


def _code(key: str, value: object) -> int:
    if isinstance(value, bool):
        return _BOOL
    if isinstance(value, int):
        return _COUNT if value >= 0 else _INT
    if isinstance(value, float):
        return _FLOAT
    if isinstance(value, str):
        return STRING
    if isinstance(value, list | tuple):
        return ARRAY
    raise UsageError(f"{key} cannot be {value!r} in a GGUF file", "give text, a number, or a list of them")
