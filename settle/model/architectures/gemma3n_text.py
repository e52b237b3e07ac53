"""Gemma 3n, its text model: E2B and E4B.

Four residual streams (AltUp), a branch of low rank beside attention (LAuReL), few open gates in the first layers; the
last layers read the keys and values of earlier ones; each token gives every layer an input of its own. Source: Hugging
Face's `modeling_gemma3n.py`.
"""

from dataclasses import replace
from typing import Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import numbers, section, whole
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, HfConfig, Rows, Shapes, Tensors, Values
from settle.model.architectures._gemma import GemmaE
from settle.model.config import DecoderOptions, LayerOptions, Streams

# What llama.cpp computes whatever a file says.
_STREAMS, _RANK, _INPUT, _SPARSE_LAYERS, _SPARSITY, _OWN_KEYS, _CAP = 4, 64, 256, 10, 0.95, 20, 30.0
_ROWS = "model.embed_tokens_per_layer.weight"


class Gemma3nText(GemmaE):
    """A Gemma 3n decoder."""

    model_type = "gemma3n_text"
    MULTIMODAL = ("gemma3n",)
    gguf_architecture = "gemma3n"
    HF_CLASS = "Gemma3nForCausalLM"
    HF_DEFAULTS = {
        "max_position_embeddings": 32768, "num_key_value_heads": 2, "head_dim": 256, "num_kv_shared_layers": 15,
        "vocab_size_per_layer_input": 262144, "final_logit_softcapping": 30.0,
    }  # fmt: skip
    HF_FIXED = GemmaE.HF_FIXED | {"altup_active_idx": 0, "altup_correct_scale": True, "altup_coef_clip": 120.0}
    GGUF_MODEL = GemmaE.GGUF_MODEL | {
        f"model.altup_{own}.{stream}": f"altup_{name}"
        for own, name in (("projections", "proj"), ("unembed_projections", "unembd_proj"))
        for stream in range(_STREAMS - 1)
    }
    GGUF_LAYER = GemmaE.GGUF_LAYER | {
        "altup.correct_output_scale": "altup_correct_scale.weight",
        "altup.correction_coefs": "altup_correct_coef",
        "altup.prediction_coefs": "altup_predict_coef",
        "altup.modality_router": "altup_router",
        "altup.router_norm": "altup_router_norm",
        "laurel.linear_left": "laurel_l",
        "laurel.linear_right": "laurel_r",
        "laurel.post_laurel_norm": "laurel_post_norm",
    }
    PERIOD = 5

    hidden_size_per_layer_input: int = Field(_INPUT, gt=0, description="width of what a token gives each layer")
    vocab_size_per_layer_input: int = Field(0, ge=0, description="rows of its table; 0: as many as the vocabulary")
    altup_num_inputs: int = Field(_STREAMS, gt=1, description="residual streams")
    laurel_rank: int = Field(_RANK, gt=0, description="rank of the branch beside attention")
    num_sparse_layers: int = Field(0, ge=0, description="first layers of whose gates few are open")
    activation_sparsity: float = Field(_SPARSITY, ge=0, lt=1, description="share of their gates that is shut")

    # --- layers ---

    @property
    def _streams(self) -> Streams:
        return Streams(self.altup_num_inputs, self.laurel_rank)

    def layer_parameters(self, layer: int) -> Shapes:
        return super().layer_parameters(layer) | self._streams.parameters(self.hidden_size)

    def parameters(self) -> Shapes:
        shapes, square = super().parameters(), (self.hidden_size, self.hidden_size)
        for name in ("altup_projections", "altup_unembed_projections"):
            shapes |= {f"model.{name}.{stream}.weight": square for stream in range(self.altup_num_inputs - 1)}
        return shapes

    @property
    def per_layer_rows(self) -> int:
        return self.vocab_size_per_layer_input or self.vocab_size

    def layer_options(self, layer: int) -> LayerOptions:
        share = self.activation_sparsity if layer < self.num_sparse_layers else 0.0
        return replace(super().layer_options(layer), sparsity=share, streams=self._streams)

    def options(self) -> DecoderOptions:
        rows = 0 if self.per_layer_rows == self.vocab_size else self.per_layer_rows
        return replace(super().options(), per_layer_rows=rows)

    def flops_per_token(self, context: int) -> float:
        widening = 2 * (self.altup_num_inputs - 1) * self.hidden_size**2
        mixing = self.num_hidden_layers * (self.altup_num_inputs**2 + self.altup_num_inputs) * self.hidden_size
        return super().flops_per_token(context) + 6.0 * (widening + mixing)

    def kept_beside_layers(self, frozen: bool) -> float:
        width, rank, streams = self.hidden_size, self.laurel_rank, self.altup_num_inputs
        predicted = streams * width + streams**2 + streams + width + 1
        beside = 2 * streams + rank + 2  # shares of the correction, the branch of low rank and its norm
        ends = (streams - 1) * (width + 4)  # scaled to the size of the first
        if frozen:  # nothing before the first layer's norm is trained
            kept = self.num_hidden_layers * (predicted + beside + 4 * width) - predicted - width - 1 + ends
        else:
            kept = self.num_hidden_layers * (predicted + beside + streams * width + 6 * width) + 2 * ends
        sparse = min(self.num_sparse_layers, self.num_hidden_layers) if self.activation_sparsity else 0
        kept += streams * width + sparse * (2 * self.intermediate_size + 1)
        return super().kept_beside_layers(frozen) + kept

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """With inputs of the layers of a width of 8: their table would be most of a small model."""
        shape = super().sized(num_parameters, vocab_size, context).model_dump()
        return cls(**shape | {"hidden_size_per_layer_input": 8, "laurel_rank": 16})

    # --- files ---

    def to_hf_config(self) -> Values:
        own = ("num_sparse_layers", "activation_sparsity")
        config = {key: value for key, value in super().to_hf_config().items() if key not in own}
        theta = {"full_attention": config.pop("rope_theta"), "sliding_attention": config.pop("rope_local_base_freq")}
        return config | {
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in theta.items()},
            "vocab_size_per_layer_input": self.per_layer_rows,
            "activation_sparsity_pattern": [o.sparsity for o in self.options().layers],
        }

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        inner, layers = numbers(config, "intermediate_size"), whole(config, "num_hidden_layers")
        if len(set(inner)) > 1:
            raise FormatError(f"intermediate_size is {inner}", "one width for all layers is supported")
        config = {**config, "intermediate_size": inner[0] if inner else None}
        values = super().hf_values(config)
        if values["vocab_size_per_layer_input"] == values["vocab_size"]:
            values["vocab_size_per_layer_input"] = 0
        sparse = _SPARSE_LAYERS if layers > _SPARSE_LAYERS else 0
        shares = numbers(config, "activation_sparsity_pattern") or [_SPARSITY] * sparse
        number, share = sum(map(bool, shares)), max(shares, default=0) or _SPARSITY
        if shares[:number] != [share] * number:
            raise FormatError(f"activation_sparsity_pattern is {shares}", "one share of the first layers is supported")
        values |= {"num_sparse_layers": number, "activation_sparsity": share}
        by_kind = section(config, "rope_parameters")
        for kind, key in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq")):
            rope = section(by_kind, kind)
            if rope.get("rope_type", "default") != "default":
                raise FormatError(f"the rotations of its {kind} layers are {rope}", "only 'default' is supported")
            values[key] = rope.get("rope_theta", values.get(key, cls.model_fields[key].default))
        values["rope_scaling"] = config.get("rope_scaling")
        return values

    def gguf_metadata(self) -> GgufKeys:
        layers, options = range(self.num_hidden_layers), self.options().layers
        shares = [_SPARSITY if layer < _SPARSE_LAYERS else 0.0 for layer in layers]
        own = {
            "residual streams": (self.altup_num_inputs, _STREAMS),
            "a rank of the branch beside attention": (self.laurel_rank, _RANK),
            "inputs of a layer": (self.hidden_size_per_layer_input, _INPUT),
            "layers with keys of their own": (self.first_shared, min(_OWN_KEYS, self.num_hidden_layers)),
            "a cap of the logits": (self.final_logit_softcapping, _CAP),
            "shares of shut gates": ([o.sparsity for o in options], shares),
            "kinds of layers": ([self.window(i) is None for i in layers], [(i + 1) % self.PERIOD == 0 for i in layers]),
        }
        for what, (has, computed) in own.items():
            if has != computed:
                raise FormatError(
                    f"llama.cpp computes this family with {what} of {computed}, this model has {has}",
                    "export it as safetensors",
                )
        keys: GgufKeys = {
            "attention.sliding_window": self.sliding_window,
            "attention.shared_kv_layers": self.num_kv_shared_layers,
            "embedding_length_per_layer_input": self.hidden_size_per_layer_input,
            "rope.freq_base_swa": self.rope_local_base_freq,
            "altup.active_idx": 0,
            "altup.num_inputs": self.altup_num_inputs,
        }
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.vocab_size, shape[1]) if name == _ROWS else super().gguf_shape(name, shape)

    def to_gguf(self, name: str, values: Rows) -> Rows:
        if name != _ROWS or len(values) == self.vocab_size:
            return values
        missing: int = self.vocab_size - len(
            values
        )  # a file has a row for each id: the first stands for what is no text
        rows: Rows = values[[*range(len(values)), *[0] * missing]]
        return rows

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        layers = fields.whole("block_count")
        return super().gguf_values(fields, tensors) | {
            "sliding_window": fields.whole("attention.sliding_window"),
            "rope_local_base_freq": fields.number("rope.freq_base_swa", 10000.0),
            "num_kv_shared_layers": max(0, layers - _OWN_KEYS),
            "final_logit_softcapping": _CAP,
            "num_sparse_layers": min(_SPARSE_LAYERS, layers),
        }


Gemma3nText.TINY = Gemma3nText(
    **TINY_SIZES | {"num_hidden_layers": 5, "intermediate_size": 1024},
    sliding_window=8,
    num_sparse_layers=5,
    final_logit_softcapping=30.0,
)
