"""What Gemma 2 and Gemma 3 share (arXiv:2408.00118, arXiv:2503.19786).

Norms before and behind each branch that multiply by 1 + weight, a GELU gate, scaled embeddings, and layers that look
back over a window only.
"""

from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import texts, whole
from settle.model.architectures import Architecture, GgufFields, GgufKeys, HfConfig, Rows, Shapes, Tensors, Values
from settle.model.config import DecoderOptions, LayerOptions

NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


class Gemma(Architecture):
    """A Gemma decoder. A GGUF file holds 1 + weight of each norm.

    PERIOD: the last of this many layers sees everything. LARGEST: number of layers of the one size whose scores
    llama.cpp scales by the width over the heads; all others it scales by the head's width.
    """

    PERIOD: ClassVar[int]
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
    sliding_window: int = Field(4096, gt=0, description="tokens that a query of a sliding layer sees")
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(
        None, description="which layers slide; None: all but the last of each period"
    )
    final_logit_softcapping: float | None = Field(None, gt=0, description="logits stay below it, smoothly")

    @model_validator(mode="after")
    def _a_type_for_each_layer(self) -> Self:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name each layer")
        return self

    def shortened(self, layers: int) -> Self:
        return self.with_fields(num_hidden_layers=layers, layer_types=None)

    def slides(self, layer: int) -> bool:
        """Return whether a layer looks back over the window only."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % self.PERIOD != 0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.slides(layer) else None

    def norm_parameters(self) -> Shapes:
        return {f"{name}.weight": (self.hidden_size,) for name in NORMS}

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

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        layers, pattern = whole(config, "num_hidden_layers"), "sliding_window_pattern"
        period = whole(config, pattern) if config.get(pattern) else cls.PERIOD
        types = texts(config, "layer_types") or _layer_types(layers, period)
        values["layer_types"] = None if types == _layer_types(layers, cls.PERIOD) else types
        return values

    def to_hf_config(self) -> Values:
        types = self.layer_types or _layer_types(self.num_hidden_layers, self.PERIOD)
        return super().to_hf_config() | {"layer_types": list(types), "hidden_act": "gelu_pytorch_tanh"}

    def gguf_metadata(self) -> GgufKeys:
        sizes = (self.num_hidden_layers, self.hidden_size, self.num_attention_heads, self.head_dim)
        implied = self._implied_scalar(*sizes)
        if self.query_pre_attn_scalar != implied:
            raise FormatError(
                f"llama.cpp divides this model's scores by the root of {implied}, it asks for "
                f"{self.query_pre_attn_scalar}",
                "export it as safetensors",
            )
        if any(self.slides(i) != ((i + 1) % self.PERIOD != 0) for i in range(self.num_hidden_layers)):
            raise FormatError(
                f"llama.cpp lets all but each {self.PERIOD}th layer of this family slide, this model has others",
                "export it as safetensors",
            )
        return super().gguf_metadata() | {f"{self.gguf_architecture}.attention.sliding_window": self.sliding_window}

    @classmethod
    def _implied_scalar(cls, layers: int, width: int, heads: int, head_dim: int) -> int:
        return width // heads if layers == cls.LARGEST else head_dim

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        sizes = (whole(values, k) for k in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"))
        values["query_pre_attn_scalar"] = cls._implied_scalar(*sizes)
        values["sliding_window"] = fields.number("attention.sliding_window", 4096)
        return values

    def to_gguf(self, name: str, values: Rows) -> Rows:
        return values + 1 if name.endswith("norm.weight") else values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        return values - 1 if name.endswith("norm.weight") else values


def _layer_types(layers: int, period: int) -> list[str]:
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
