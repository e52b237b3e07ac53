"""What families with Mamba-2 (arXiv:2405.21060) share: its fields, and its tensors in a GGUF file."""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import whole
from settle.model.architectures import Architecture, GgufFields, GgufKeys, HfConfig, Rows, Tensors, Values
from settle.model.config import Mamba2

Norm = Literal["none", "before gate", "behind gate"]


class Mamba(Architecture):
    """A decoder with Mamba-2 in some of its layers."""

    HF_FIXED = Architecture.HF_FIXED | {"attention_bias": False, "mamba_proj_bias": False}
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "mamba.in_proj": "ssm_in",
        "mamba.conv1d": "ssm_conv1d",
        "mamba.dt_bias": "ssm_dt.bias",
        "mamba.A_log": "ssm_a",
        "mamba.D": "ssm_d",
        "mamba.norm": "ssm_norm",
        "mamba.out_proj": "ssm_out",
    }

    mamba_n_heads: int = Field(8, gt=0, description="heads of a state space")
    mamba_d_head: int = Field(64, gt=0, description="width of a head of a state space")
    mamba_n_groups: int = Field(1, gt=0, description="groups of these heads; divides them")
    mamba_d_state: int = Field(64, gt=0, description="width of a state")
    mamba_d_conv: int = Field(4, gt=1, description="tokens that a state space's convolution sees")
    mamba_conv_bias: bool = Field(True, description="biases of these convolutions")

    def state_space(self, norm: Norm, scales: tuple[float, ...] = ()) -> Mamba2:
        """Return the options of a state space of this family."""
        heads, width, state = self.mamba_n_heads, self.mamba_d_head, self.mamba_d_state
        bias, kernel = self.mamba_conv_bias, self.mamba_d_conv
        return Mamba2(heads, width, state, self.mamba_n_groups, kernel, conv_bias=bias, norm=norm, scales=scales)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        limit = config.get("time_step_limit")
        newest = [0.0, {"__float__": "Infinity"}]  # as transformers writes it since 5
        if limit not in (None, [0.0, math.inf], (0.0, math.inf), newest):
            raise FormatError(f"time_step_limit = {limit!r} is not supported", "only (0, Infinity) is")
        if config.get("mamba_d_head", "auto") == "auto":
            expanded = whole({"mamba_expand": 2, **config}, "mamba_expand") * whole(config, "hidden_size")
            inner = whole(config, "mamba_d_ssm") if config.get("mamba_d_ssm") else expanded
            values["mamba_d_head"] = inner // whole({**cls.HF_DEFAULTS, **config}, "mamba_n_heads")
        return values

    def gguf_metadata(self) -> GgufKeys:
        own: GgufKeys = {
            "ssm.conv_kernel": self.mamba_d_conv,
            "ssm.inner_size": self.mamba_n_heads * self.mamba_d_head,
            "ssm.state_size": self.mamba_d_state,
            "ssm.time_step_rank": self.mamba_n_heads,
            "ssm.group_count": self.mamba_n_groups,
        }
        return super().gguf_metadata() | {f"{self.gguf_family}.{key}": value for key, value in own.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        heads = fields.whole("ssm.time_step_rank")
        return super().gguf_values(fields, tensors) | {
            "mamba_n_heads": heads,
            "mamba_d_head": fields.whole("ssm.inner_size") // max(heads, 1),
            "mamba_n_groups": fields.whole("ssm.group_count"),
            "mamba_d_state": fields.whole("ssm.state_size"),
            "mamba_d_conv": fields.whole("ssm.conv_kernel"),
            "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in tensors),
        }

    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name.endswith(("mamba.A_log", "mamba.D")):
            return (*shape, 1)
        if name.endswith("mamba.norm.weight"):
            return (self.mamba_n_groups, shape[0] // self.mamba_n_groups)
        return super().gguf_shape(name, shape)

    def to_gguf(self, name: str, values: Rows) -> Rows:
        negative: Rows = -(math.e**values) if name.endswith("mamba.A_log") else values
        return super().to_gguf(name, negative)

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        values = super().from_gguf_tensor(name, values)
        if not name.endswith("mamba.A_log"):
            return values
        logarithm: Rows = torch.log(-values) if isinstance(values, Tensor) else np.log(-values)
        return logarithm
