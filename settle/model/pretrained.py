"""A model that others trained, from its files: opened lazily, loaded without a second copy.

Letters: O outputs and I inputs of a matrix, E experts.
"""

import contextlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from settle.base.errors import FormatError, malformed_is_format_error
from settle.base.files import read_json
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats import LazyTensor, Place
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import largest, section, whole
from settle.formats.gguf.types import GGML, ggml_type
from settle.formats.safetensors import read_safetensors, require_int4
from settle.model.architectures import Architecture
from settle.model.config import ROUTERS
from settle.model.decoder import Decoder
from settle.model.families import of_gguf, of_hf_config, text_config
from settle.model.layers.dequantize import dequantize, quantize_nf4
from settle.model.layers.frozen_weights import Frozen, FrozenBlocks, FrozenDense, FrozenNf4
from settle.model.source import Source

Quantize = Literal["nf4", "as-is"]
_TEXT_PART = re.compile(r"(model\.)?language_model\.(model\.)?")  # before the names of a multimodal model's text model
_PIECE = 4 << 20  # bytes of a file that are in memory at a time
# what files hold beside the weights: buffers that are computed here
_NO_WEIGHTS = (
    "rotary_emb.inv_freq", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight",
    ".attention.bias", ".attention.masked_bias",
)  # fmt: skip


@dataclass(frozen=True)
class _Stored:
    """Where a parameter lies: a lazy tensor, or one slice of it along a first axis (experts)."""

    tensor: LazyTensor
    shape: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, not yet loaded.

    part: the architecture. tokenizer: with its chat template. source: the files. metadata: of a GGUF file, or of
    config.json. stored: parameter name → where it lies. left_out: parts of the files that are not loaded, such as the
    vision tower of a multimodal model, with their bytes.
    """

    part: Architecture
    tokenizer: PretrainedTokenizer
    source: Source
    metadata: Mapping[str, object]
    stored: Mapping[str, _Stored]
    left_out: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, model: Source | Path | str) -> "Pretrained":
        """Open a .gguf file or a folder in Hugging Face's layout; no weights are read.

        Names of models are resolved by `settle.library.pretrained.open_pretrained`.

        Raises UsageError when there is nothing at the path, FormatError for files that are not sound or not whole, for
        an architecture that is not known (naming the known), for types of tensors that are not read.
        """
        source = model if isinstance(model, Source) else Source.at(Path(model))
        try:
            with malformed_is_format_error(source.path.name):
                return _from_gguf(source) if source.kind == "gguf" else _from_folder(source)
        except FormatError as e:
            named = e.what.startswith(source.path.name) or str(source.path) in e.what
            raise e if named else FormatError(f"{source.path.name}: {e.what}", e.fix) from None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def chat_template(self) -> str:
        return self.tokenizer.chat_template

    @property
    def left_out_text(self) -> str:
        """What is not loaded, in words and MB; "" for nothing."""
        parts = (f"{_named(part)} ({size / 1e6:,.1f} MB)" for part, size in self.left_out.items())
        return f"left out: {', '.join(parts)}" if self.left_out else ""

    @property
    def license(self) -> str:
        """License that the file or the store names, or ""."""
        return self.source.license or str(self.metadata.get("general.license") or "")

    @cached_property
    def kinds(self) -> dict[str, int]:
        """How many bytes of weights are of each stored type."""
        num_bytes: dict[str, int] = {}
        for stored in self.stored.values():
            num_bytes[stored.tensor.dtype] = num_bytes.get(stored.tensor.dtype, 0) + stored.place.num_bytes
        return num_bytes

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """Parameter name → its numbers in fp32, read when they are asked for."""
        return _Weights(self)

    def load(
        self, trainable: bool = False, dtype: torch.dtype = torch.float32, quantize: Quantize | None = None
    ) -> Decoder:
        """Load the model with its weights, on the processor.

        trainable: all weights are parameters in fp32. Otherwise they are frozen: dense in `dtype`; the layers' matrices
        in NF4 ("nf4"); or every quantized matrix in the file's own blocks ("as-is"), which stay in the mapped file as
        far as their rows need no other order. dtype: what is computed in.
        """
        model = self.part.skeleton()
        with _one_thread():
            for name in self.part.parameters():
                model.put(name, self.read(name) if trainable else self._frozen(name, dtype, quantize))
        model.compute_dtype = dtype
        return model

    def read(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """One parameter's numbers in Hugging Face's layout, read piece by piece."""
        stored = self.stored[name]
        shape = stored.shape
        rows, row = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
        out = torch.empty(shape, dtype=dtype)
        filled = out.view(rows, *row)
        row_bytes = ggml_type(stored.tensor.dtype).num_bytes(row)
        step = max(1, _PIECE // row_bytes)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            raw = _tensor(stored.place, first * row_bytes, last * row_bytes)
            dequantize(raw, stored.tensor.dtype, (last - first, *row), dtype, filled[first:last])
            del raw
            stored.place.forget(first * row_bytes, last * row_bytes)
        return self._in_our_order(name, out)

    def blocks(self, name: str) -> Tensor:
        """Rows of a quantized matrix, in Hugging Face's order, as the file's blocks: uint8 (O, bytes of a row)."""
        stored = self.stored[name]
        return self._in_our_order(name, _tensor(stored.place, 0, stored.place.num_bytes).view(stored.shape[0], -1))

    def lazy_weights(self) -> dict[str, "LazyWeight"]:
        """Every parameter by name, each read when it is written somewhere: what the writers of `formats` take."""
        return {name: LazyWeight(self, name, stored.shape) for name, stored in self.stored.items()}

    def _in_our_order(self, name: str, values: Tensor) -> Tensor:
        if self.source.kind != "gguf":
            return values
        ordered: Tensor = self.part.from_gguf_tensor(name, values)
        return ordered.contiguous()

    def _frozen(self, name: str, dtype: torch.dtype, quantize: Quantize | None) -> Frozen:
        stored = self.stored[name]
        if len(stored.shape) != 2:
            return FrozenDense(self.read(name))
        kind = stored.tensor.dtype
        splits = self.source.kind == "gguf" and self.part.column_run(name) % GGML[kind].block
        if quantize == "as-is" and GGML[kind].quantized and not splits:
            return FrozenBlocks(self.blocks(name), kind, (stored.shape[0], stored.shape[1]))
        in_layers = name.startswith("model.layers.") and not name.removesuffix(".weight").endswith(ROUTERS)
        if quantize == "nf4" and in_layers and math.prod(stored.shape) % 64 == 0:
            return FrozenNf4(quantize_nf4(self.read(name)))
        return FrozenDense(self.read(name, dtype))


@dataclass(frozen=True)
class LazyWeight:
    """A parameter that `detach` reads, in fp32."""

    model: Pretrained
    name: str
    shape: tuple[int, ...]

    def detach(self) -> Tensor:
        return self.model.read(self.name)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: the pieces are small, and threads would wait for each other more than work."""
    number = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(number)


