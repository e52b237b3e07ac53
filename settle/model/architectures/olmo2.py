"""OLMo 2 (arXiv:2501.00656): norms behind the branches only, and over all queries, and all keys, of a layer."""

from dataclasses import replace

from settle.model.architectures import TINY_SIZES, Architecture, GgufMetadata
from settle.model.config import LayerOptions


class Olmo2(Architecture):
    """An OLMo 2 decoder."""

    model_type = "olmo2"
    gguf_architecture = "olmo2"
    QUERIES_ARE_WIDTH = True
    MAY_BE_TIED = False
    HF_CLASS = "Olmo2ForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False}
    GGUF_LAYER = Architecture.GGUF_LAYER | {
        "post_attention_layernorm": "post_attention_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    }

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), pre_norms=False, sandwich_norms=True, whole_norms=True)

    @classmethod
    def is_of_gguf(cls, metadata: GgufMetadata) -> bool:
        return not metadata.get(f"{Olmo2.gguf_architecture}.attention.sliding_window")


Olmo2.TINY = Olmo2(**TINY_SIZES)
