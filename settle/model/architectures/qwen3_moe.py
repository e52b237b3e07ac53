"""Qwen3 with a mixture of experts (arXiv:2505.09388)."""

from settle.model.architectures._experts import NarrowMixture, WeighedMixture
from settle.model.architectures.qwen3 import Qwen3


class Qwen3Moe(WeighedMixture, NarrowMixture, Qwen3):
    """A Qwen3 decoder whose feed-forwards are all mixtures."""

    model_type = "qwen3_moe"
    gguf_architecture = "qwen3moe"
    HF_CLASS = "Qwen3MoeForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    }
    HF_FIXED = {
        "hidden_act": "silu",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    GGUF_LAYER = Qwen3.GGUF_LAYER | NarrowMixture.EXPERTS_IN_GGUF

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.use_sliding_window else None


Qwen3Moe.TINY = Qwen3Moe(
    **Qwen3.TINY.model_dump() | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
)
