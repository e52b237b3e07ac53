"""GPT-NeoX and Pythia (arXiv:2204.06745, arXiv:2304.01373): LayerNorms, biases, and a feed-forward without a gate.

It reads what attention reads. Queries, keys and values of a head lie together, in a GGUF file those of all heads.
"""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field

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
from settle.model.config import LayerOptions


class GptNeoX(Architecture):
    """A GPT-NeoX decoder. llama.cpp always computes the approximation of its activation."""

    model_type = "gpt_neox"
    gguf_architecture = "gptneox"
    QUERIES_ARE_WIDTH = True
    MAY_BE_TIED = False
    HF_CLASS = "GPTNeoXForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
    HF_FIXED = {"attention_bias": True}
    HF_NAMES = {
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "model.layers": "gpt_neox.layers",
        "lm_head": "embed_out",
        "self_attn.qkv_proj": "attention.query_key_value",
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    GGUF_EPSILON = "attention.layer_norm_epsilon"
    GGUF_LAYER = Architecture.GGUF_LAYER | {"self_attn.qkv_proj": "attn_qkv"}

    hidden_act: Literal["gelu", "gelu_fast"] = Field("gelu", description="of the feed-forward")
    use_parallel_residual: bool = Field(True, description="whether the feed-forward reads what attention reads")
    rotary_pct: float = Field(0.25, gt=0, le=1, description="share of a head that turns")

    @property
    def rotary_width(self) -> int:
        return int(self.head_dim * self.rotary_pct)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(
            super().layer_options(layer),
            qkv_bias=True,
            out_bias=True,
            mlp_bias=True,
            centred_norms=True,
            parallel=self.use_parallel_residual,
            gated=False,
            activation="gelu" if self.hidden_act == "gelu" else "gelu_tanh",
            fused=True,
            fused_by_head=True,
        )

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        gated = super().sized(num_parameters, vocab_size, context)
        return gated.with_fields(intermediate_size=4 * gated.hidden_size)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        share = section(config, "rope_parameters").get("partial_rotary_factor")
        renamed = {
            "rms_norm_eps": config.get("layer_norm_eps"),
            "rope_theta": config.get("rotary_emb_base"),
            "rotary_pct": share,
        }
        return values | {field: value for field, value in renamed.items() if value is not None}

    def to_hf_config(self) -> Values:
        config = super().to_hf_config()
        own = ("rms_norm_eps", "num_key_value_heads", "head_dim")
        renamed = {"layer_norm_eps": self.rms_norm_eps, "rotary_emb_base": self.rope_theta}
        return {key: value for key, value in config.items() if key not in own} | renamed

    def gguf_metadata(self) -> GgufKeys:
        parallel = {f"{self.gguf_architecture}.use_parallel_residual": self.use_parallel_residual}
        return super().gguf_metadata() | parallel

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        head_dim = number(values, "head_dim")
        values["rotary_pct"] = fields.number("rope.dimension_count", head_dim) / head_dim
        values["use_parallel_residual"] = fields.get("use_parallel_residual", True)
        return values

    def to_gguf(self, name: str, values: Rows) -> Rows:
        return self._swapped(values, self.num_attention_heads, 3) if ".qkv_proj." in name else values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        return self._swapped(values, 3, self.num_attention_heads) if ".qkv_proj." in name else values

    def _swapped(self, rows: Rows, outer: int, inner: int) -> Rows:
        """Exchange the first two axes of rows (outer · inner · d, …) of heads."""
        return rows.reshape(outer, inner, self.head_dim, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)


GptNeoX.TINY = GptNeoX(**TINY_SIZES | {"num_key_value_heads": 4, "intermediate_size": 128}, rotary_pct=0.5)
