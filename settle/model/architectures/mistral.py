"""Mistral (arXiv:2310.06825): a Llama whose every layer may look back over a window only."""

from pydantic import Field

from settle.model.architectures.llama import Llama


class Mistral(Llama):
    """A Mistral decoder.

    In a GGUF file it is a Llama, which llama.cpp computes without the window: the file's context ends where the window
    would begin to hide something.
    """

    model_type = "mistral"
    MULTIMODAL = ("mistral3",)
    HF_CLASS = "MistralForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    }
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

    sliding_window: int | None = Field(None, gt=0, description="tokens that a query sees; None for all")

    def window(self, layer: int) -> int | None:
        return self.sliding_window

    def gguf_context(self) -> int:
        return min(self.max_position_embeddings, self.sliding_window or self.max_position_embeddings)


Mistral.TINY = Mistral(**Llama.TINY.model_dump() | {"sliding_window": 8})
