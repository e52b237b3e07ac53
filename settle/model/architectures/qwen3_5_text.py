"""Qwen3.5's text model: gated delta nets in three of four layers, gated attention in the others."""

import math
from dataclasses import replace
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section, whole
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
from settle.model.config import DeltaNet, LayerOptions

_LINEAR, _FULL = "linear_attention", "full_attention"


class Qwen35Text(Architecture):
    """The text model of Qwen3.5. llama.cpp orders the heads of values by their place in a group."""

    model_type = "qwen3_5_text"
    MULTIMODAL: ClassVar[tuple[str, ...]] = ("qwen3_5",)
    gguf_architecture = "qwen35"
    HF_CLASS = "Qwen3_5ForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 256, "num_key_value_heads": 4,
        "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    }  # fmt: skip
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False}
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "post_attention_layernorm": "post_attention_norm",
        "linear_attn.in_proj_qkv": "attn_qkv",
        "linear_attn.in_proj_z": "attn_gate",
        "linear_attn.in_proj_b": "ssm_beta",
        "linear_attn.in_proj_a": "ssm_alpha",
        "linear_attn.conv1d": "ssm_conv1d",
        "linear_attn.dt_bias": "ssm_dt.bias",
        "linear_attn.A_log": "ssm_a",
        "linear_attn.norm": "ssm_norm",
        "linear_attn.out_proj": "ssm_out",
    }

    full_attention_interval: int = Field(4, gt=0, description="layers from one with attention to the next")
    partial_rotary_factor: float = Field(0.25, gt=0, le=1, description="share of a head that turns")
    linear_num_key_heads: int = Field(4, gt=0, description="heads of keys of a delta net; divides those of values")
    linear_num_value_heads: int = Field(4, gt=0, description="heads of values of a delta net")
    linear_key_head_dim: int = Field(64, gt=0, description="width of a key of a delta net")
    linear_value_head_dim: int = Field(64, gt=0, description="width of a value of a delta net")
    linear_conv_kernel_dim: int = Field(4, gt=1, description="tokens that a delta net's convolution sees")

    def attends(self, layer: int) -> bool:
        return (layer + 1) % self.full_attention_interval == 0

    def recurrence(self, layer: int) -> DeltaNet | None:
        heads, widths = (self.linear_num_key_heads, self.linear_num_value_heads), self.linear_key_head_dim
        return (
            None
            if self.attends(layer)
            else DeltaNet(*heads, widths, self.linear_value_head_dim, self.linear_conv_kernel_dim)
        )

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def rotary_sections(self) -> list[int]:
        """Rotary pairs for time, height and width, which are one position in a text; none where only texts have one."""
        return [(self.rotary_width // 2 + place) // 3 for place in (2, 1, 0)]

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), head_norms=True, norm_offset=1.0, attention_gates=True)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = super().sized(num_parameters, vocab_size, context)
        heads = dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), shape.num_attention_heads)
        widths = dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), shape.head_dim)
        return shape.with_fields(full_attention_interval=min(4, shape.num_hidden_layers), **heads, **widths)

    def to_hf_config(self) -> Values:
        kinds = [_FULL if self.attends(layer) else _LINEAR for layer in range(self.num_hidden_layers)]
        rope: Values = {"rope_theta": self.rope_theta, "partial_rotary_factor": self.partial_rotary_factor}
        if self.rotary_sections:
            rope |= {"mrope_section": self.rotary_sections, "mrope_interleaved": True}
        scaling = {"rope_type": "default"} if self.rope_scaling is None else self.rope_scaling.to_hf()
        return super().to_hf_config() | {"layer_types": kinds, "rope_parameters": scaling | rope}

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        factor = section(config, "rope_parameters").get("partial_rotary_factor", config.get("partial_rotary_factor"))
        values["partial_rotary_factor"] = 0.25 if factor is None else factor
        kinds = config.get("layer_types")
        if isinstance(kinds, list):
            every = kinds.index(_FULL) + 1 if _FULL in kinds else len(kinds) + 1
            if kinds != [_LINEAR if (i + 1) % every else _FULL for i in range(whole(config, "num_hidden_layers"))]:
                raise FormatError("layer_types is not every so many layers full_attention", "only that is supported")
            values["full_attention_interval"] = every
        return values

    def gguf_metadata(self) -> GgufKeys:
        if self.linear_key_head_dim != self.linear_value_head_dim:
            raise FormatError(
                "llama.cpp has keys and values of one width in a delta net: linear_key_head_dim is "
                f"{self.linear_key_head_dim}, linear_value_head_dim {self.linear_value_head_dim}",
                "export it as safetensors",
            )
        own: GgufKeys = {
            "full_attention_interval": self.full_attention_interval,
            "ssm.conv_kernel": self.linear_conv_kernel_dim,
            "ssm.inner_size": self.linear_num_value_heads * self.linear_value_head_dim,
            "ssm.state_size": self.linear_key_head_dim,
            "ssm.time_step_rank": self.linear_num_value_heads,
            "ssm.group_count": self.linear_num_key_heads,
        }
        if self.rotary_sections:
            own["rope.dimension_sections"] = [*self.rotary_sections, 0]
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in own.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        return values | {
            "num_hidden_layers": fields.whole("block_count") - fields.whole("nextn_predict_layers", 0),
            "full_attention_interval": fields.whole("full_attention_interval", 4),
            "partial_rotary_factor": fields.number("rope.dimension_count") / whole(values, "head_dim"),
            "linear_num_key_heads": fields.whole("ssm.group_count"),
            "linear_num_value_heads": fields.whole("ssm.time_step_rank"),
            "linear_key_head_dim": fields.whole("ssm.state_size"),
            "linear_value_head_dim": fields.whole("ssm.state_size"),
            "linear_conv_kernel_dim": fields.whole("ssm.conv_kernel"),
        }

    def to_gguf(self, name: str, values: Rows) -> Rows:
        if name.endswith("A_log"):
            values = -(math.e**values)
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            return values + 1
        return self.columns_to_gguf(name, self._heads(name, values, self.linear_num_key_heads))

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        if name.endswith("A_log"):
            values = torch.log(-values) if isinstance(values, Tensor) else np.log(-values)
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            return values - 1
        group = self.linear_num_value_heads // self.linear_num_key_heads
        return self.columns_from_gguf(name, self._heads(name, values, group))

    def column_run(self, name: str) -> int:
        is_reordered = name.endswith("linear_attn.out_proj.weight")
        return self.linear_value_head_dim if is_reordered and self.reorders_heads else 0

    def columns_to_gguf(self, name: str, values: Rows) -> Rows:
        return self._columns(name, values, self.linear_num_key_heads)

    def columns_from_gguf(self, name: str, values: Rows) -> Rows:
        return self._columns(name, values, self.linear_num_value_heads // self.linear_num_key_heads)

    def _columns(self, name: str, values: Rows, outer: int) -> Rows:
        if not self.column_run(name):
            return values
        split = values.reshape(len(values), outer, self.linear_num_value_heads // outer, -1)
        return split.swapaxes(1, 2).reshape(values.shape)

    @property
    def reorders_heads(self) -> bool:
        """Whether a GGUF file has the heads of values in another order."""
        return self.linear_num_value_heads != self.linear_num_key_heads

    def _heads(self, name: str, values: Rows, outer: int) -> Rows:
        """Order the heads of a delta net's values, seen as (outer, inner), as (inner, outer)."""
        if "linear_attn" not in name or name.endswith(("norm.weight", "out_proj.weight")) or not self.reorders_heads:
            return values
        keys = self.linear_num_key_heads * self.linear_key_head_dim
        fixed: int = 2 * keys if name.endswith(("in_proj_qkv.weight", "conv1d.weight")) else 0
        places: np.ndarray = np.arange(len(values) - fixed).reshape(outer, self.linear_num_value_heads // outer, -1)
        order = [*range(fixed), *(fixed + places.swapaxes(0, 1).flatten()).tolist()]
        ordered: Rows = values[order]
        return ordered


Qwen35Text.TINY = Qwen35Text(
    **TINY_SIZES | {"num_hidden_layers": 3, "head_dim": 16, "rms_norm_eps": 1e-6},
    full_attention_interval=2,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
)
