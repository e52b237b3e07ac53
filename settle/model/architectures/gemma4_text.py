"""Gemma 4, its text model: E2B and E4B.

Layers that see everything have wider heads, of which a part turns; the last layers read the keys and values of earlier
ones; each token gives every layer an input of its own. Source: Hugging Face's `modeling_gemma4.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section, texts
from settle.model.architectures import (
    TINY_SIZES,
    Architecture,
    GgufFields,
    GgufKeys,
    HfConfig,
    Shapes,
    Tensors,
    Values,
)
from settle.model.config import DecoderOptions, LayerOptions, Rope

Kind = Literal["full_attention", "sliding_attention"]
_PERIOD = 6  # of the layers that a config.json does not name, the last of so many sees everything
_NO_TURN = 1e30  # what a GGUF file divides the frequency of a pair by that does not turn
_OF_BORROWED = re.compile(r"(?:layers|blk)\.(\d+)\.(?:self_attn\.(?:k_proj|v_proj|k_norm)|attn_(?:k|v|k_norm))\.weight")


class Gemma4Text(Architecture):
    """A Gemma 4 decoder. `rope_theta` is of the layers that see everything, `head_dim` of those that slide."""

    model_type = "gemma4_text"
    MULTIMODAL = ("gemma4",)
    gguf_architecture = "gemma4"
    HF_CLASS = "Gemma4ForCausalLM"
    HF_DEFAULTS = {
        "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
        "hidden_size_per_layer_input": 256,
    }  # fmt: skip
    HF_FIXED = {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
    }
    GGUF_MODEL = Architecture.GGUF_MODEL | {
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
    }
    HF_NAMES = {"layer_scalar.weight": "layer_scalar"}
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "per_layer_input_gate": "inp_gate",
        "per_layer_projection": "proj",
        "post_per_layer_input_norm": "post_norm",
        "layer_scalar": "layer_output_scale",
    }

    rms_norm_eps: float = Field(1e-6, gt=0, description="added to the mean square before its root")
    tie_word_embeddings: bool = Field(True, description="one table for input and output")
    rope_theta: float = Field(1e6, gt=0, description="base of the rotary frequencies of layers that see everything")
    rope_local_base_freq: float = Field(10000.0, gt=0, description="the same of layers that slide")
    partial_rotary_factor: float = Field(0.25, gt=0, le=1, description="share of a wide head that turns")
    global_head_dim: int = Field(512, gt=0, multiple_of=2, description="width of a head where a layer sees everything")
    sliding_window: int = Field(512, gt=0, description="tokens that a query of a sliding layer sees")
    layer_types: tuple[Kind, ...] = Field((), description="kind of each layer; every sixth sees everything if empty")
    num_kv_shared_layers: int = Field(0, ge=0, description="last layers that read keys and values of earlier ones")
    use_double_wide_mlp: bool = Field(False, description="twice the feed-forward in those layers")
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
            kinds = ["sliding_attention" if (i + 1) % _PERIOD else "full_attention" for i in range(number)]
        return {**values, "layer_types": [*kinds[:-1], "full_attention"]}  # of the last one as transformers has it

    @model_validator(mode="after")
    def _lenders(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name as many layers as num_hidden_layers")
        if set(self.layer_types[self._first_shared :]) - set(self.layer_types[: self._first_shared]):
            raise ValueError("num_kv_shared_layers leaves no earlier layer of the kind to read keys and values of")
        if self.rope_scaling is not None:
            raise ValueError("rope_scaling is not supported in this family")
        return self

    @property
    def _first_shared(self) -> int:
        return self.num_hidden_layers - self.num_kv_shared_layers

    def shortened(self, layers: int) -> Self:
        kinds = [self.layer_types[(i + 1) * self.num_hidden_layers // layers - 1] for i in range(layers)]
        shared = self.num_kv_shared_layers * layers // self.num_hidden_layers
        while set(kinds[layers - shared :]) - set(kinds[: layers - shared]):
            shared -= 1
        return self.with_fields(num_hidden_layers=layers, layer_types=kinds, num_kv_shared_layers=shared)

    # --- layers ---

    def layer_parameters(self, layer: int) -> Shapes:
        o, width = self.layer_options(layer), self.hidden_size
        heads = {"q": o.heads} if o.borrows else {"q": o.heads, "k": o.kv_heads, "v": o.kv_heads}
        shapes: Shapes = {f"self_attn.{x}_proj.weight": (n * o.head_dim, width) for x, n in heads.items()}
        shapes |= {f"self_attn.{x}_norm.weight": (o.head_dim,) for x in heads if x != "v"}
        shapes |= {"self_attn.o_proj.weight": (width, o.heads * o.head_dim), "layer_scalar.weight": (1,)}
        shapes |= {f"mlp.{x}_proj.weight": (o.inner, width) for x in ("gate", "up")}
        shapes |= {"mlp.down_proj.weight": (width, o.inner)} | {f"{norm}.weight": (width,) for norm in o.norms()}
        if o.per_layer_input:
            shapes["per_layer_input_gate.weight"] = (o.per_layer_input, width)
            shapes["per_layer_projection.weight"] = (width, o.per_layer_input)
            shapes["post_per_layer_input_norm.weight"] = (width,)
        return shapes

    def parameters(self) -> Shapes:
        shapes = super().parameters()
        if self.hidden_size_per_layer_input:
            wide = self.num_hidden_layers * self.hidden_size_per_layer_input
            shapes["model.embed_tokens_per_layer.weight"] = (self.vocab_size, wide)
            shapes["model.per_layer_model_projection.weight"] = (wide, self.hidden_size)
            shapes["model.per_layer_projection_norm.weight"] = (self.hidden_size_per_layer_input,)
        return shapes

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    def rope(self, layer: int) -> Rope:
        if self.window(layer) is not None:
            return Rope(self.rope_local_base_freq, rotary_dim=self.head_dim)
        width = self.global_head_dim
        turning = [self.rope_theta ** (-2 * i / width) for i in range(self._turning)]
        return Rope(self.rope_theta, (*turning, *[0.0] * (width // 2 - self._turning)), rotary_dim=width)

    @property
    def _turning(self) -> int:
        """Pairs of a wide head that turn."""
        return int(self.partial_rotary_factor * self.global_head_dim // 2)

    def layer_options(self, layer: int) -> LayerOptions:
        kind, first = self.layer_types[layer], self._first_shared
        is_last = self.num_kv_shared_layers and layer < first and kind not in self.layer_types[layer + 1 : first]
        return replace(
            super().layer_options(layer),
            inner=self.intermediate_size * (2 if self.use_double_wide_mlp and layer >= first else 1),
            head_dim=self.head_dim if kind == "sliding_attention" else self.global_head_dim,
            head_norms=True,
            value_norms=True,
            sandwich_norms=True,
            activation="gelu_tanh",
            query_scale=1.0,
            lends=kind if is_last else "",
            borrows=kind if layer >= first else "",
            per_layer_input=self.hidden_size_per_layer_input,
            has_scalar=True,
        )

    def options(self) -> DecoderOptions:
        scale = self.hidden_size**0.5
        return replace(super().options(), embedding_scale=scale, logit_soft_cap=self.final_logit_softcapping)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """Without inputs of the layers, whose table would be most of a small model."""
        scaled = super().sized(num_parameters, vocab_size, context)
        return scaled.with_fields(global_head_dim=scaled.head_dim)

    def flops_per_token(self, context: int) -> float:
        inputs = self.num_hidden_layers * self.hidden_size_per_layer_input
        return super().flops_per_token(context) + 6.0 * inputs * self.hidden_size

    def activation_bytes_per_token(
        self,
        context: int,
        bytes_per_number: int,
        adapter: Mapping[str, int] | None = None,
        is_flash: bool = False,
    ) -> float:
        kept = super().activation_bytes_per_token(context, bytes_per_number, adapter, is_flash)
        if adapter is None and self.hidden_size_per_layer_input:
            kept += bytes_per_number * self.hidden_size  # the row that the layers' inputs are made of
        return kept

    # --- files ---

    def is_unused(self, name: str) -> bool:
        found = _OF_BORROWED.search(name)
        return found is not None and int(found[1]) >= self._first_shared

    def to_hf_config(self) -> Values:
        config = super().to_hf_config()
        theta, share = config.pop("rope_theta"), config.pop("partial_rotary_factor")
        full = {"rope_type": "proportional", "rope_theta": theta, "partial_rotary_factor": share}
        local = {"rope_type": "default", "rope_theta": config.pop("rope_local_base_freq")}
        by_kind = {"full_attention": full, "sliding_attention": local}
        return config | {"rope_parameters": by_kind, "vocab_size_per_layer_input": self.vocab_size}

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        if config.get("use_bidirectional_attention") == "all":
            raise FormatError("use_bidirectional_attention = 'all' is not supported", "choose a model that writes")
        rows = config.get("vocab_size_per_layer_input", 262144)
        if values["hidden_size_per_layer_input"] and rows != config["vocab_size"]:
            raise FormatError(f"vocab_size_per_layer_input is {rows}, vocab_size is not", "they must be equal")
        if "per_layer_config" in config and "global_head_dim" not in config:
            values["global_head_dim"] = _global_head_dim(config)
        values["layer_types"] = texts(config, "layer_types")
        by_kind = section(config, "rope_parameters")
        full, local = section(by_kind, "full_attention"), section(by_kind, "sliding_attention")
        for kind, rope, done in (("full", full, "proportional"), ("sliding", local, "default")):
            if rope.get("rope_type", done) != done or rope.get("factor", 1.0) != 1.0:
                raise FormatError(f"the rotations of its {kind} layers are {rope}", f"only {done!r} ones are supported")
        values["rope_theta"] = full.get("rope_theta", 1e6)
        values["partial_rotary_factor"] = full.get("partial_rotary_factor", 1.0 if full else 0.25)
        values["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
        values["rope_scaling"] = None
        return values

    def gguf_metadata(self) -> GgufKeys:
        first, shared = self._first_shared, self.layer_types[self._first_shared :]
        lenders = {"full_attention": first - 1, "sliding_attention": first - 2}
        if any(self.layer_types[lenders[kind]] != kind for kind in shared):
            raise FormatError(
                "llama.cpp lets the last layers read the keys and values of the two layers before them, one that "
                "slides and one that sees everything: this model's are others",
                "export it as safetensors",
            )
        wide, slides = self.global_head_dim, [int(kind == "sliding_attention") for kind in self.layer_types]
        own: GgufKeys = {
            "attention.key_length": wide,
            "attention.value_length": wide,
            "attention.key_length_swa": self.head_dim,
            "attention.value_length_swa": self.head_dim,
            "attention.sliding_window": self.sliding_window,
            "attention.sliding_window_pattern": slides,
            "attention.shared_kv_layers": self.num_kv_shared_layers,
            "embedding_length_per_layer_input": self.hidden_size_per_layer_input,
            "rope.dimension_count": wide,
            "rope.dimension_count_swa": self.head_dim,
            "rope.freq_base_swa": self.rope_local_base_freq,
        }
        if self.use_double_wide_mlp and self.num_kv_shared_layers:
            own["feed_forward_length"] = [self.layer_options(i).inner for i in range(self.num_hidden_layers)]
        if self.final_logit_softcapping is not None:
            own["final_logit_softcapping"] = self.final_logit_softcapping
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in own.items()}

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        still = self.global_head_dim // 2 - self._turning
        return {"rope_freqs.weight": (*[1.0] * self._turning, *[_NO_TURN] * still)}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        inner, slides = fields.get("feed_forward_length"), fields.get("attention.sliding_window_pattern")
        if not isinstance(slides, list) or "rope_freqs.weight" not in tensors:
            raise FormatError("it lacks the kinds of its layers or their rope_freqs", "get the file again")
        widths = [int(width) for width in inner] if isinstance(inner, list) else [0]
        if isinstance(inner, list):
            one = GgufFields({**fields.metadata, "gemma4.feed_forward_length": min(widths)}, cls.gguf_architecture)
        values = super().gguf_values(one if isinstance(inner, list) else fields, tensors)
        freqs = tensors["rope_freqs.weight"].load()
        cap = fields.get("final_logit_softcapping")
        return values | {
            "head_dim": fields.whole("attention.key_length_swa"),
            "global_head_dim": fields.whole("attention.key_length"),
            "partial_rotary_factor": float((freqs < _NO_TURN / 10).mean()),
            "rope_local_base_freq": fields.number("rope.freq_base_swa", 10000.0),
            "sliding_window": fields.whole("attention.sliding_window"),
            "layer_types": ["sliding_attention" if slide else "full_attention" for slide in slides],
            "num_kv_shared_layers": fields.whole("attention.shared_kv_layers", 0),
            "use_double_wide_mlp": max(widths) > min(widths),
            "hidden_size_per_layer_input": fields.whole("embedding_length_per_layer_input", 0),
            "final_logit_softcapping": None if cap is None else fields.number("final_logit_softcapping"),
        }


def _global_head_dim(config: HfConfig) -> object:
    """Width of a wide head in transformers' newest spelling, which has it for each layer that has one."""
    by_layer = section(config, "per_layer_config")
    return next((section(by_layer, layer)["head_dim"] for layer in by_layer), 512)


Gemma4Text.TINY = Gemma4Text(
    **TINY_SIZES | {"num_hidden_layers": 5},
    global_head_dim=16,
    partial_rotary_factor=0.5,
    sliding_window=8,
    layer_types=("sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"),
    num_kv_shared_layers=2,
    use_double_wide_mlp=True,
    hidden_size_per_layer_input=16,
    final_logit_softcapping=3.0,
)
