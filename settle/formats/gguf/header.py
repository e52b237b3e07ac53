"""Reads the header of an untrusted GGUF file.

Every count, length, type and offset is checked against the bytes that are really there before anything is
allocated or returned. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass

import numpy as np

from settle.base.errors import FormatError
from settle.formats.gguf.types import block_of

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# ggml.h: GGML_MAX_NAME, GGML_MAX_DIMS. The others are ours: far above any real file, far below harm.
MAX_NAME = 63
MAX_DIMS = 4
MAX_KEY = 65535
MAX_TENSORS = 1 << 20
MAX_KEYS = 1 << 16
MAX_ARRAY = 1 << 24
MAX_STRING = 1 << 26
MAX_ALIGNMENT = 1 << 20
MAX_DIM = 1 << 40

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """name; shape outermost first; dtype: ggml's type number; start: first byte in the file; num_bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: int
    start: int
    num_bytes: int


@dataclass(frozen=True)
class Header:
    """The header of a GGUF file.

    metadata: values by key; places: first byte and the byte after the last of each key with its value, as they lie in
    the file; tensors: in the file's order.
    """

    metadata: dict[str, object]
    places: dict[str, tuple[int, int]]
    tensors: list[TensorInfo]


class Cursor:
    """Takes bytes off the front, never beyond the end."""

    def __init__(self, data: mmap.mmap | bytes, file: str) -> None:
        self.data, self.size, self.at, self.file = data, len(data), 0, file

    def fail(self, what: str) -> FormatError:
        return FormatError(
            f"{self.file} is not a sound GGUF file: {what} (at byte {self.at})",
            "get the file again, or export it again; do not load it elsewhere",
        )

    def take(self, num_bytes: int, what: str) -> bytes:
        if num_bytes > self.size - self.at:
            raise self.fail(f"{what} takes {num_bytes} bytes, {self.size - self.at} are left")
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def scalar(self, code: str, what: str) -> int | float:
        value: int | float = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
        return bool(value) if code == "?" else value

    def integer(self, code: str, what: str) -> int:
        return int(self.scalar(code, what))

    def string(self, what: str, longest: int = MAX_STRING) -> bytes:
        length = self.integer("Q", f"the length of {what}")
        if length > longest:
            raise self.fail(f"{what} says it is {length} bytes long, {longest} is the most")
        return self.take(length, what)

    def strings(self, number: int, what: str) -> list[str]:
        """Read `number` strings. A vocabulary is most of a header, so this is `string` without its calls."""
        data, at, size, length_at = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        texts = []
        for _ in range(number):
            if size - at < 8:
                break
            (length,) = length_at(data, at)
            if length > min(MAX_STRING, size - at - 8):
                break
            texts.append(data[at + 8 : at + 8 + length].decode("utf-8", "replace"))
            at += 8 + length
        self.at = at
        if len(texts) < number:
            self.string(what)  # says what is wrong
        return texts

    def count(self, what: str, most: int, smallest: int) -> int:
        """Read a number of things of at least `smallest` bytes each: they must fit into what is left."""
        number = self.integer("Q", f"the number of {what}")
        if number > most or number * smallest > self.size - self.at:
            raise self.fail(f"it says it has {number} {what}, which cannot be in {self.size} bytes")
        return number


def read_header(data: mmap.mmap | bytes, file: str) -> Header:
    """Metadata and tensor descriptions of a whole GGUF file in memory or mapped. Raises FormatError."""
    cursor = Cursor(data, file)
    if cursor.take(4, "the magic number") != MAGIC:
        raise cursor.fail("it does not start with GGUF")
    version = cursor.integer("I", "the version")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        raise cursor.fail("it is big-endian" if swapped else f"its version is {version}, 2 and 3 are known")
    num_tensors = cursor.count("tensors", MAX_TENSORS, 8 + 4 + 8 + 4 + 8)
    num_keys = cursor.count("metadata keys", MAX_KEYS, 8 + 4 + 1)
    metadata: dict[str, object] = {}
    places: dict[str, tuple[int, int]] = {}
    for _ in range(num_keys):
        first = cursor.at
        key = _text(cursor, "a metadata key", MAX_KEY)
        if key in metadata:
            raise cursor.fail(f"the metadata key {key!r} is there twice")
        metadata[key] = _value(cursor, cursor.integer("I", f"the type of {key}"), key)
        places[key] = (first, cursor.at)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.fail(f"its alignment is {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}")
    raw = [_tensor(cursor, alignment) for _ in range(num_tensors)]
    return Header(metadata, places, _place(cursor, raw, alignment))


