"""What Gemma 2 and Gemma 3 share (arXiv:2408.00118, arXiv:2503.19786).

Norms before and behind each branch that multiply by 1 + weight, a GELU gate, scaled embeddings, and layers that look
back over a window only.
"""

from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import whole
from settle.model.architectures import Architecture, GgufFields, GgufKeys, Rows, Tensors, Values
from settle.model.architectures._layer_types import WindowPattern
from settle.model.config import DecoderOptions, LayerOptions


class Gemma(WindowPattern):
    """A Gemma decoder. A GGUF file holds 1 + weight of each norm.

    LARGEST: number of layers of the one size whose scores llama.cpp scales by the width over the heads; all others it
    scales by the head's width.
    """

    LARGEST: ClassVar[int]
    HF_FIXED = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "use_bidirectional_attention": False,
    }
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square before its root")
    tie_word_embeddings: bool = Field(True, description="one table for input and output")
    query_pre_attn_scalar: int = Field(256, gt=0, description="scores are divided by its root")
    final_logit_softcapping: float | None = Field(None, gt=0, description="logits stay below it, smoothly")

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(
            super().layer_options(layer),
            sandwich_norms=True,
            norm_offset=1.0,
            activation="gelu_tanh",
            query_scale=self.query_pre_attn_scalar**-0.5,
        )

    def options(self) -> DecoderOptions:
        return replace(
            super().options(), embedding_scale=self.hidden_size**0.5, logit_soft_cap=self.final_logit_softcapping
        )

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        scaled = super().sized(num_parameters, vocab_size, context)
        return scaled.model_copy(update={"query_pre_attn_scalar": scaled.head_dim})

    def to_hf_config(self) -> Values:
        return super().to_hf_config() | {"hidden_act": "gelu_pytorch_tanh"}

    def gguf_metadata(self) -> GgufKeys:
        sizes = (self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.head_dim)
        implied = self._implied_scalar(*sizes)
        if self.query_pre_attn_scalar != implied:
            raise FormatError(
                f"llama.cpp divides this model's scores by the root of {implied}, it asks for "
                f"{self.query_pre_attn_scalar}",
                "export it as safetensors",
            )
        return super().gguf_metadata()

    @classmethod
    def _implied_scalar(cls, layers: int, width: int, heads: int, head_dim: int) -> int:
        return width // heads if layers == cls.LARGEST else head_dim

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        sizes = (whole(values, k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"))
        values["query_pre_attn_scalar"] = cls._implied_scalar(*sizes)
        return values

    def to_gguf(self, name: str, values: Rows) -> Rows:
        return values + 1 if name.endswith("norm.weight") else values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        return values - 1 if name.endswith("norm.weight") else values
