"""safetensors in Hugging Face's layout: a folder that transformers, vLLM and MLX load."""

import json
import math
import mmap
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from settle.base.errors import FormatError
from settle.base.files import write_json
from settle.base.python_command import shell_line
from settle.base.tokenizer import Tokenizer
from settle.formats import (
    Card,
    Format,
    LazyTensor,
    Metadata,
    ModelContents,
    ModelLayout,
    Place,
    RowsPlace,
    TensorLike,
    Weights,
    beside,
    folder_to_write,
    from_bfloat16,
    map_file,
    to_bfloat16,
    to_float32,
    write_array,
)
from settle.formats.gguf.metadata import section

Dtype = Literal["f32", "f16", "bf16"]
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # the safetensors library's own limit
MAX_DIMS = 8
TORCH_NAMES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
INT4_BLOCK, INT4_BLOCK_BYTES = 32, 18  # of Q4_0: numbers, and bytes of a scale and their codes
SHARD_BYTES = 5_000_000_000  # transformers' own limit for a file, so that any file system holds it


class Safetensors(Format):
    """A folder: model.safetensors, config.json, generation_config.json and the tokenizer's files.

    Large models lie in several numbered files beside an index.
    """

    suffix: ClassVar[str] = ""
    for_llama_cpp: ClassVar[bool] = False
    dtype: Dtype = Field("f16", description="type of the tensors")
    shard_bytes: int = Field(SHARD_BYTES, gt=0, description="maximum size of one file of weights, in bytes")

    def read(self, path: Path) -> Weights:
        return read_safetensors(path)

    def write(self, path: Path, model: ModelContents) -> Path:
        return export_safetensors(
            model.architecture, model.weights, model.tokenizer, path, self.dtype, model.card, self.shard_bytes
        )

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-{self.dtype}")

    def next_line(self, path: Path, name: str) -> str:
        return shell_line("vllm", "serve", str(path))


def read_safetensors(path: Path) -> Weights:
    """Read the checked header of a .safetensors file, or of a folder's model or numbered files; tensors are mapped.

    Format: https://huggingface.co/docs/safetensors. Raises FormatError for a header that lies about its size, its types
    or where tensors are; gaps between tensors are refused as the library refuses them; for a file that the index names
    and that is not there. Matrices of a folder that compressed-tensors packed as int4 are read as blocks of Q4_0.
    """
    path = Path(path)
    if not path.is_dir():
        return _read_file(path)
    is_in_shards = (path / INDEX).exists() and not (path / SINGLE).exists()
    file = _read_shards(path) if is_in_shards else _read_file(path / SINGLE)
    return Weights(dict(_unpacked(file.tensors)), file.metadata)


def require_int4(quantization: Metadata) -> None:
    """Raise FormatError, which names the scheme, for what compressed-tensors packed otherwise than `read_safetensors`.

    quantization: `quantization_config` of config.json.
    """
    groups = section(quantization, "config_groups")
    for scheme in [section(groups, key) for key in groups] or [{}]:
        weights, activations = section(scheme, "weights"), section(scheme, "input_activations")
        form = scheme.get("format") or quantization.get("format")
        name = f"{form} W{weights.get('num_bits')}A{activations.get('num_bits', 16)}"
        options = f"{weights.get('type')} in a {weights.get('strategy')}"
        options += "" if weights.get("symmetric", True) else ", asymmetric"
        options += f", ordered by {weights['actorder']}" if weights.get("actorder") else ""
        if name != "pack-quantized W4A16" or options not in ("int in a group", "int in a channel"):
            raise _other_scheme(f"{name} ({options})")
    for key in ("sparsity_config", "kv_cache_scheme", "transform_config"):
        if quantization.get(key) and section(quantization, key).get("format") != "dense":
            raise _other_scheme(f"one with {key}")


def _other_scheme(name: str) -> FormatError:
    return FormatError(
        f"its compressed-tensors scheme, {name}, is not read here", "get the model in bf16, in W4A16 or as GGUF"
    )


