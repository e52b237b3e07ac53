"""gpt-oss (arXiv:2508.10925): mixtures of experts with biases and a clamped gate, and attention with sinks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Self

from pydantic import Field

from settle.formats import TensorLike
from settle.formats.gguf.metadata import section
from settle.model.architectures import TINY_SIZES, GgufKeys, HfConfig, Tensors, Values
from settle.model.architectures._experts import Mixture
from settle.model.architectures._interleaved_experts import stack, unstack
from settle.model.architectures._layer_types import WindowPattern
from settle.model.config import Experts, LayerOptions
from settle.model.layers.rope import RopeScaling

_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}


class GptOss(Mixture, WindowPattern):
    """A gpt-oss decoder: every second layer sees all. Adapters adapt its attention unless they name its experts.

    Hugging Face's files stack the experts of a layer, with rows of gate and up in turn: in MXFP4, or as numbers with
    inputs and outputs exchanged. A GGUF file has gates and ups apart.
    """

    PERIOD = 2
    model_type = "gpt_oss"
    gguf_architecture = "gpt-oss"
    HF_CLASS = "GptOssForCausalLM"
    HF_NUMBER = "num_local_experts"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-5, "sliding_window": 128, "max_position_embeddings": 131072, "head_dim": 64,
        "num_key_value_heads": 8, "num_experts": 128, "num_experts_per_tok": 4, "rope_theta": 150000.0,
        "rope_scaling": _YARN,
    }  # fmt: skip
    HF_FIXED = {"hidden_act": "silu", "attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0}
    HF_NAMES = {"mlp.gate": "mlp.router"}
    GGUF_LAYER = (
        WindowPattern.GGUF_LAYER
        | Mixture.EXPERTS_IN_GGUF
        | {"post_attention_layernorm": "post_attention_norm", "self_attn.sinks": "attn_sinks.weight"}
    )
    PEFT_NAMES_EXPERTS = False
    MAY_BE_TIED = False

    sliding_window: int = Field(128, gt=0, description="tokens that a query of a sliding layer sees")

    @property
    def mixture(self) -> Experts:
        return replace(super().mixture, linear_bias=True, only_named=True)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(
            super().layer_options(layer), qkv_bias=True, out_bias=True, sinks=True, activation="clamped_swiglu"
        )

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        dense = super().sized(num_parameters, vocab_size, context)
        return dense.with_fields(intermediate_size=max(32, dense.intermediate_size // 8 // 32 * 32))

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        if section(config, "quantization_config").get("quant_method") == "mxfp4":
            config = {key: value for key, value in config.items() if key != "quantization_config"}
        return super().from_hf_config(config)

    def to_hf_config(self) -> Values:
        plain = {"rope_type": "default", "rope_theta": self.rope_theta}  # nothing would mean its own YaRN
        return super().to_hf_config() | ({"rope_parameters": plain} if self.rope_scaling is None else {})

    def gguf_metadata(self) -> GgufKeys:
        return super().gguf_metadata() | {f"{self.gguf_family}.expert_feed_forward_length": self.intermediate_size}

    def expert_parameters(self) -> dict[str, list[list[str]]]:
        return {}  # PEFT's adapters of rows in turn are neither read nor written

    def unstack_experts(self, tensors: Tensors) -> Tensors:
        return unstack(tensors, self.num_experts, self.hidden_size, self.intermediate_size)

    def stack_experts(self, tensors: Mapping[str, TensorLike]) -> Mapping[str, TensorLike]:
        return stack(tensors)


GptOss.TINY = GptOss(
    **TINY_SIZES, num_experts=6, num_experts_per_tok=2, sliding_window=8, rope_theta=1000.0,
    rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
)  # fmt: skip
