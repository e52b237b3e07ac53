"""GGUF, the file that llama.cpp, Ollama and LM Studio load."""

import mmap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

from settle.base.chat_template import complaint
from settle.base.errors import FormatError
from settle.formats import (
    Card,
    Format,
    GgufLayout,
    GgufTokenizer,
    LazyTensor,
    Metadata,
    ModelContents,
    Place,
    TensorLike,
    Weights,
    beside,
    from_bfloat16,
    map_file,
    to_bfloat16,
    to_float32,
    write_array,
)
from settle.formats.gguf.decision import read_decision
from settle.formats.gguf.header import TensorInfo, read_header
from settle.formats.gguf.layout import Entry, Layout, Pieces, lay_out
from settle.formats.gguf.types import GgmlType, exported, ggml_type


def _exported(dtype: str) -> str:
    if dtype not in exported():
        raise ValueError(f"there is no type {dtype!r}; known: {', '.join(exported())}")
    return dtype


Dtype = Annotated[str, AfterValidator(_exported)]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
_POOLINGS: tuple[Pooling, ...] = ("none", "mean", "cls", "last", "rank")  # as the format numbers them
TABLES = ("token_embd.weight", "output.weight")  # where rounding costs the most
# routers, which round badly, convolutions, and what llama.cpp adds to a sum as it is
ALWAYS_F32 = (
    "ffn_gate_inp.weight",
    "_exps.bias",
    "altup_correct_coef.weight",
    "altup_predict_coef.weight",
    "altup_router.weight",
    ".conv.weight",
    "conv1d.weight",
    "ssm_a",
    "ssm_d",
    "ssm_norm.weight",
    "position_embd.weight",
    "token_types.weight",
)
MOST_CONTEXT = (1 << 31) - 1
_COPIED = 16 << 20  # bytes at a time
SIZES = (
    "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "expert_count", "expert_used_count",
)  # fmt: skip
PER_LAYER = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")  # may be a list
UNUSED = 5  # llama.cpp's token type
GENERAL = ("name", "description", "license", "tags", "datasets", "size_label", "url")


class Gguf(Format):
    """One file with weights, tokenizer, chat template and card."""

    suffix: ClassVar[str] = ".gguf"
    dtype: Dtype = Field("f16", description="type of the matrices; vectors stay f32")

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        return exported()

    def read(self, path: Path) -> Weights:
        return read_gguf(self.gguf(path))

    def write(self, path: Path, model: ModelContents) -> Path:
        return export_contents(model, path, self.dtype)

    def default_path(self, name: str) -> Path:
        return Path(f"{name}-{self.dtype}.gguf")


def read_gguf(path: Path) -> Weights:
    """Read the checked header of a GGUF file; its tensors are mapped, not read. Raises FormatError.

    First the header is checked: see `header`; then the tokenizer's lists against each other and against the embedding,
    and the chat template's grammar.
    """
    file = read_tensors(path)
    shapes = {name: tensor.shape for name, tensor in file.tensors.items()}
    for what in _complaints(file.metadata, shapes):
        raise FormatError(
            f"{Path(path).name} is not a sound GGUF model: {what}", "get the file again, or export it again"
        )
    return file


def read_tensors(path: Path) -> Weights:
    """Read a GGUF file that need not be a model: the header is checked, what the metadata means is not."""
    path = Path(path)
    data = map_file(path)
    header = read_header(data, path.name)
    Place(data, 0, len(data)).forget(0, len(data))
    places = {key: Place(data, first, last - first) for key, (first, last) in header.places.items()}
    return Weights({i.name: _lazy(data, i) for i in header.tensors}, header.metadata, places)


def pooling(metadata: Metadata) -> Pooling:
    """How a file says that the vectors of a text's tokens become one; "none" where it does not."""
    number = metadata.get(f"{metadata['general.architecture']}.pooling_type")
    return _POOLINGS[number] if isinstance(number, int) and 0 <= number < len(_POOLINGS) else "none"


