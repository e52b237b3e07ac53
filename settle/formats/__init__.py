"""Files of weights. Each is checked before it is used; each is written beside and renamed.

A format is a file in this folder: `read(path)` gives lazy named tensors and metadata, `write(…)` makes a file.
"""

import abc
import contextlib
import errno
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, ClassVar, Literal, Protocol, Self, get_args

import numpy as np
from pydantic import Field, JsonValue

from settle.base.errors import FULL_DISK, FormatError, ResourceError, no_room
from settle.base.files import fsync_folder, sweep_leftovers
from settle.base.python_command import shell_line
from settle.base.registry import Part
from settle.base.tokenizer import Tokenizer

Metadata = Mapping[str, object]  # what a file says of itself, by key: any value may be under any of them
# what is said of a model: name, description, license and the like; "base": True where it completes plain text
Card = Mapping[str, object]


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie in a mapped file."""

    data: mmap.mmap
    start: int
    num_bytes: int

    def bytes(self, first: int = 0, last: int | None = None) -> np.ndarray:
        """Return some bytes, read-only, uint8: a view that reads the file lazily."""
        end = self.num_bytes if last is None else last
        return np.frombuffer(self.data, np.uint8, end - first, self.start + first)

    def member(self, number: int, size: int) -> Self:
        """Return the place of one of several matrices of `size` bytes that lie behind each other here."""
        return replace(self, start=self.start + number * size, num_bytes=size)

    def forget(self, first: int, last: int) -> None:
        """Give the memory of bytes that were read back to the system; they can be read again."""
        if hasattr(self.data, "madvise"):
            page = mmap.PAGESIZE
            begin, end = -(-(self.start + first) // page) * page, (self.start + last) // page * page
            if end > begin:
                self.data.madvise(mmap.MADV_DONTNEED, begin, end - begin)


@dataclass(frozen=True)
class RowsPlace(Place):
    """A matrix whose rows are put together from the bytes of a mapped file whenever they are asked for.

    num_bytes: of the rows, not of the file. rows: from one to another → (n, row_bytes) uint8. Bytes are asked for by
    whole rows.
    """

    row_bytes: int
    rows: Callable[[int, int], np.ndarray]

    def bytes(self, first: int = 0, last: int | None = None) -> np.ndarray:
        end = self.num_bytes if last is None else last
        return self.rows(first // self.row_bytes, end // self.row_bytes).reshape(-1)

    def member(self, number: int, size: int) -> Self:
        first = number * size // self.row_bytes
        return replace(self, num_bytes=size, rows=lambda start, end: self.rows(first + start, first + end))

    def forget(self, first: int, last: int) -> None:
        """Do nothing: a row's bytes lie between those of others."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor of a checked file: nothing is read until `load`, or until bytes of its `place` are looked at.

    shape: outermost dimension first, as in torch. dtype: the file's name of it ("F16", "Q8_0" …).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_bytes: int
    load: Callable[[], np.ndarray]  # floats and quantized blocks as float32, integers as they are
    place: Place


@dataclass(frozen=True)
class Weights:
    """What a file holds: tensors by name, in the file's order, and its metadata.

    places: where each key of the metadata lies with its value, for copying it unread; empty where a format has none.
    """

    tensors: Mapping[str, LazyTensor]
    metadata: Metadata
    places: Mapping[str, Place] = field(default_factory=dict)


class TensorLike(Protocol):
    """A tensor of numpy or torch, or one that is read when `detach` is called."""

    @property
    def shape(self) -> tuple[int, ...]: ...


class GgufTokenizer(Protocol):
    """What a GGUF file needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...

    def gguf_metadata(self) -> Metadata: ...


class GgufLayout(Protocol):
    """What a GGUF file needs of a model's architecture."""

    @property
    def gguf_family(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...

    def gguf_names(self) -> dict[str, str]: ...
    def gguf_metadata(self) -> Mapping[str, str | float | list[int]]: ...
    def gguf_constants(self) -> dict[str, tuple[float, ...]]: ...
    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def to_gguf(self, name: str, values: np.ndarray) -> np.ndarray: ...


class ModelLayout(GgufLayout, Protocol):
    """What the formats need of a model's architecture: where its parameters lie in files, and what files say of it."""

    model_type: ClassVar[str]
    PEFT_NAMES_EXPERTS: ClassVar[bool]

    @property
    def max_position_embeddings(self) -> int: ...

    def hf_names(self) -> dict[str, str]: ...
    def hf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]: ...
    def hf_modules(self) -> dict[str, str]: ...
    def expert_parameters(self) -> dict[str, list[list[str]]]: ...
    def stack_experts(self, tensors: Mapping[str, TensorLike]) -> Mapping[str, TensorLike]: ...
    def to_hf_config(self) -> dict[str, object]: ...
    def from_gguf_tensor(self, name: str, values: np.ndarray) -> np.ndarray: ...
    def columns_to_gguf(self, name: str, values: np.ndarray) -> np.ndarray: ...
    def columns_from_gguf(self, name: str, values: np.ndarray) -> np.ndarray: ...
    def column_run(self, name: str) -> int: ...


@dataclass(frozen=True)
class LoraPairs:
    """A change of weights as llama.cpp adds it while it serves them: alpha / r · B A.

    pairs: module → A (r, I) and B (O, r), float32, rows as in Hugging Face's layout.
    """

    alpha: float
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]


