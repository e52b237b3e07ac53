"""Qwen3 with a mixture of experts (arXiv:2505.09388)."""

from dataclasses import replace

from pydantic import Field

from settle.base.errors import FormatError
from settle.model.architectures import GgufKeys
from settle.model.architectures._experts import NarrowMixture
from settle.model.architectures.qwen3 import Qwen3
from settle.model.config import Experts


class Qwen3Moe(NarrowMixture, Qwen3):
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

    norm_topk_prob: bool = Field(True, description="whether the weights of a token's experts sum to 1")

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    @property
    def mixture(self) -> Experts:
        return replace(super().mixture, normalised=self.norm_topk_prob)

    def gguf_metadata(self) -> GgufKeys:
        if not self.norm_topk_prob:
            raise FormatError(
                "llama.cpp always lets the weights of a token's experts sum to 1, this model does not",
                "export it as safetensors",
            )
        return super().gguf_metadata()


Qwen3Moe.TINY = Qwen3Moe(
    **Qwen3.TINY.model_dump() | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
)
