"""Falcon-H1 (arXiv:2507.22448): attention and Mamba-2 side by side in every layer, and a multiplier for each part.

A GGUF file has the multipliers in its weights: what is read from one has none.
"""

from dataclasses import replace
from typing import Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, HfConfig, Rows, Tensors, Values
from settle.model.architectures._mamba import Mamba, Norm
from settle.model.config import DecoderOptions, LayerOptions, Mamba2


class FalconH1(Mamba):
    """A Falcon-H1 decoder."""

    model_type = "falcon_h1"
    gguf_architecture = "falcon-h1"
    HF_CLASS = "FalconH1ForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "num_key_value_heads": 8, "mamba_n_heads": 128,
        "mamba_d_state": 256,
    }  # fmt: skip
    HF_FIXED = Mamba.HF_FIXED | {"mlp_bias": False, "projectors_bias": False}
    GGUF_LAYER = Mamba.GGUF_LAYER | {"post_attention_layernorm.weight": "ffn_norm"}  # without a suffix
    HF_NAMES = {
        "mlp.gate_proj": "feed_forward.gate_proj",
        "mlp.up_proj": "feed_forward.up_proj",
        "mlp.down_proj": "feed_forward.down_proj",
        "post_attention_layernorm": "pre_ff_layernorm",
        "model.norm": "model.final_layernorm",
    }

    mamba_rms_norm: bool = Field(False, description="whether what a state space gives is normed")
    mamba_norm_before_gate: bool = Field(True, description="whether it is normed before its gate")
    embedding_multiplier: float = Field(1.0, gt=0, description="multiplies what is looked up in the input table")
    lm_head_multiplier: float = Field(1.0, gt=0, description="multiplies the logits")
    attention_in_multiplier: float = Field(1.0, gt=0, description="multiplies what attention reads")
    attention_out_multiplier: float = Field(1.0, gt=0, description="multiplies what attention adds")
    key_multiplier: float = Field(1.0, gt=0, description="multiplies keys")
    ssm_in_multiplier: float = Field(1.0, gt=0, description="multiplies what a state space reads")
    ssm_out_multiplier: float = Field(1.0, gt=0, description="multiplies what a state space adds")
    ssm_multipliers: tuple[float, ...] = Field(
        (1.0,) * 5, min_length=5, max_length=5, description="of a state space's gates, inputs, keys, queries and steps"
    )
    mlp_multipliers: tuple[float, ...] = Field(
        (1.0, 1.0), min_length=2, max_length=2, description="of the feed-forward's gate, and of what it adds"
    )

    def recurrence(self, layer: int) -> Mamba2:
        scales = tuple(self.ssm_in_multiplier * own for own in self.ssm_multipliers)
        norm: Norm = "before gate" if self.mamba_norm_before_gate else "behind gate"
        return self.state_space(norm if self.mamba_rms_norm else "none", scales if set(scales) != {1.0} else ())

    def layer_options(self, layer: int) -> LayerOptions:
        read = self.attention_in_multiplier
        scale = read**2 * self.key_multiplier * self.head_dim**-0.5
        return replace(
            super().layer_options(layer),
            query_scale=None if read**2 * self.key_multiplier == 1 else scale,
            mixer_scales=(self.attention_out_multiplier * read, self.ssm_out_multiplier),
            gate_scale=self.mlp_multipliers[0],
            residual_scale=self.mlp_multipliers[1],
        )

    def options(self) -> DecoderOptions:
        scale = None if self.embedding_multiplier == 1 else self.embedding_multiplier
        return replace(super().options(), embedding_scale=scale, logit_scale=self.lm_head_multiplier)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = super().sized(num_parameters, vocab_size, context)
        heads, width = shape.num_attention_heads, shape.head_dim
        return shape.with_fields(mamba_n_heads=heads, mamba_d_head=width, mamba_d_state=16)

    def to_hf_config(self) -> Values:
        return super().to_hf_config() | {"mamba_d_ssm": self.mamba_n_heads * self.mamba_d_head}

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        if not config.get("mamba_d_ssm", 1024):
            raise FormatError("mamba_d_ssm is not given", "only models that name their inner width are supported")
        return super().hf_values(config)

    def to_gguf(self, name: str, values: Rows) -> Rows:
        return self._scaled(name, super().to_gguf(name, values), 1)

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        return self._scaled(name, super().from_gguf_tensor(name, values), -1)

    def _scaled(self, name: str, values: Rows, power: int) -> Rows:
        """Multiply a parameter's rows by its multipliers to that power."""
        read, state_space, module = self.attention_in_multiplier, self.recurrence(0), name.removesuffix(".weight")
        if module.endswith("mamba.in_proj") and state_space.scales:
            values, first = values * 1.0, 0
            for scale, rows in zip(state_space.scales, state_space.parts, strict=True):
                values[first : first + rows] *= scale**power
                first += rows
            return values
        by_module = {
            "embed_tokens": self.embedding_multiplier,
            "lm_head": self.lm_head_multiplier,
            "q_proj": read,
            "k_proj": read * self.key_multiplier,
            "v_proj": read,
            "self_attn.o_proj": self.attention_out_multiplier,
            "mamba.out_proj": self.ssm_out_multiplier,
            "gate_proj": self.mlp_multipliers[0],
            "down_proj": self.mlp_multipliers[1],
        }
        times = next((times for ending, times in by_module.items() if module.endswith(ending)), 1.0)
        return values if times == 1 else values * times**power

    def gguf_metadata(self) -> GgufKeys:
        if self.tie_word_embeddings and self.embedding_multiplier != self.lm_head_multiplier:
            raise FormatError(
                "llama.cpp reads Falcon-H1's multipliers out of its weights, and one table cannot have two of them",
                "export it as safetensors",
            )
        if self.mamba_rms_norm and self.mamba_norm_before_gate:
            raise FormatError("llama.cpp norms a state space behind its gate only", "export it as safetensors")
        if not self.mamba_conv_bias:
            raise FormatError("llama.cpp wants biases of a Falcon-H1's convolutions", "export it as safetensors")
        return super().gguf_metadata()

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        is_normed = any(name.endswith("ssm_norm.weight") for name in tensors)
        return super().gguf_values(fields, tensors) | {"mamba_rms_norm": is_normed, "mamba_norm_before_gate": False}


FalconH1.TINY = FalconH1(
    **TINY_SIZES,
    mamba_n_heads=4,
    mamba_d_head=8,
    mamba_n_groups=2,
    mamba_d_state=16,
    mamba_norm_before_gate=False,
    embedding_multiplier=3.0,
    lm_head_multiplier=0.5,
    attention_in_multiplier=1.5,
    attention_out_multiplier=0.7,
    key_multiplier=0.6,
    ssm_in_multiplier=1.2,
    ssm_out_multiplier=0.4,
    ssm_multipliers=(0.5, 1.5, 0.7, 1.1, 0.9),
    mlp_multipliers=(0.8, 0.6),
)