def _unpacked(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """Yield tensors by name, with a matrix of blocks in the place of its codes, scales and shape."""
    packed = {name.removesuffix("_packed") for name in tensors if name.endswith(".weight_packed")}
    for name, tensor in tensors.items():
        whole, _, what = name.rpartition("_")
        if whole not in packed:
            yield name, tensor
        elif what == "packed":
            yield whole, _as_blocks(whole, tensor, tensors.get(f"{whole}_scale"))
        elif what not in ("scale", "shape"):
            raise FormatError(f"{name} belongs to a compressed-tensors scheme that is not read here", "get it in bf16")


def _as_blocks(name: str, codes: LazyTensor, scales: LazyTensor | None) -> LazyTensor:
    """Return a matrix (O, I) of `pack-quantized` int4 as blocks of Q4_0, which hold the same numbers.

    codes: int32 (O, I / 8), eight to a word, the first in its lowest bits. scales: (O, I / group).
    """
    is_whole = scales is not None and scales.dtype in ("BF16", "F16", "F32") and codes.dtype == "I32"
    if scales is None or not is_whole or {len(codes.shape), len(scales.shape)} != {2}:
        raise FormatError(f"{name} has no matrix of codes with scales", "get the folder again")
    outputs, inputs = codes.shape[0], 8 * codes.shape[1]
    blocks, groups = inputs // INT4_BLOCK, scales.shape[1]
    if inputs % INT4_BLOCK or not groups or blocks % groups or scales.shape[0] != outputs:
        raise FormatError(f"{name}: {scales.shape} scales of {(outputs, inputs)} numbers are not read here", "")
    row_bytes, scale_bytes = blocks * INT4_BLOCK_BYTES, scales.num_bytes // max(1, outputs)

    def rows(first: int, last: int) -> np.ndarray:
        pairs = codes.place.bytes(first * inputs // 2, last * inputs // 2).reshape(last - first, blocks, -1)
        own = np.stack([pairs & 15, pairs >> 4], -1).reshape(last - first, blocks, INT4_BLOCK)
        raw = scales.place.bytes(first * scale_bytes, last * scale_bytes)
        exact = _floats(raw, scales.dtype).reshape(last - first, groups)
        with np.errstate(over="ignore"):
            half = exact.astype("<f2")
        if not np.array_equal(half.astype(np.float32), exact):
            raise FormatError(f"{name} has scales that float16 cannot hold", "get the model in bf16")
        spread = half.repeat(blocks // groups, 1)[..., None].view(np.uint8)
        out = np.concatenate([spread, own[..., :16] | own[..., 16:] << 4], -1)
        return out.reshape(last - first, row_bytes)

    def load() -> np.ndarray:
        raw = rows(0, outputs).reshape(outputs, blocks, INT4_BLOCK_BYTES)
        numbers = np.concatenate([raw[..., 2:] & 15, raw[..., 2:] >> 4], -1).astype(np.float32) - 8
        factors = raw[..., :2].copy().view("<f2").astype(np.float32)
        return np.ascontiguousarray((numbers * factors).reshape(outputs, inputs))

    place = RowsPlace(codes.place.data, codes.place.start, outputs * row_bytes, row_bytes, rows)
    return LazyTensor(name, (outputs, inputs), "Q4_0", place.num_bytes, load, place)


def _read_shards(folder: Path) -> Weights:
    try:
        places = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _unsound(INDEX, "it is no index of tensors") from None
    if not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise _unsound(INDEX, "it names files outside its folder")
    missing = [file for file in files if not (folder / file).exists()]
    if missing:
        raise FormatError(
            f"{folder.name} lacks {missing[0]}, one of its {len(files)} files of weights", "get that file too"
        )
    shards = {file: _read_file(folder / file) for file in files}
    lost = [name for name, file in places.items() if name not in shards[file].tensors]
    if lost:
        raise _unsound(places[lost[0]], f"{lost[0]} is not in it, and the index says so")
    return Weights({name: shards[file].tensors[name] for name, file in places.items()}, shards[files[0]].metadata)


def _read_file(path: Path) -> Weights:
    data = map_file(path)
    header, start = _header(data, path.name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _unsound(path.name, "its __metadata__ is not a map of strings")
    places = [_place(path.name, name, entry) for name, entry in header.items()]
    end = 0
    for name, _, _, first, last in sorted(places, key=lambda p: (p[3], p[4])):
        if first != end:
            raise _unsound(path.name, f"{name} starts at {first}, the tensor before it ends at {end}")
        end = last
    if start + end != len(data):
        raise _unsound(path.name, f"its tensors end at byte {start + end}, the file at {len(data)}")
    return Weights({p[0]: _lazy(data, start, p) for p in places}, metadata)


def export_safetensors(
    part: ModelLayout,
    weights: Mapping[str, TensorLike],
    tokenizer: Tokenizer,
    path: Path,
    dtype: str = "f32",
    metadata: Card | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model as a folder in Hugging Face's layout, one tensor in memory at a time.

    part, weights, tokenizer, metadata: as in `export_gguf`; shard_bytes: of one file at most, unless one tensor alone
    is larger. Returns the folder. Raises ResourceError on a full disk, FormatError for values that the type cannot
    hold.
    """
    config = part.to_hf_config() | {"dtype": TORCH_NAMES[dtype]}
    return write_hf_folder(config, hf_tensors(part, weights), tokenizer, path, dtype, metadata, shard_bytes)


def hf_tensors(part: ModelLayout, weights: Mapping[str, TensorLike]) -> dict[str, TensorLike]:
    """Return parameters as the tensors of Hugging Face's files, by name, which may join the rows of several."""
    names = part.hf_names()
    tensors: dict[str, list[TensorLike]] = {}
    for name in (name for name in names if name in weights):
        tensors.setdefault(names[name], []).append(weights[name])
    whole = {name: rows[0] if len(rows) == 1 else _Rows(rows, part, name) for name, rows in tensors.items()}
    return dict(part.stack_experts(whole))


def write_hf_folder(
    config: Mapping[str, object],
    tensors: Mapping[str, TensorLike],
    tokenizer: Tokenizer,
    path: Path,
    dtype: str,
    metadata: Card | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write tensors by their names in files, config.json and the tokenizer. Returns and raises as above."""
    path = Path(path)
    with folder_to_write(path):
        tokenizer.save(path)
    write_json(path / "config.json", config)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    write_json(path / "generation_config.json", {k: v for k, v in ids.items() if v is not None})
    card = {k: str(v) for k, v in (metadata or {}).items() if v is not None}
    _write_shards(path, tensors, dtype, card, shard_bytes)
    return path


@dataclass(frozen=True)
class Computed:
    """A tensor whose values are made when they are written. whole: "I32" or "I64" for whole numbers, "" for floats."""

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]
    whole: str = ""

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return self.make()


def _kind(tensor: TensorLike, dtype: str) -> str:
    """Return the type in which a tensor is stored: floats are all of one."""
    return getattr(tensor, "whole", "") or dtype.upper()


class _Rows:
    """Matrices as one, the rows of each behind those of the one before; joined when they are written."""

    def __init__(self, matrices: Sequence[TensorLike], part: ModelLayout, name: str) -> None:
        self._matrices = matrices
        self.shape = part.hf_shape(name, (sum(matrix.shape[0] for matrix in matrices), *matrices[0].shape[1:]))

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([to_float32(matrix) for matrix in self._matrices])


def _write_shards(
    folder: Path, tensors: Mapping[str, TensorLike], dtype: str, card: Mapping[str, str], shard_bytes: int
) -> None:
    """One file, or numbered ones and their index. What an earlier export left under other names is removed."""
    shards: list[dict[str, TensorLike]] = [{}]
    sizes = [0]
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * ITEM_BYTES[_kind(tensor, dtype)]
        if shards[-1] and sizes[-1] + size > shard_bytes:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = tensor
        sizes[-1] += size
    number = len(shards)
    files = [f"model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)] if number > 1 else [SINGLE]
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(folder / file, shard, dtype, card)
    places = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
    if number > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": places})
    for stale in [*folder.glob("model*.safetensors"), *([folder / INDEX] if number == 1 else [])]:
        if stale.name not in files:
            stale.unlink(missing_ok=True)


def write_safetensors(
    path: Path, tensors: Mapping[str, TensorLike], dtype: str = "f32", metadata: Mapping[str, str] | None = None
) -> None:
    """Float tensors (torch or numpy) to one file, in `dtype`, beside and renamed; one at a time in memory.

    Whole numbers (`Computed.whole`) keep their type.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for name, tensor in tensors.items():
        size = math.prod(tensor.shape) * ITEM_BYTES[_kind(tensor, dtype)]
        header[name] = {"dtype": _kind(tensor, dtype), "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with beside(path, 8 + len(raw) + at) as part, part.open("wb") as f:
        f.write(struct.pack("<Q", len(raw)) + raw)
        for name, tensor in tensors.items():
            is_whole = _kind(tensor, dtype) != dtype.upper()
            write_array(f, np.asarray(tensor) if is_whole else _encode(name, to_float32(tensor), dtype))


def _encode(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bf16":
        return to_bfloat16(values)
    if dtype == "f16" and np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise FormatError(f"{name} holds values that f16 cannot hold", "export with --dtype bf16")
    return values.astype("<f2" if dtype == "f16" else "<f4", copy=False)


def _unsound(file: str, what: str) -> FormatError:
    return FormatError(f"{file} is not a sound safetensors file: {what}", "get the file again, or export it again")


def _header(data: mmap.mmap, file: str) -> tuple[dict[str, object], int]:
    """Return the JSON header and where the data starts."""
    if len(data) < 8:
        raise _unsound(file, f"it is {len(data)} bytes long")
    (size,) = struct.unpack("<Q", data[:8])
    if size > min(LONGEST_HEADER, len(data) - 8):
        raise _unsound(file, f"it says its header is {size} bytes long, the file is {len(data)}")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise ValueError("a name is there twice")
        return entries

    try:
        header = json.loads(data[8 : 8 + size].decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise _unsound(file, f"its header is not JSON: {str(e)[:100]}") from None
    if not isinstance(header, dict):
        raise _unsound(file, "its header is not an object")
    return header, 8 + size


def _place(file: str, name: str, entry: object) -> tuple[str, str, tuple[int, ...], int, int]:
    """(name, dtype, shape, first byte, end) of one tensor, in itself sound."""
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(last)], **rest} if not rest:
            pass
        case _:
            raise _unsound(file, f"the entry of {name[:80]!r} is not dtype, shape and data_offsets")
    if dtype not in ITEM_BYTES:
        raise _unsound(file, f"{name} has the unknown type {dtype[:20]!r}")
    if len(shape) > MAX_DIMS or not all(type(d) is int and 0 <= d < 1 << 48 for d in shape):
        raise _unsound(file, f"{name} has an impossible shape")
    if not 0 <= first <= last or last - first != math.prod(shape) * ITEM_BYTES[dtype]:
        raise _unsound(file, f"{name} takes bytes {first} to {last}, which its shape and type do not fill")
    return name, dtype, tuple(shape), first, last


def _lazy(data: mmap.mmap, start: int, place: tuple[str, str, tuple[int, ...], int, int]) -> LazyTensor:
    name, dtype, shape, first, last = place

    def load() -> np.ndarray:
        if dtype.startswith("F8"):
            raise FormatError(f"{name} is {dtype}, which is not read yet", "convert the file to BF16")
        raw = np.frombuffer(data, np.uint8, last - first, start + first)
        if dtype in ("BF16", "F16", "F32"):
            return _floats(raw, dtype).reshape(shape)
        kind = {"B": "?", "U": "<u", "I": "<i", "F": "<f"}[dtype[0]]
        return raw.view(kind if kind == "?" else f"{kind}{ITEM_BYTES[dtype]}").reshape(shape)

    return LazyTensor(name, shape, dtype, last - first, load, Place(data, start + first, last - first))


def _floats(raw: np.ndarray, dtype: str) -> np.ndarray:
    """Bytes of BF16, F16 or F32 as float32."""
    return from_bfloat16(raw.view("<u2")) if dtype == "BF16" else raw.view(f"<f{ITEM_BYTES[dtype]}").astype(np.float32)
