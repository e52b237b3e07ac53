"""The size and the cost of a transformer.

Letters: D hidden width, F feed-forward width, H heads, K key/value heads, d head width, V vocabulary, T context.
"""

import math
from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from settle.model.architectures import Architecture
from settle.model.config import DecoderOptions, LayerOptions, Rope, default_shape
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
        """Return the rotation of this layer's queries and keys."""
        return rope_options(self.rotary_width, self.rope_theta, self.max_position_embeddings, self.rope_scaling)

    @property
    def rotary_width(self) -> int:
        """Numbers of a head that turn."""
        return self.head_dim

    def layer_options(self, layer: int) -> LayerOptions:
        """Return the options of one layer for the layers' code."""
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
        """Return the options of the whole decoder."""
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


FLASH_WIDTH = 256  # numbers of a head at most
TURN_BYTES = 4  # a number of a head: half of them are cosines, half of them sines
LSE_BYTES = 4  # a token and head: the logarithm of the sum of its exponentials


class TransformerSize(TransformerLayers):
    """Counts of numbers, FLOPs and bytes."""

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.parameters().values()))

    @property
    def num_non_embedding_parameters(self) -> int:
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_parameters - tables * self.vocab_size * self.hidden_size

    def active_numbers(self, layer: int) -> int:
        """Numbers of a layer's matrices that one token is multiplied by."""
        return sum(math.prod(shape) for shape in self.layer_parameters(layer).values() if len(shape) > 1)

    def flops_per_token(self, context: int) -> float:
        # Two FLOPs a multiply-add, one pass forward and two backward.
        products, scores = self.vocab_size * self.hidden_size, 0.0
        for layer in range(self.num_hidden_layers):
            products += self.active_numbers(layer)
            scores += 2 * self.num_attention_heads * self.head_dim * keys_met(context, self.window(layer))
        return 6.0 * (products + scores)

    def activation_bytes_per_token(
        self,
        context: int,
        bytes_per_number: int,
        adapter: Mapping[str, int] | None = None,
        is_flash: bool = False,
    ) -> float:
        # After the layers: the final norm and the gradient of its result, which the loss computes at once.
        numbers = 2.0 * self.hidden_size + 1
        for layer in self.options().layers:
            attends = layer.heads * LSE_BYTES / bytes_per_number if is_flash and is_for_flash(layer) else None
            numbers += _kept_by_attention(layer, context, attends) + _kept_by_feed_forward(layer, adapter is not None)
        numbers += sum(self.share_met(name) * adapter_numbers for name, adapter_numbers in (adapter or {}).items())
        return bytes_per_number * numbers + (self._turns() if is_flash else 0)

    def _turns(self) -> int:
        """Bytes a token of the cosines and sines that layers which turn alike share, where attention is fused."""
        layers = [layer for layer in self.options().layers if is_for_flash(layer)]
        tables = {(o.head_dim, o.heads + o.kv_heads, o.rope, o.query_scale) for o in layers}
        return sum(width * heads * TURN_BYTES for width, heads, *_ in tables)

    def share_met(self, linear: str) -> float:
        """Return the share of all tokens that pass through a linear of a layer."""
        return 1.0

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = default_shape(num_parameters, vocab_size)
        return cls(
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=shape.head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=context,
            tie_word_embeddings=shape.tied,
        )


def keys_met(context: int, window: int | None) -> float:
    """Keys that a query attends to on average over a text of `context` tokens."""
    visible = min(context, window or context)
    return visible - visible * (visible - 1) / (2 * context)


def is_for_flash(o: LayerOptions) -> bool:
    """Return whether torch's attention on packed rows knows a layer's scores and the width of its heads."""
    return o.soft_cap is None and o.head_dim <= FLASH_WIDTH and o.head_dim % 8 == 0


def _kept_by_attention(o: LayerOptions, context: int, flash: float | None) -> float:
    """Count the numbers per token that the backward pass of one layer's attention needs.

    See `activation_bytes_per_token`. flash: numbers that a kernel keeps in the place of the probabilities; None: it
    keeps those.
    """
    query, key = o.heads * o.head_dim, o.kv_heads * o.head_dim
    numbers: float = o.width + 1 + query
    if flash is None:
        numbers += query + 2 * key + o.heads * context * (1 if o.soft_cap is None else 2)
    else:  # keys and values are repeated for the query heads that share them; the rotated heads stay beside them
        numbers += query + key + 2 * query + flash
    if o.head_norms:
        numbers += query + key + o.heads + o.kv_heads
    if o.sandwich_norms:
        numbers += o.width + 1
    return numbers


def _kept_by_feed_forward(o: LayerOptions, frozen: bool) -> int:
    """Count the numbers per token that the backward pass of one layer's feed-forward needs.

    Trained, it keeps gate, up, what the gate lets through, and the product.
    """
    times = 2 if frozen else 4
    numbers = o.width + 1 + (o.width + 1 if o.sandwich_norms else 0)
    if o.experts is None:
        return numbers + times * o.inner
    e = o.experts
    # beside the experts: the norm's result, the router's chances and choice, and each expert's rows in and out
    return numbers + o.width + 2 * e.num + e.top * (2 * o.width + times * e.inner + 1)
