"""What the Gemmas share: 2 and 3 (arXiv:2408.00118, arXiv:2503.19786), and 3n and 4 of sizes E2B and E4B.

Norms before and behind each branch, a GELU gate, scaled embeddings, and layers that look back over a window only. In
3n and 4 the last layers read the keys and values of earlier ones, and each token gives every layer an input of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import texts, whole
from settle.model.architectures import Architecture, GgufFields, GgufKeys, HfConfig, Rows, Shapes, Tensors, Values
from settle.model.architectures._layer_types import WindowPattern
from settle.model.config import DecoderOptions, LayerOptions, Rope

_HF_FIXED: Values = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}
_GGUF_LAYER = Architecture.GGUF_LAYER | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_OF_BORROWED = re.compile(r"(?:layers|blk)\.(\d+)\.(?:self_attn\.(?:k_proj|v_proj|k_norm)|attn_(?:k|v|k_norm))\.weight")


class Gemma(WindowPattern):
    """A Gemma 2 or 3, whose norms multiply by 1 + weight. A GGUF file holds 1 + weight of each norm.

    LARGEST: number of layers of the one size whose scores llama.cpp scales by the width over the heads; all others it
    scales by the head's width.
    """

    LARGEST: ClassVar[int]
    HF_FIXED = _HF_FIXED | {"use_bidirectional_attention": False}
    GGUF_LAYER = _GGUF_LAYER

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


class GemmaE(Architecture):
    """A Gemma 3n or 4, most of whose numbers are a table that a token only looks up: of E2B, two thousand million work.

    PERIOD: of the layers that a `config.json` does not name, the last of so many sees everything. LAST_SEES_ALL: and
    the last of all whatever it is named, as transformers has it. `rope_theta` is of the layers that see everything.
    """

    PERIOD: ClassVar[int]
    LAST_SEES_ALL: ClassVar[bool] = False
    HF_FIXED = _HF_FIXED
    GGUF_MODEL = Architecture.GGUF_MODEL | {
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
    }
    GGUF_LAYER = _GGUF_LAYER | {
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
    }

    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square before its root")
    tie_word_embeddings: bool = Field(True, description="one table for input and output")
    rope_theta: float = Field(1e6, gt=0, description="base of the rotary frequencies of layers that see everything")
    rope_local_base_freq: float = Field(10000.0, gt=0, description="the same of layers that slide")
    sliding_window: int = Field(512, gt=0, description="tokens that a query of a sliding layer sees")
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] = Field(
        (), description="kind of each layer; the last of each period sees everything if empty"
    )
    num_kv_shared_layers: int = Field(0, ge=0, description="last layers that read keys and values of earlier ones")
    hidden_size_per_layer_input: int = Field(0, ge=0, description="width of what a token gives each layer; 0: nothing")
    final_logit_softcapping: float | None = Field(None, gt=0, description="logits stay below it, smoothly")

    @model_validator(mode="before")
    @classmethod
    def _each_layer(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        number = int(values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default))
        kinds = list(values.get("layer_types") or ())
        if not kinds:
            kinds = ["sliding_attention" if (i + 1) % cls.PERIOD else "full_attention" for i in range(number)]
        if cls.LAST_SEES_ALL:
            kinds[-1] = "full_attention"
        return {**values, "layer_types": kinds}

    @model_validator(mode="after")
    def _lenders(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name as many layers as num_hidden_layers")
        if set(self.layer_types[self.first_shared :]) - set(self.layer_types[: self.first_shared]):
            raise ValueError("num_kv_shared_layers leaves no earlier layer of the kind to read keys and values of")
        if self.rope_scaling is not None:
            raise ValueError("rope_scaling is not supported in this family")
        return self

    @property
    def first_shared(self) -> int:
        """The first layer that reads keys and values of an earlier one."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def shortened(self, layers: int) -> Self:
        kinds = [self.layer_types[(i + 1) * self.num_hidden_layers // layers - 1] for i in range(layers)]
        shared = self.num_kv_shared_layers * layers // self.num_hidden_layers
        while set(kinds[layers - shared :]) - set(kinds[: layers - shared]):
            shared -= 1
        return self.with_fields(num_hidden_layers=layers, layer_types=kinds, num_kv_shared_layers=shared)

    def layer_parameters(self, layer: int) -> Shapes:
        o, width = self.layer_options(layer), self.hidden_size
        heads = {"q": o.heads} if o.borrows else {"q": o.heads, "k": o.kv_heads, "v": o.kv_heads}
        shapes: Shapes = {f"self_attn.{x}_proj.weight": (n * o.head_dim, width) for x, n in heads.items()}
        shapes |= {f"self_attn.{x}_norm.weight": (o.head_dim,) for x in heads if x != "v"}
        shapes["self_attn.o_proj.weight"] = (width, o.heads * o.head_dim)
        shapes |= {f"mlp.{x}_proj.weight": (o.inner, width) for x in ("gate", "up")}
        shapes |= {"mlp.down_proj.weight": (width, o.inner)} | {f"{norm}.weight": (width,) for norm in o.norms()}
        if o.per_layer_input:
            shapes["per_layer_input_gate.weight"] = (o.per_layer_input, width)
            shapes["per_layer_projection.weight"] = (width, o.per_layer_input)
            shapes["post_per_layer_input_norm.weight"] = (width,)
        return shapes

    @property
    def per_layer_rows(self) -> int:
        """Rows of the table of what tokens give each layer."""
        return self.vocab_size

    def parameters(self) -> Shapes:
        shapes = super().parameters()
        if self.hidden_size_per_layer_input:
            wide = self.num_hidden_layers * self.hidden_size_per_layer_input
            shapes["model.embed_tokens_per_layer.weight"] = (self.per_layer_rows, wide)
            shapes["model.per_layer_model_projection.weight"] = (wide, self.hidden_size)
            shapes["model.per_layer_projection_norm.weight"] = (self.hidden_size_per_layer_input,)
        return shapes

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    def rope(self, layer: int) -> Rope:
        theta = self.rope_theta if self.window(layer) is None else self.rope_local_base_freq
        return Rope(theta, rotary_dim=self.head_dim)

    def layer_options(self, layer: int) -> LayerOptions:
        kind, first = self.layer_types[layer], self.first_shared
        is_last = self.num_kv_shared_layers and layer < first and kind not in self.layer_types[layer + 1 : first]
        return replace(
            super().layer_options(layer),
            head_norms=True,
            value_norms=True,
            sandwich_norms=True,
            activation="gelu_tanh",
            query_scale=1.0,
            lends=kind if is_last else "",
            borrows=kind if layer >= first else "",
            per_layer_input=self.hidden_size_per_layer_input,
        )

    def options(self) -> DecoderOptions:
        scale = self.hidden_size**0.5
        return replace(super().options(), embedding_scale=scale, logit_soft_cap=self.final_logit_softcapping)

    def flops_per_token(self, context: int) -> float:
        inputs = self.num_hidden_layers * self.hidden_size_per_layer_input
        return super().flops_per_token(context) + 6.0 * inputs * self.hidden_size

    def kept_beside_layers(self, frozen: bool) -> float:
        # the row that the layers' inputs are made of
        return self.hidden_size if self.hidden_size_per_layer_input and not frozen else 0

    def is_unused(self, name: str) -> bool:
        found = _OF_BORROWED.search(name)
        return found is not None and int(found[1]) >= self.first_shared

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        values["layer_types"] = texts(config, "layer_types")
        return values
