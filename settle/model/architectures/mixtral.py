"""Mixtral (arXiv:2401.04088): a Llama whose feed-forwards are mixtures of a few wide experts.

In a GGUF file it is a Llama with experts.
"""

from settle.model.architectures import GgufMetadata
from settle.model.architectures._experts import Mixture
from settle.model.architectures.llama import Llama


class Mixtral(Mixture, Llama):
    """A Mixtral decoder. `intermediate_size` is the width of an expert."""

    model_type = "mixtral"
    HF_CLASS = "MixtralForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072, "num_key_value_heads": 8,
        "num_experts": 8, "num_experts_per_tok": 2,
    }  # fmt: skip
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "sliding_window": None}
    HF_NUMBER = "num_local_experts"
    HF_NAMES = {
        "mlp.gate": "block_sparse_moe.gate",
        "mlp.experts.*.gate_proj": "block_sparse_moe.experts.*.w1",
        "mlp.experts.*.up_proj": "block_sparse_moe.experts.*.w3",
        "mlp.experts.*.down_proj": "block_sparse_moe.experts.*.w2",
    }
    GGUF_LAYER = Llama.GGUF_LAYER | Mixture.EXPERTS_IN_GGUF

    @classmethod
    def is_of_gguf(cls, metadata: GgufMetadata) -> bool:
        return bool(metadata.get(f"{cls.gguf_architecture}.expert_count"))


Mixtral.TINY = Mixtral(**Llama.TINY.model_dump() | {"num_experts": 4, "intermediate_size": 32})