def embeds(metadata: Metadata) -> bool:
    """Whether a model was made to turn texts into vectors, or to order them, and not to write."""
    return pooling(metadata) != "none" or "bert" in str(metadata["general.architecture"])


def export_contents(model: ModelContents, path: Path, dtype: str) -> Path:
    """Write a model as `export_gguf` does, with everything that is known of it."""
    return export_gguf(model.architecture, model.weights, model.tokenizer, path, dtype, model.card, model.gguf_keys)


def export_gguf(
    part: GgufLayout,
    weights: Mapping[str, TensorLike],
    tokenizer: GgufTokenizer,
    path: Path,
    dtype: str = "f16",
    metadata: Card | None = None,
    keys: Metadata | None = None,
) -> Path:
    """Write a model as GGUF, one tensor in memory at a time, beside and renamed.

    part: the architecture; weights: parameter name → tensor; metadata: "name", "description", "license", "tags" (list),
    "datasets" (list) go to general.*, what else there is to settle.*; keys: further ones, as they are. Raises
    FormatError for weights that the type cannot hold, ResourceError when the disk is full.
    """
    names = part.gguf_names()
    stray = sorted(set(weights) ^ set(names))
    if stray:
        raise FormatError(f"the weights and the architecture disagree about {stray[0]}", "export with the run's plan")
    tensors = _tensors(part, names, weights, dtype)
    header: Metadata = {
        "general.architecture": part.gguf_family,
        "general.type": "model",
        **_card(metadata or {}, dtype),
        **{key: np.float32(v) if isinstance(v, float) else v for key, v in part.gguf_metadata().items()},
        **_tokenizer_keys(tokenizer, part.vocab_size),
        **{key: _narrow(value) for key, value in (keys or {}).items()},
    }
    header = {key: value for key, value in header.items() if not isinstance(value, list) or value}
    return write_tensors(Path(path), header, tensors)


def write_tensors(path: Path, metadata: Metadata, tensors: Sequence[Pieces]) -> Path:
    """Write a file, beside and renamed, one piece of a tensor in memory at a time. Raises ResourceError."""
    return _write(path, lay_out(Weights({}, {}), [tensor.entry for tensor in tensors], metadata), tensors)


def write_edited(path: Path, out: Path, changes: Metadata) -> Path:
    """Write the file at `path` to `out`, beside and renamed, with `changes` of its metadata and the same weights.

    changes: a value by key; None leaves the key out. An existing key keeps its type. Raises FormatError for a file that
    is not sound, UsageError for a value that GGUF has no type for, ResourceError when the disk is full.
    """
    source = read_tensors(path)
    copied = [
        Pieces(
            Entry(t.name, t.shape, t.dtype, t.num_bytes),
            [partial(t.place.bytes, at, min(at + _COPIED, t.num_bytes)) for at in range(0, t.num_bytes, _COPIED)],
        )
        for t in source.tensors.values()
    ]
    return _write(out, lay_out(source, [tensor.entry for tensor in copied], changes, same_types=True), copied)


def _write(path: Path, planned: Layout, tensors: Sequence[Pieces]) -> Path:
    with beside(path, planned.total) as part, part.open("wb") as file:
        file.write(planned.header)
        for tensor in tensors:
            for piece in tensor.pieces:
                write_array(file, piece())
            file.write(bytes(planned.padding(tensor.entry.num_bytes)))
    return path


def _tensors(part: GgufLayout, names: Mapping[str, str], weights: Mapping[str, TensorLike], dtype: str) -> list[Pieces]:
    """Return the file's tensors, in its order: parameters that share a name become one stacked tensor."""
    members: dict[str, list[str]] = {}
    for parameter, name in names.items():
        members.setdefault(name, []).append(parameter)
    tensors = []
    for name, parameters in members.items():
        shape = tuple(np.shape(weights[parameters[0]]))
        if len(parameters) > 1:
            shape = (len(parameters), *shape)
        else:
            shape = part.gguf_shape(parameters[0], shape)
        stored = _type_of(name, shape, dtype)
        pieces = [partial(_piece, part, parameter, weights[parameter], stored) for parameter in parameters]
        tensors.append(Pieces(Entry(name, shape, stored.name, stored.num_bytes(shape)), pieces))
    for name, values in part.gguf_constants().items():
        vector = np.asarray(values, np.float32)
        tensors.append(Pieces(Entry(name, vector.shape, "F32", vector.nbytes), [partial(np.copy, vector)]))
    return tensors


