"""Qwen1.5 and Qwen2 with experts (arXiv:2407.10671): a mixture in every layer beside a feed-forward for all tokens."""

from dataclasses import replace

from settle.model.architectures import TINY_SIZES, Architecture
from settle.model.architectures._experts import SharedMixture, WeighedMixture
from settle.model.config import LayerOptions


class Qwen2Moe(WeighedMixture, SharedMixture):
    """A Qwen2 decoder with experts, without windows. Nothing in it is as wide as `intermediate_size`."""

    model_type = "qwen2_moe"
    gguf_architecture = "qwen2moe"
    QUERIES_ARE_WIDTH = True
    NORMALISED_IN_GGUF = False
    PEFT_NAMES_EXPERTS = False  # PEFT does so for the families that are stored like this one, not for itself
    HF_CLASS = "Qwen2MoeForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "num_key_value_heads": 16, "num_experts": 60,
        "num_experts_per_tok": 4, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
    }  # fmt: skip
    HF_FIXED = {
        "hidden_act": "silu", "qkv_bias": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "use_sliding_window": False,
    }  # fmt: skip
    GGUF_LAYER = Architecture.GGUF_LAYER | SharedMixture.EXPERTS_IN_GGUF

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), qkv_bias=True)


Qwen2Moe.TINY = Qwen2Moe(
    **TINY_SIZES,
    num_experts=5,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
    norm_topk_prob=False,
)
