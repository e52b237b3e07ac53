"""Gemma 2 (arXiv:2408.00118): soft-capped scores and logits, every other layer slides."""

from dataclasses import replace

from pydantic import Field

from settle.base.errors import FormatError
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, Tensors, Values
from settle.model.architectures._gemma import Gemma
from settle.model.config import LayerOptions

_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


class Gemma2(Gemma):
    """A Gemma 2 decoder."""

    model_type = "gemma2"
    gguf_architecture = "gemma2"
    HF_CLASS = "Gemma2ForCausalLM"
    HF_DEFAULTS = {
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "num_key_value_heads": 4,
    }
    PERIOD = 2
    LARGEST = 46

    attn_logit_softcapping: float | None = Field(50.0, gt=0, description="scores stay below it, smoothly")
    final_logit_softcapping: float | None = Field(30.0, gt=0, description="logits stay below it, smoothly")

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), soft_cap=self.attn_logit_softcapping)

    def gguf_metadata(self) -> GgufKeys:
        caps = {key: getattr(self, key) for key in _CAPS}
        if None in caps.values():
            raise FormatError("llama.cpp always caps the scores and logits of a Gemma 2", "export it as safetensors")
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in caps.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        caps = {key: fields.number(key, usual) for key, usual in _CAPS.items()}
        return super().gguf_values(fields, tensors) | caps


Gemma2.TINY = Gemma2(
    **TINY_SIZES | {"num_hidden_layers": 4, "head_dim": 16},
    query_pre_attn_scalar=16,
    sliding_window=8,
    attn_logit_softcapping=5.0,
    final_logit_softcapping=3.0,
)