class AdapterWeights(Protocol):
    """What the formats need of an adapter; its method knows the rest (`settle.model.adapters`).

    state: PEFT's names → numbers. lora: None for a method that llama.cpp cannot add to a base as it serves it.
    """

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> Mapping[str, np.ndarray]: ...
    @property
    def modules(self) -> tuple[str, ...]: ...
    @property
    def base(self) -> str | None: ...
    @property
    def base_sha256(self) -> str | None: ...
    @property
    def lora(self) -> LoraPairs | None: ...

    def parameters(self, architecture: ModelLayout) -> dict[str, str]: ...
    def peft_config(self, architecture: ModelLayout) -> dict[str, JsonValue]: ...
    def peft_state(self, architecture: ModelLayout) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class ModelContents:
    """A whole model, as a format writes it.

    weights: parameter name → tensor. gguf_keys: further keys of a GGUF file, such as a decision model's.
    """

    architecture: ModelLayout
    weights: Mapping[str, TensorLike]
    tokenizer: Tokenizer
    card: Card = field(default_factory=dict)
    gguf_keys: Metadata = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterContents:
    """An adapter by itself, as a format writes it.

    architecture, base_file: of the model it was trained on, and that model as GGUF. tokenizer: with the template that
    it was trained with. card: with "template": that template where the base's is another.
    """

    architecture: ModelLayout
    adapter: AdapterWeights
    tokenizer: Tokenizer
    base_file: Path
    card: Card = field(default_factory=dict)


class Format(Part):
    """The contract of a format. Settings of writing are fields.

    suffix: the file's suffix; empty for a folder. holds: whole models, or adapters by themselves. for_llama_cpp:
    whether llama.cpp reads it, so that it is exported only when it passes the gate.
    """

    suffix: ClassVar[str]
    holds: ClassVar[Literal["model", "adapter"]] = "model"
    for_llama_cpp: ClassVar[bool] = True
    dtype: str = Field("f16", description="type of the weights")

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Return the types that it can write."""
        return get_args(cls.model_fields["dtype"].annotation)

    @abc.abstractmethod
    def read(self, path: Path) -> Weights:
        """Read a file. Raises FormatError, with the place, for anything that is not a sound file of this format."""

    def write(self, path: Path, model: ModelContents) -> Path:
        """Write a model and return what was written.

        Raises ResourceError on a full disk, FormatError for what the format cannot hold.
        """
        raise NotImplementedError(f"{self.part_name()} holds no models")

    def write_adapter(self, path: Path, adapter: AdapterContents) -> Path:
        """Write an adapter by itself; as `write`."""
        raise NotImplementedError(f"{self.part_name()} holds no adapters")

    def gguf(self, path: Path) -> Path:
        """Return the GGUF file in what was written at `path`, which the gate loads: of a model, or of an adapter."""
        return path

    def default_path(self, name: str) -> Path:
        """Where a model of that name is written to when nobody says."""
        return Path(f"{name}-{self.part_name().replace('_', '-')}{self.suffix}")

    def next_line(self, path: Path, name: str) -> str:
        """Return the command line that uses what was written at `path`. name: what another program is to call it."""
        return shell_line("llama-cli", "--model", str(path))


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file for reading. Raises FormatError."""
    try:
        with path.open("rb") as f:
            return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise FormatError(f"there is no file {path}", "check the path") from None
    except ValueError:
        raise FormatError(f"{path.name} is empty", "get the file again") from None
    except OSError as e:
        raise FormatError(f"{path} cannot be read: {e.strerror}", "check the path and its permissions") from None


def to_float32(tensor: TensorLike) -> np.ndarray:
    """Return a torch or numpy float tensor as a contiguous float32 array; no copy when it is one already."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu().float().numpy()
    return np.ascontiguousarray(tensor, dtype=np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 → bfloat16 bits (uint16, same shape), rounded to nearest even as torch does; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) → float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


@contextlib.contextmanager
def beside(path: Path, num_bytes: int) -> Iterator[Path]:
    """Yield a path next to `path` to write to; fsynced and renamed to `path` at the end, removed after any error.

    num_bytes: bytes to be written. Raises ResourceError before the start when they cannot fit, and when the disk fills
    up all the same.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    sweep_leftovers(path.parent, f".{path.name}.")
    try:
        free = shutil.disk_usage(path.parent).free
        if free < num_bytes:
            raise _full(path, num_bytes, free)
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        part.replace(path)
        fsync_folder(path.parent)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        # numpy's tofile reports a short write without an errno
        if e.errno in (*FULL_DISK, errno.EFBIG) or (e.errno is None and "written" in str(e)):
            raise _full(path, num_bytes, shutil.disk_usage(path.parent).free) from None
        raise ResourceError(f"cannot write {path}: {e.strerror or e}", "choose another place with --out") from None
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_to_write(path: Path) -> Iterator[None]:
    """Make a folder, and report what cannot be written there as a ResourceError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as e:
        raise ResourceError(f"cannot write to {path}: {e.strerror}", "choose another place with --out") from None


def write_array(f: IO[bytes], array: np.ndarray) -> None:
    """Write the array's bytes, little-endian, through the file object (so that a full disk is an honest OSError)."""
    f.write(np.ascontiguousarray(array).data.cast("B") if array.size else b"")


def _full(path: Path, num_bytes: int, free: int) -> ResourceError:
    return no_room(path.name, num_bytes, free, path.parent, "or choose another place with --out")