def _tensor(place: Place, first: int, last: int) -> Tensor:
    """Bytes of a mapped file as a tensor; only to be read."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(place.bytes(first, last))


@dataclass(frozen=True)
class _Weights(Mapping[str, Tensor]):
    base: Pretrained

    def __getitem__(self, name: str) -> Tensor:
        return self.base.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base.stored)

    def __len__(self) -> int:
        return len(self.base.stored)


def _from_gguf(source: Source) -> Pretrained:
    file = read_gguf(source.path)
    part = of_gguf(file.metadata, file.tensors)
    tokenizer = PretrainedTokenizer(file.metadata)
    tensors = dict(file.tensors)
    left_out: dict[str, int] = {}
    if predicting := largest(file.metadata, "nextn_predict_layers"):  # layers behind the last, for speculative decoding
        layers = len(part.options().layers)
        further = tuple(f"blk.{layer}." for layer in range(layers, layers + predicting))
        left_out = {"mtp": sum(t.num_bytes for name, t in tensors.items() if name.startswith(further))}
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(further)}
    stored = _places(part, part.gguf_names(), tensors)
    return Pretrained(part, tokenizer, source, file.metadata, stored, left_out)


def _from_folder(source: Source) -> Pretrained:
    config = read_json(source.path / "config.json")
    if not isinstance(config, dict):
        raise FormatError("config.json holds no settings", "get the file again")
    _refuse_pickle(source.path)
    quantization = section(config, "quantization_config")
    if quantization.get("quant_method") == "compressed-tensors":
        require_int4(quantization)
        config = {key: value for key, value in config.items() if key != "quantization_config"}
    file = read_safetensors(source.path)
    of_text = text_config(config)
    stacked = max((tensor.shape[0] for tensor in file.tensors.values() if len(tensor.shape) > 2), default=0)
    for key, most in (("num_hidden_layers", 0), ("num_experts", 0), ("num_local_experts", stacked)):
        if of_text.get(key) is not None and not 0 <= whole(dict(of_text), key) <= max(most, len(file.tensors)):
            raise FormatError(f"its {key} is {of_text[key]}, with {len(file.tensors)} tensors", "get the file again")
    holds_more = of_text is not config or any(name.startswith("mtp.") for name in file.tensors)
    tensors, left_out = _of_text(file.tensors) if holds_more else (dict(file.tensors), {})
    part = of_hf_config(config, tensors)
    tokenizer = PretrainedTokenizer.from_folder(source.path)
    names = part.hf_names()
    if "lm_head.weight" not in names.values():
        tensors.pop("lm_head.weight", None)  # a copy of the tied table
    return Pretrained(part, tokenizer, source, config, _places(part, names, part.unstack_experts(tensors)), left_out)


def _of_text(tensors: Mapping[str, LazyTensor]) -> tuple[dict[str, LazyTensor], dict[str, int]]:
    """Return the tensors of a multimodal model's text model, by the names that they have alone, and the others' bytes.

    Its layers for speculative decoding (`mtp`) are left out too.
    """
    found: dict[str, LazyTensor] = {}
    others: dict[str, int] = {}
    for name, tensor in tensors.items():
        inner = _TEXT_PART.match(name)
        own = "model." * ("lm_head." not in name) + name[inner.end() :] if inner else name
        if inner or own.startswith(("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")):
            found[own] = tensor
        else:
            part = own.removeprefix("model.").split(".")[0]
            others[part] = others.get(part, 0) + tensor.num_bytes
    return found, dict(sorted(others.items()))


def _named(part: str) -> str:
    """Return what a part of a checkpoint is called: `vision_tower` is the vision tower."""
    return "multi-token prediction" if part == "mtp" else part.replace("_", " ")


def _refuse_pickle(folder: Path) -> None:
    pickles = sorted(p.name for ending in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{ending}"))
    if pickles and not list(folder.glob("*.safetensors*")):
        raise FormatError(
            f"{folder} has its weights only as pickle ({pickles[0]}), and opening one runs any code that is in it",
            "get the model as safetensors or GGUF",
        )


def _places(part: Architecture, names: Mapping[str, str], tensors: Mapping[str, LazyTensor]) -> dict[str, _Stored]:
    """Where each parameter lies, once it is sure that the file holds what the architecture needs and no more."""
    stray = sorted(name for name in set(tensors) - set(names.values()) if not name.endswith(_NO_WEIGHTS))
    stray = [name for name in stray if not part.is_unused(name)]
    if stray:
        raise FormatError(f"it holds {stray[0]}, which a {part.model_type} of that shape does not have", "")
    missing = sorted(set(names.values()) - set(tensors))
    if missing:
        raise FormatError(f"it lacks {missing[0]}", "get the whole model")
    members: dict[str, list[str]] = {}
    for parameter, name in names.items():
        members.setdefault(name, []).append(parameter)
    shapes = part.parameters()
    places: dict[str, _Stored] = {}
    for name, parameters in members.items():
        tensor = tensors[name]
        if tensor.dtype not in GGML:
            known = ", ".join(GGML)
            raise FormatError(f"{name} is {tensor.dtype}, which is not read here", f"read are: {known}")
        for number, parameter in enumerate(parameters):  # matrices of one shape, rows behind rows or stacked
            shape = shapes[parameter]
            whole = shape if len(parameters) == 1 else (len(parameters), *shape)
            if math.prod(tensor.shape) != math.prod(whole) or (len(whole) > 1 and tensor.shape[-1] != whole[-1]):
                raise FormatError(f"{name} has the shape {tensor.shape}, {whole} is needed", "")
            size, place = tensor.num_bytes // len(parameters), tensor.place
            if len(parameters) > 1:
                place = place.member(number, size)
            places[parameter] = _Stored(tensor, shape, place)
    return {parameter: places[parameter] for parameter in shapes}
