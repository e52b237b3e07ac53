"""Families that are rows of `plain.toml`: a Llama under other names, with other fixed options of its layers."""

import tomllib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import number, section
from settle.model.architectures import (
    TINY_SIZES,
    Architecture,
    GgufFields,
    GgufKeys,
    HfConfig,
    Rows,
    Tensors,
    Values,
)
from settle.model.architectures.llama import Llama
from settle.model.config import DecoderOptions, LayerOptions, Rope

_OPTIONAL = (
    "attention_bias",
    "out_bias",
    "mlp_bias",
    "partial_rotary_factor",
    "clip_qkv",
    "logit_scale",
    "sliding_window",
)
_BIASES = {"attention_bias": "blk.0.attn_q.bias", "out_bias": "blk.0.attn_output.bias", "mlp_bias": "blk.0.ffn_up.bias"}


class Plain(Llama):
    """A decoder of a row. What the class variables are is said in `plain.toml`.

    llama.cpp computes it without windows: a GGUF file's context ends where they would begin to hide something.
    """

    LAYER: ClassVar[dict[str, Any]] = {}
    OPTIONS: ClassVar[frozenset[str]] = frozenset()
    KEYS: ClassVar[dict[str, list[str]]] = {}
    ALIKE: ClassVar[dict[str, dict[str, str]]] = {}
    OLDER: ClassVar[dict[str, str]] = {}
    GGUF_FIXED: ClassVar[Values] = {}
    UNUSED: ClassVar[tuple[str, ...]] = ()
    TURNED: ClassVar[bool] = False
    INTERLEAVED: ClassVar[bool] = False
    SCALED_EMBEDDINGS: ClassVar[bool] = False

    out_bias: bool = Field(False, description="biases of the linears behind attention")
    partial_rotary_factor: float = Field(1.0, gt=0, le=1, description="share of a head that turns")
    sliding_window: int | None = Field(None, gt=0, description="tokens that a query sees; None for all")
    clip_qkv: float | None = Field(None, gt=0, description="queries, keys and values stay within it; None: anywhere")
    logit_scale: float = Field(1.0, gt=0, description="multiplies the logits")

    @classmethod
    def part_name(cls) -> str:
        return cls.model_type

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    def window(self, layer: int) -> int | None:
        return self.sliding_window

    def rope(self, layer: int) -> Rope:
        return replace(super().rope(layer), is_interleaved=self.INTERLEAVED)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), out_bias=self.out_bias, clip_qkv=self.clip_qkv, **self.LAYER)

    def options(self) -> DecoderOptions:
        scale = self.hidden_size**0.5 if self.SCALED_EMBEDDINGS else None
        return replace(super().options(), embedding_scale=scale, logit_scale=self.logit_scale)

    # --- Hugging Face's layout ---

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        for field in _OPTIONAL[:-1]:  # windows that a family does not have are often in its files
            if field not in cls.OPTIONS and config.get(field) not in (None, cls.model_fields[field].default):
                what = f"{field} = {config[field]!r} is not supported for {cls.model_type}"
                raise FormatError(what, "get the file that was published")
        older = {new: config[old] for old, new in cls.OLDER.items() if old in config}
        alike = {key: names.get(str(config.get(key))) for key, names in cls.ALIKE.items()}
        return super().from_hf_config({**older, **config, **{key: name for key, name in alike.items() if name}})

    @classmethod
    def hf_keys(cls) -> frozenset[str]:
        own = super().hf_keys() - (set(_OPTIONAL) - cls.OPTIONS)
        return own.union(cls.KEYS, cls.ALIKE, cls.OLDER)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        known = dict(config)
        for key, fields in cls.KEYS.items():
            known |= dict.fromkeys(fields, config[key]) if config.get(key) is not None else {}
        share = section(config, "rope_parameters").get("partial_rotary_factor")
        return cls._own(super().hf_values(known | ({} if share is None else {"partial_rotary_factor": share})))

    @classmethod
    def _own(cls, values: Values) -> Values:
        """Return values without those of options that this family does not have."""
        return {name: value for name, value in values.items() if name not in _OPTIONAL or name in cls.OPTIONS}

    def to_hf_config(self) -> Values:
        config = super().to_hf_config()
        renamed = {key: config[fields[0]] for key, fields in self.KEYS.items()}
        own = {field for fields in self.KEYS.values() for field in fields}
        return {key: value for key, value in self._own(config).items() if key not in own} | renamed

    def is_unused(self, name: str) -> bool:
        return name.startswith(self.UNUSED)

    # --- GGUF's layout ---

    def gguf_context(self) -> int:
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    def gguf_metadata(self) -> GgufKeys:
        if not self.gguf_architecture:
            raise FormatError(f"llama.cpp knows no {self.model_type}", "export it as safetensors")
        for field, known in self.GGUF_FIXED.items():
            if getattr(self, field) != known:
                what = f"{field} = {getattr(self, field)}, llama.cpp knows {self.model_type} with {known} only"
                raise FormatError(what, "export it as safetensors")
        keys: GgufKeys = {} if self.logit_scale == 1 else {"logit_scale": self.logit_scale}
        if self.clip_qkv is not None:
            keys["attention.clamp_kqv"] = self.clip_qkv
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        values |= {field: tensor in tensors for field, tensor in _BIASES.items()}
        head_dim = number(values, "head_dim")
        values["partial_rotary_factor"] = fields.number("rope.dimension_count", head_dim) / head_dim
        values["logit_scale"] = fields.number("logit_scale", 1.0)
        values["clip_qkv"] = fields.number("attention.clamp_kqv", 0.0) or None
        return cls._own(values)

    def to_gguf(self, name: str, values: Rows) -> Rows:
        if name.endswith("norm.weight"):
            return values + self.options().layers[0].norm_offset
        return super().to_gguf(name, values) if self.TURNED else values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        if name.endswith("norm.weight"):
            return values - self.options().layers[0].norm_offset
        return super().from_gguf_tensor(name, values) if self.TURNED else values


