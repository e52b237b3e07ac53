"""Gemma 3, its text model (arXiv:2503.19786): normed heads, five layers of six slide and turn faster than the sixth."""

from dataclasses import replace

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, HfConfig, Tensors, Values
from settle.model.architectures._gemma import Gemma
from settle.model.config import LayerOptions, Rope
from settle.model.layers.rope import RopeScaling, rope_options


class Gemma3Text(Gemma):
    """A Gemma 3 decoder. `rope_scaling` is of the layers that see everything."""

    model_type = "gemma3_text"
    MULTIMODAL = ("gemma3",)
    gguf_architecture = "gemma3"
    HF_CLASS = "Gemma3ForCausalLM"
    HF_DEFAULTS = {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "num_key_value_heads": 4,
        "rope_theta": 1e6,
    }
    # Hugging Face's model does not look at attn_logit_softcapping.
    HF_FIXED = Gemma.HF_FIXED | {"attn_logit_softcapping": None}
    PERIOD = 6
    LARGEST = 62

    rope_theta: float = Field(1e6, gt=0, description="base of the rotary frequencies of layers that see everything")
    rope_local_base_freq: float = Field(10000.0, gt=0, description="the same of layers that slide")

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), head_norms=True)

    def rope(self, layer: int) -> Rope:
        if self.slides(layer):
            return rope_options(self.head_dim, self.rope_local_base_freq, self.max_position_embeddings, None)
        return super().rope(layer)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        by_kind = section(config, "rope_parameters")
        if "full_attention" in by_kind:
            local = section(by_kind, "sliding_attention")
            values["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
            if RopeScaling.from_hf(local) is not None:
                raise FormatError("the sliding layers' rotations are stretched", "only those of the others may be")
        return values

    def gguf_metadata(self) -> GgufKeys:
        if self.final_logit_softcapping is not None:
            raise FormatError("llama.cpp does not cap the logits of a Gemma 3", "export it as safetensors")
        return super().gguf_metadata() | {f"{self.gguf_architecture}.rope.freq_base_swa": self.rope_local_base_freq}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        local = fields.number("rope.freq_base_swa", 10000.0)
        return super().gguf_values(fields, tensors) | {"rope_local_base_freq": local}


Gemma3Text.TINY = Gemma3Text(
    **TINY_SIZES | {"num_hidden_layers": 6, "head_dim": 16}, query_pre_attn_scalar=16, sliding_window=8
)
