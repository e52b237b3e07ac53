"""What the families share: fields, and what is in a layer.

Letters: D hidden width, F feed-forward width, H heads, K key/value heads, d head width, V vocabulary.
"""

from typing import Self

from pydantic import Field, model_validator

from settle.model.architectures import Architecture
from settle.model.config import DecoderOptions, LayerOptions, Rope
from settle.model.layers.rope import RopeScaling, rope_options


class TransformerLayers(Architecture):
    """A pre-norm decoder with rotary positions, grouped queries and a gated feed-forward."""

    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(704, gt=0, description="width of the feed-forward")
    num_hidden_layers: int = Field(4, gt=0, description="layers")
    num_attention_heads: int = Field(4, gt=0, description="query heads")
    num_key_value_heads: int = Field(4, gt=0, description="key/value heads; divides the query heads")
    head_dim: int = Field(64, gt=0, multiple_of=2, description="width of a head")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square before its root")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="how the frequencies are stretched")
    tie_word_embeddings: bool = Field(False, description="one table for input and output")
    bos_token_id: int | None = Field(None, description="id that opens a text")
    eos_token_id: int | tuple[int, ...] | None = Field(None, description="id that ends a text, or several")
    pad_token_id: int | None = Field(None, description="id that fills rows up")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self

    def layer_parameters(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names, without `model.layers.<i>.`, and shapes."""
        return self.attention_parameters() | self.feed_forward_parameters() | self.norm_parameters()

    def attention_parameters(self) -> dict[str, tuple[int, ...]]:
        width, query = self.hidden_size, self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj.weight": (query, width),
            "self_attn.k_proj.weight": (key, width),
            "self_attn.v_proj.weight": (key, width),
            "self_attn.o_proj.weight": (width, query),
        }

    def feed_forward_parameters(self) -> dict[str, tuple[int, ...]]:
        width, inner = self.hidden_size, self.intermediate_size
        return {
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
        }

    def norm_parameters(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (self.hidden_size,))

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, its own included; None for all before it."""
        return None

    def rope(self, layer: int) -> Rope:
        """The rotation of this layer's queries and keys."""
        return rope_options(self.rotary_width, self.rope_theta, self.max_position_embeddings, self.rope_scaling)

    @property
    def rotary_width(self) -> int:
        """Numbers of a head that turn."""
        return self.head_dim

    def layer_options(self, layer: int) -> LayerOptions:
        """What this layer asks of the layers' code."""
        return LayerOptions(
            width=self.hidden_size,
            inner=self.intermediate_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
            rope=self.rope(layer),
            window=self.window(layer),
        )

    def options(self) -> DecoderOptions:
        """What the whole decoder asks of it."""
        layers = tuple(map(self.layer_options, range(self.num_hidden_layers)))
        return DecoderOptions(self.vocab_size, layers, self.tie_word_embeddings)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        table = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.num_hidden_layers):
            own = self.layer_parameters(layer)
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": table}