class Row(BaseModel):
    """A row of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str
    hf_class: str
    gguf: str
    layer: dict[str, bool | float | str] = {}
    options: list[str] = []
    defaults: Values = {}
    fixed: Values = {}
    keys: dict[str, list[str]] = {}
    alike: dict[str, dict[str, str]] = {}
    older: dict[str, str] = {}
    names: dict[str, str] = {}
    gguf_names: dict[str, str] = {}
    gguf_fixed: Values = {}
    unused: list[str] = []
    turned: bool = False
    interleaved: bool = False
    scaled_embeddings: bool = False
    queries_are_width: bool = False


@cache
def plain_families() -> dict[str, type[Plain]]:
    """Return the families of the table by their `model_type`."""
    table = tomllib.loads(Path(__file__).with_name("plain.toml").read_text(encoding="utf-8"))
    return {name: _family(name, Row.model_validate(row)) for name, row in table.items()}


def _family(name: str, row: Row) -> type[Plain]:
    """Return the class of a row."""
    layer = row.layer
    epsilon = "layer_norm_epsilon" if layer.get("centred_norms") else "layer_norm_rms_epsilon"
    attributes = {
        "__module__": __name__,
        "__doc__": f"{row.about}.",
        "model_type": name,
        "HF_CLASS": row.hf_class,
        "gguf_architecture": row.gguf,
        "LAYER": layer,
        "HF_DEFAULTS": row.defaults,
        "HF_FIXED": Llama.HF_FIXED | row.fixed,
        "HF_NAMES": row.names,
        "GGUF_LAYER": Architecture.GGUF_LAYER | row.gguf_names,
        "GGUF_EPSILON": f"attention.{epsilon}",
        "QUERIES_ARE_WIDTH": row.queries_are_width,
        "OPTIONS": frozenset(row.options).union(row.defaults, *row.keys.values()),
        "KEYS": row.keys,
        "ALIKE": row.alike,
        "OLDER": row.older,
        "GGUF_FIXED": row.gguf_fixed,
        "UNUSED": tuple(row.unused),
        "TURNED": row.turned,
        "INTERLEAVED": row.interleaved,
        "SCALED_EMBEDDINGS": row.scaled_embeddings,
    }
    family = type(row.hf_class.removesuffix("ForCausalLM"), (Plain,), attributes)
    if not issubclass(family, Plain):
        raise TypeError(name)
    family.TINY = family.model_validate(row.defaults | TINY_SIZES)
    return family
