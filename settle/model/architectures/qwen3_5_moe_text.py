"""Qwen3.5's text models with experts: a mixture in every layer, beside a feed-forward that every token meets.

Hugging Face's files hold each expert by itself, or those of a layer stacked: `gate_up_proj` (E, 2F, D), `down_proj`.
"""

from settle.model.architectures import GgufFields, Tensors, Values
from settle.model.architectures._experts import SharedMixture
from settle.model.architectures._interleaved_experts import unstack
from settle.model.architectures.qwen3_5_text import Qwen35Text


class Qwen35MoeText(SharedMixture, Qwen35Text):
    """A Qwen3.5 with experts. `intermediate_size` is the width of nothing in it."""

    model_type = "qwen3_5_moe_text"
    MULTIMODAL = ("qwen3_5_moe",)
    gguf_architecture = "qwen35moe"
    HF_CLASS = "Qwen3_5MoeForCausalLM"
    PEFT_NAMES_EXPERTS = False
    HF_DEFAULTS = Qwen35Text.HF_DEFAULTS | {
        "num_key_value_heads": 2, "num_experts": 256, "num_experts_per_tok": 8, "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
    }  # fmt: skip
    GGUF_LAYER = SharedMixture.EXPERTS_IN_GGUF | Qwen35Text.GGUF_LAYER

    def unstack_experts(self, tensors: Tensors) -> Tensors:
        return unstack(tensors, self.num_experts, self.hidden_size, self.moe_intermediate_size, turned=False)

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        width = {f"{cls.gguf_architecture}.feed_forward_length": fields.get("expert_feed_forward_length")}
        return super().gguf_values(GgufFields({**width, **fields.metadata}, fields.architecture), tensors)


Qwen35MoeText.TINY = Qwen35MoeText(
    **Qwen35Text.TINY.model_dump(),
    num_experts=6,
    num_experts_per_tok=3,
    moe_intermediate_size=32,
    shared_expert_intermediate_size=64,
)
