"""Gemma 4, its text model: E2B and E4B.

Layers that see everything have wider heads, of which a part turns; the last layers read the keys and values of earlier
ones; each token gives every layer an input of its own. Source: Hugging Face's `modeling_gemma4.py`.
"""

from dataclasses import replace
from typing import Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section
from settle.model.architectures import (
    TINY_SIZES,
    GgufFields,
    GgufKeys,
    HfConfig,
    Shapes,
    Tensors,
    Values,
)
from settle.model.architectures._gemma import GemmaE
from settle.model.config import LayerOptions, Rope

_NO_TURN = 1e30  # what a GGUF file divides the frequency of a pair by that does not turn


class Gemma4Text(GemmaE):
    """A Gemma 4 decoder. `rope_theta` is of the layers that see everything, `head_dim` of those that slide."""

    model_type = "gemma4_text"
    MULTIMODAL = ("gemma4",)
    gguf_architecture = "gemma4"
    HF_CLASS = "Gemma4ForCausalLM"
    HF_DEFAULTS = {
        "max_position_embeddings": 131072, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
        "hidden_size_per_layer_input": 256,
    }  # fmt: skip
    HF_FIXED = GemmaE.HF_FIXED | {"attention_k_eq_v": False, "enable_moe_block": False}
    HF_NAMES = {"layer_scalar.weight": "layer_scalar"}
    GGUF_LAYER = GemmaE.GGUF_LAYER | {"layer_scalar": "layer_output_scale"}
    PERIOD = 6
    LAST_SEES_ALL = True

    partial_rotary_factor: float = Field(0.25, gt=0, le=1, description="share of a wide head that turns")
    global_head_dim: int = Field(512, gt=0, multiple_of=2, description="width of a head where a layer sees everything")
    use_double_wide_mlp: bool = Field(False, description="twice the feed-forward in those layers")

    # --- layers ---

    def layer_parameters(self, layer: int) -> Shapes:
        return super().layer_parameters(layer) | {"layer_scalar.weight": (1,)}

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
        is_double = self.use_double_wide_mlp and layer >= self.first_shared
        return replace(
            super().layer_options(layer),
            inner=self.intermediate_size * (2 if is_double else 1),
            head_dim=self.global_head_dim if self.window(layer) is None else self.head_dim,
            has_scalar=True,
        )

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """Without inputs of the layers, whose table would be most of a small model."""
        scaled = super().sized(num_parameters, vocab_size, context)
        return scaled.with_fields(global_head_dim=scaled.head_dim)

    # --- files ---

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
        first, shared = self.first_shared, self.layer_types[self.first_shared :]
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