def _piece(part: GgufLayout, parameter: str, tensor: TensorLike, stored: GgmlType) -> np.ndarray:
    return _encode(parameter, np.ascontiguousarray(part.to_gguf(parameter, to_float32(tensor))), stored)


def card_of(path: Path) -> dict[str, object]:
    """Read back the metadata that `export_gguf` was given; {} when there is no file."""
    if not path.exists():
        return {}
    stored = read_gguf(path).metadata
    ours = {key.removeprefix("settle."): value for key, value in stored.items() if key.startswith("settle.")}
    return {key: stored[f"general.{key}"] for key in GENERAL if f"general.{key}" in stored} | ours


def _type_of(name: str, shape: tuple[int, ...], dtype: str) -> GgmlType:
    """Return a tensor's type: vectors and ALWAYS_F32 stay f32, tables are never coarser than Q8_0.

    A row that the blocks do not divide becomes f16.
    """
    wanted = ggml_type(dtype)
    if len(shape) == 1 or name.endswith(ALWAYS_F32):
        wanted = ggml_type("F32")
    elif wanted.quantized and name in TABLES:
        wanted = ggml_type("Q8_0")
    return wanted if wanted.divides(shape[-1]) else ggml_type("F16")


def _encode(name: str, values: np.ndarray, stored: GgmlType) -> np.ndarray:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if not np.isfinite(values).all():
        raise FormatError(f"{name} holds NaN or infinity", "the run is broken; resume it from an earlier checkpoint")
    if stored.name == "BF16":
        return to_bfloat16(values)
    if stored.name != "F32" and np.abs(values).max(initial=0.0) > np.finfo(np.float16).max:
        raise FormatError(f"{name} holds values that f16 cannot hold", "export with --dtype bf16")
    return quantize(values, GGMLQuantizationType(stored.id))


def _card(metadata: Card, dtype: str) -> Metadata:
    """Return the keys of a card: numbers of 64 bits, lists as texts."""
    from gguf.constants import GGML_QUANT_VERSION

    stored = ggml_type(dtype)
    keys: dict[str, object] = {
        "general.file_type": stored.mixes[stored.name],
        "general.quantization_version": GGML_QUANT_VERSION,
    }
    for key, value in metadata.items():
        if isinstance(value, list | tuple):
            value = [str(item) for item in value]
        elif value is not None and not isinstance(value, int | float):
            value = str(value)
        name = f"general.{key}" if key in GENERAL else f"settle.{key}"
        keys[name] = np.int64(value) if type(value) is int else value
    return keys


def _tokenizer_keys(tokenizer: GgufTokenizer, vocab_size: int) -> Metadata:
    # The embedding may be padded beyond the vocabulary; llama.cpp wants a token for each row.
    padding = range(tokenizer.vocab_size, vocab_size)
    filled: dict[str, list[object]] = {
        "tokenizer.ggml.tokens": [f"[PAD{i}]" for i in padding],
        "tokenizer.ggml.token_type": [UNUSED for _ in padding],
        "tokenizer.ggml.scores": [-1e6 for _ in padding],
    }
    return {
        key: [*value, *filled.get(key, [])] if isinstance(value, list) else value
        for key, value in tokenizer.gguf_metadata().items()
    }


def _narrow(value: object) -> object:
    """Return a number as one of 32 bits, with a sign: what llama.cpp wants of the keys for sampling and decisions."""
    return np.float32(value) if isinstance(value, float) else np.int32(value) if isinstance(value, int) else value


