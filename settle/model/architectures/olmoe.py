"""OLMoE (arXiv:2409.02060): a mixture in every layer, and norms over all queries, and all keys, of a layer."""

from dataclasses import replace

from settle.base.errors import FormatError
from settle.model.architectures import TINY_SIZES, Architecture, GgufKeys
from settle.model.architectures._experts import WeighedMixture
from settle.model.config import LayerOptions


class Olmoe(WeighedMixture):
    """An OLMoE decoder. `intermediate_size` is the width of an expert."""

    model_type = "olmoe"
    gguf_architecture = "olmoe"
    QUERIES_ARE_WIDTH = True
    MAY_BE_TIED = False
    NORMALISED_IN_GGUF = False
    HF_CLASS = "OlmoeForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_experts": 64, "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    }  # fmt: skip
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False, "clip_qkv": None}
    GGUF_LAYER = Architecture.GGUF_LAYER | WeighedMixture.EXPERTS_IN_GGUF

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), whole_norms=True)

    def gguf_metadata(self) -> GgufKeys:
        if self.num_key_value_heads != self.num_attention_heads:
            raise FormatError(
                "llama.cpp loads an OLMoE with a key head for each query head only", "export it as safetensors"
            )
        return super().gguf_metadata()


Olmoe.TINY = Olmoe(
    **TINY_SIZES | {"num_key_value_heads": 4, "intermediate_size": 32},
    num_experts=5,
    num_experts_per_tok=2,
    norm_topk_prob=False,
)
