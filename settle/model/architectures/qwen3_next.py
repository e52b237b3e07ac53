"""Qwen3-Next: gated delta nets in three of four layers, and a mixture beside a feed-forward for all tokens in each.

Queries, keys, values and gates of a delta net are one linear in Hugging Face's files, one key head after another.
llama.cpp reads that linear too, and keeps the order of heads.
"""

from dataclasses import replace

from settle.model.architectures._experts import SharedMixture, WeighedMixture
from settle.model.architectures.qwen3_5_text import Qwen35Text
from settle.model.config import DeltaNet


class Qwen3Next(WeighedMixture, SharedMixture, Qwen35Text):
    """A Qwen3-Next, also as a coder. `intermediate_size` is the width of nothing in it."""

    model_type = "qwen3_next"
    MULTIMODAL = ()
    gguf_architecture = "qwen3next"
    HF_CLASS = "Qwen3NextForCausalLM"
    HF_DEFAULTS = Qwen35Text.HF_DEFAULTS | {
        "num_key_value_heads": 2, "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }  # fmt: skip
    HF_FIXED = Qwen35Text.HF_FIXED | {"decoder_sparse_step": 1, "mlp_only_layers": []}
    GGUF_LAYER = (
        SharedMixture.EXPERTS_IN_GGUF
        | Qwen35Text.GGUF_LAYER
        | {"linear_attn.in_proj_qkvz": "ssm_in", "linear_attn.in_proj_ba": "ssm_ba"}
    )

    def recurrence(self, layer: int) -> DeltaNet | None:
        own = super().recurrence(layer)
        return own and replace(own, fused=True)

    @property
    def rotary_sections(self) -> list[int]:
        return []

    @property
    def reorders_heads(self) -> bool:
        return False


Qwen3Next.TINY = Qwen3Next(
    **Qwen35Text.TINY.model_dump(),
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
)