def _lazy(data: mmap.mmap, info: TensorInfo) -> LazyTensor:
    from gguf.constants import GGMLQuantizationType

    dtype = GGMLQuantizationType(info.dtype).name
    place = Place(data, info.start, info.num_bytes)

    def load() -> np.ndarray:
        return _numbers(place.bytes(), dtype, info.shape, info.name)

    return LazyTensor(info.name, info.shape, dtype, info.num_bytes, load, place)


def rows(table: LazyTensor, which: Sequence[int]) -> np.ndarray:
    """Read some rows of a matrix in a GGUF file, (len(which), W), as `load` returns them; the others are not read."""
    size = table.num_bytes // table.shape[0]
    raw = [table.place.bytes(row * size, (row + 1) * size) for row in which]
    return _numbers(np.concatenate(raw), table.dtype, (len(which), *table.shape[1:]), table.name)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values (R, C) as a file of that type holds them when `export_gguf` writes it, as float32."""
    raw = _encode("a tensor", np.ascontiguousarray(values, np.float32), ggml_type(dtype))
    return _numbers(raw.view(np.uint8).reshape(-1), ggml_type(dtype).name, values.shape, "a tensor")


def _numbers(raw: np.ndarray, dtype: str, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Bytes of a type of ggml as numbers."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quant_shape_to_byte_shape

    if dtype in ("I8", "I16", "I32", "I64", "F64"):
        return raw.view(f"<{dtype[0].lower()}{int(dtype[1:]) // 8}").reshape(shape)
    if dtype == "BF16":
        return from_bfloat16(raw.view("<u2")).reshape(shape)
    if dtype in ("F32", "F16"):
        return raw.view("<f4" if dtype == "F32" else "<f2").astype(np.float32).reshape(shape)
    code = GGMLQuantizationType[dtype]
    try:
        return dequantize(raw.reshape(quant_shape_to_byte_shape(shape, code)), code)
    except NotImplementedError:
        raise FormatError(f"{name} is {dtype}, which is not read here", "use a file of another type") from None


def _complaints(metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Check what llama.cpp does not: names of the right type, lists of equal length, ids inside the vocabulary."""
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str):
        yield "general.architecture is missing"
        return
    yield from _size_complaints(architecture, metadata, shapes)
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    if not isinstance(tokens, list) or not all(isinstance(t, str) for t in tokens):
        yield "tokenizer.ggml.tokens is not a list of strings"
        return
    for key in ("token_type", "scores"):
        values = metadata.get(f"tokenizer.ggml.{key}")
        if values is not None and (not isinstance(values, list) or len(values) != len(tokens)):
            yield f"tokenizer.ggml.{key} has not one entry for each of the {len(tokens)} tokens"
    for key, value in metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and not (isinstance(value, int) and 0 <= value < max(len(tokens), 1)):
            yield f"{key} is {value!r}, outside the {len(tokens)} tokens"
    embedding = shapes.get("token_embd.weight")
    if tokens and embedding is not None and embedding[0] != len(tokens):
        yield f"token_embd.weight has {embedding[0]} rows for {len(tokens)} tokens"
    try:
        read_decision(metadata)
    except FormatError as e:
        yield e.what
    yield from _template_complaints(metadata)


def _size_complaints(architecture: str, metadata: Metadata, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Numbers that others make lists of so many entries of: each must be borne out by the tensors."""
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    limits = {"context_length": MOST_CONTEXT, "block_count": len(shapes), **dict.fromkeys(SIZES, largest)}
    for name, most in limits.items():
        value = metadata.get(f"{architecture}.{name}")
        each = value if isinstance(value, list) and name in PER_LAYER else [] if value is None else [value]
        smallest = 1 if name == "context_length" else 0
        for size in each:
            if type(size) is not int or not smallest <= size <= most:
                yield f"{architecture}.{name} is {size!r:.40}, with {len(shapes)} tensors of up to {largest} rows"


def _template_complaints(metadata: Metadata) -> Iterator[str]:
    for key, value in metadata.items():
        if key.removeprefix("tokenizer.chat_template").startswith(".") or key == "tokenizer.chat_template":
            what = complaint(value)
            if what:
                yield f"{key} {what}"
