"""Phi-3, Phi-3.5 and Phi-4-mini (arXiv:2404.14219): fused projections, long-rope, part of a head turning."""

from dataclasses import replace

from pydantic import Field

from settle.formats.gguf.metadata import number, section
from settle.model.architectures import TINY_SIZES, Architecture, GgufFields, GgufKeys, HfConfig, Tensors, Values
from settle.model.config import LayerOptions
from settle.model.layers.rope import RopeScaling, attention_factor

_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


class Phi3(Architecture):
    """A Phi-3 decoder.

    llama.cpp computes it without windows: a GGUF file's context ends where they would begin to hide something.
    """

    model_type = "phi3"
    gguf_architecture = "phi3"
    QUERIES_ARE_WIDTH = True
    HF_CLASS = "Phi3ForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False}
    GGUF_LAYER = {
        "input_layernorm": "attn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }

    sliding_window: int | None = Field(None, gt=0, description="tokens that a query sees; None for all")
    original_max_position_embeddings: int = Field(4096, gt=0, description="tokens of context before stretching")
    partial_rotary_factor: float = Field(1.0, gt=0, le=1, description="share of a head that turns")

    def window(self, layer: int) -> int | None:
        return self.sliding_window

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.partial_rotary_factor)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), fused=True, fused_gate_up=True)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        rope = section(config, "rope_parameters")
        for key in ("original_max_position_embeddings", "partial_rotary_factor"):
            values.setdefault(key, rope.get(key, cls.model_fields[key].default))
        scaling = values["rope_scaling"]
        if isinstance(scaling, RopeScaling):
            update = {"original_max_position_embeddings": values["original_max_position_embeddings"]}
            values["rope_scaling"] = scaling.model_copy(update=update)
        return values

    def gguf_context(self) -> int:
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)

    def gguf_metadata(self) -> GgufKeys:
        keys: GgufKeys = {"rope.scaling.original_context_length": self.original_max_position_embeddings}
        if self.rope_scaling is not None:
            keys["rope.scaling.attn_factor"] = attention_factor(self.rope_scaling, self.max_position_embeddings)
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        scaling = self.rope_scaling
        return {} if scaling is None else {_LONG: scaling.long_factor or (), _SHORT: scaling.short_factor or ()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        old = fields.number("rope.scaling.original_context_length", number(values, "max_position_embeddings"))
        head_dim = number(values, "head_dim")
        values["original_max_position_embeddings"] = old
        values["partial_rotary_factor"] = fields.number("rope.dimension_count", head_dim) / head_dim
        window = fields.get("attention.sliding_window") or None
        values["sliding_window"] = window
        if _LONG in tensors:
            values["rope_scaling"] = {
                "rope_type": "longrope",
                "long_factor": tensors[_LONG].load().tolist(),
                "short_factor": tensors[_SHORT].load().tolist(),
                "original_max_position_embeddings": old,
                "attention_factor": fields.get("rope.scaling.attn_factor"),
            }
        return values


Phi3.TINY = Phi3(**TINY_SIZES)
