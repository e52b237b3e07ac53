"""Granite 3 and 4, dense (arXiv:2412.08905 describes their multipliers): a Llama with four numbers to multiply by."""

from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field

from settle.formats.gguf.metadata import number
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, Tensors, Values
from settle.model.architectures.llama import Llama
from settle.model.config import DecoderOptions, LayerOptions

# field → key of a GGUF file
_SCALES = {
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "logits_scaling": "logit_scale",
}


class Granite(Llama):
    """A dense Granite decoder."""

    model_type = "granite"
    gguf_architecture = "granite"
    HF_CLASS = "GraniteForCausalLM"
    HF_DEFAULTS: ClassVar[Values] = Llama.HF_DEFAULTS | dict.fromkeys(_SCALES, 1.0)

    embedding_multiplier: float = Field(1.0, gt=0, description="multiplies what is looked up in the input table")
    residual_multiplier: float = Field(1.0, gt=0, description="multiplies what attention and feed-forward add")
    attention_multiplier: float = Field(0.125, gt=0, description="multiplies the scores of attention")
    logits_scaling: float = Field(1.0, gt=0, description="divides the logits")

    def layer_options(self, layer: int) -> LayerOptions:
        options = super().layer_options(layer)
        return replace(options, residual_scale=self.residual_multiplier, query_scale=self.attention_multiplier)

    def options(self) -> DecoderOptions:
        scale = None if self.embedding_multiplier == 1 else self.embedding_multiplier
        return replace(super().options(), embedding_scale=scale, logit_scale=1 / self.logits_scaling)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        plain = super().sized(num_parameters, vocab_size, context)
        return plain.with_fields(attention_multiplier=plain.head_dim**-0.5)

    def gguf_metadata(self) -> GgufKeys:
        scales = {f"{self.gguf_family}.{key}": getattr(self, field) for field, key in _SCALES.items()}
        return super().gguf_metadata() | scales

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        plain = {"attention_multiplier": number(values, "head_dim") ** -0.5}
        for field, key in _SCALES.items():
            usual = plain.get(field, 1.0)
            values[field] = fields.number(key, usual) or usual  # 0 says: off
        return values


Granite.TINY = Granite(
    **TINY_SIZES, embedding_multiplier=3.0, residual_multiplier=0.3, attention_multiplier=0.4, logits_scaling=2.0
)
