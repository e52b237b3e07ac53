"""LFM2 and LFM2.5 (arXiv:2511.23404): gated short convolutions in most layers, attention in the others."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import number, whole
from settle.model.architectures import (
    TINY_SIZES,
    Architecture,
    GgufFields,
    GgufKeys,
    HfConfig,
    Tensors,
    Values,
)
from settle.model.architectures._layer_types import Hybrid
from settle.model.config import LayerOptions, ShortConvolution

Kind = Literal["conv", "full_attention"]


class Lfm2(Hybrid):
    """An LFM2 decoder. `intermediate_size` is the feed-forward's actual width."""

    model_type = "lfm2"
    gguf_architecture = "lfm2"
    HF_CLASS = "Lfm2ForCausalLM"
    HF_DEFAULTS = {
        "max_position_embeddings": 128000, "rope_theta": 1e6, "num_key_value_heads": 8, "tie_word_embeddings": True,
    }  # fmt: skip
    HF_FIXED = {}
    ATTENDING, OTHER, PERIOD, FIRST = "full_attention", "conv", 3, 2
    HF_NAMES = {
        "self_attn.o_proj": "self_attn.out_proj",
        "self_attn.q_norm": "self_attn.q_layernorm",
        "self_attn.k_norm": "self_attn.k_layernorm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "input_layernorm": "operator_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.norm": "model.embedding_norm",
    }
    GGUF_MODEL = Architecture.GGUF_MODEL | {"model.norm": "token_embd_norm"}
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "conv.in_proj": "shortconv.in_proj",
        "conv.conv": "shortconv.conv",
        "conv.out_proj": "shortconv.out_proj",
    }

    conv_L_cache: int = Field(3, gt=1, description="tokens that a convolution sees, its own included")
    conv_bias: bool = Field(False, description="biases of the convolutions and of their linears")
    layer_types: tuple[Kind, ...] = Field((), description="mixer of each layer; every third attends if empty")

    def recurrence(self, layer: int) -> ShortConvolution | None:
        return None if self.attends(layer) else ShortConvolution(self.conv_L_cache, self.conv_bias)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), head_norms=True)

    def to_hf_config(self) -> Values:
        config = super().to_hf_config()
        own: Values = {"norm_eps": config.pop("rms_norm_eps"), "block_auto_adjust_ff_dim": False}
        own |= {"block_dim": self.hidden_size, "block_multiple_of": 1, "block_ffn_dim_multiplier": 1.0}  # for mlx-lm
        return config | own | {"rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}}

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        values["rms_norm_eps"] = config.get("norm_eps", 1e-5)
        values["tie_word_embeddings"] = config.get("tie_embedding", values["tie_word_embeddings"])
        layers = range(whole(config, "num_hidden_layers"))
        attending = config.get("full_attn_idxs") or list(layers)
        if not values.get("layer_types") and isinstance(attending, list):
            values["layer_types"] = ["full_attention" if i in attending else "conv" for i in layers]
        inner = whole(config, "block_ff_dim" if config.get("block_ff_dim") else "intermediate_size")
        if config.get("block_auto_adjust_ff_dim", True):
            inner, multiple = int(2 * inner / 3), int(number({"multiple": 256, **config}, "block_multiple_of"))
            times = config.get("block_ffn_dim_multiplier", 1.0)
            inner = inner if times is None else -(-int(float(str(times)) * inner) // multiple) * multiple
        return values | {"intermediate_size": inner}

    def gguf_metadata(self) -> GgufKeys:
        if self.conv_bias:
            raise FormatError("llama.cpp adds no biases in the convolutions of an LFM2", "export it as safetensors")
        heads = [self.num_key_value_heads if self.attends(i) else 0 for i in range(self.num_hidden_layers)]
        own: GgufKeys = {"attention.head_count_kv": heads, "shortconv.l_cache": self.conv_L_cache}
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in own.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        layers = range(whole(values, "num_hidden_layers"))
        kinds = ["full_attention" if f"blk.{i}.attn_q.weight" in tensors else "conv" for i in layers]
        return values | {"layer_types": kinds, "conv_L_cache": fields.whole("shortconv.l_cache")}


Lfm2.TINY = Lfm2(
    **TINY_SIZES | {"num_hidden_layers": 3, "rope_theta": 1e6, "tie_word_embeddings": True},
    layer_types=("conv", "full_attention", "conv"),
)