def weights_begin(data: mmap.mmap | bytes, file: str, at: int, tensors: int, alignment: int) -> tuple[bytes, int]:
    """Return the descriptions of so many tensors from byte `at` on, and the byte at which the weights begin."""
    cursor = Cursor(data, file)
    cursor.at = at
    for _ in range(tensors):
        _tensor(cursor, alignment)
    return bytes(data[at : cursor.at]), cursor.at + -cursor.at % alignment


def _text(cursor: Cursor, what: str, longest: int) -> str:
    raw = cursor.string(what, longest)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise cursor.fail(f"{what} is not UTF-8") from None
    if not text or not text.isprintable():
        raise cursor.fail(f"{what} is empty or holds control characters: {text!r}")
    return text


def _value(cursor: Cursor, code: int, key: str) -> object:
    if code in SCALARS:
        return cursor.scalar(SCALARS[code], key)
    if code == STRING:
        return cursor.string(key).decode("utf-8", "replace")
    if code != ARRAY:
        raise cursor.fail(f"{key} has the unknown type {code}")
    item = cursor.integer("I", f"the item type of {key}")
    if item == STRING:
        number = cursor.count(f"strings in {key}", MAX_ARRAY, 8)
        return cursor.strings(number, key)
    if item not in SCALARS:
        raise cursor.fail(f"{key} is an array of the type {item}, which llama.cpp does not read")
    boolean = SCALARS[item] == "?"
    dtype = np.dtype("u1" if boolean else "<" + SCALARS[item])
    number = cursor.count(f"items in {key}", MAX_ARRAY, dtype.itemsize)
    raw = cursor.take(number * dtype.itemsize, key)
    values = np.frombuffer(raw, dtype)
    return (values != 0 if boolean else values).tolist()


def _tensor(cursor: Cursor, alignment: int) -> tuple[str, tuple[int, ...], int, int, int]:
    """(name, shape, type, offset in the data section, number of bytes) of one tensor description."""
    name = _text(cursor, "a tensor name", MAX_NAME)
    num_dims = cursor.integer("I", f"the number of dimensions of {name}")
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.fail(f"{name} has {num_dims} dimensions, 1 to {MAX_DIMS} are possible")
    dims = [cursor.integer("Q", f"a dimension of {name}") for _ in range(num_dims)]
    if any(not 1 <= d <= MAX_DIM for d in dims):
        raise cursor.fail(f"{name} has the shape {dims}")
    code = cursor.integer("I", f"the type of {name}")
    kind = block_of(code)
    if kind is None:
        raise cursor.fail(f"{name} has the unknown tensor type {code}")
    _, block, block_bytes = kind
    if dims[0] % block:
        raise cursor.fail(f"a row of {name} has {dims[0]} values, not a multiple of its type's {block}")
    offset = cursor.integer("Q", f"the offset of {name}")
    if offset % alignment:
        raise cursor.fail(f"{name} starts at {offset}, not a multiple of the alignment {alignment}")
    return name, tuple(reversed(dims)), code, offset, math.prod(dims) // block * block_bytes


def _place(cursor: Cursor, raw: list[tuple[str, tuple[int, ...], int, int, int]], alignment: int) -> list[TensorInfo]:
    """Absolute places, once it is sure that they lie in the file and not on each other."""
    start = -(-cursor.at // alignment) * alignment
    end, previous, names = 0, "", set()
    for name, _, _, offset, num_bytes in sorted(raw, key=lambda t: (t[3], t[0])):
        if name in names:
            raise cursor.fail(f"the tensor {name} is there twice")
        if offset < end:
            raise cursor.fail(f"the tensors {previous} and {name} lie on each other")
        if start + offset + num_bytes > cursor.size:
            raise cursor.fail(f"{name} ends at byte {start + offset + num_bytes}, the file at {cursor.size}")
        names.add(name)
        end, previous = offset + num_bytes, name
    return [TensorInfo(n, shape, code, start + offset, size) for n, shape, code, offset, size in raw]
