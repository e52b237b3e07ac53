"""Granite 3 with experts (arXiv:2412.08905 describes Granite's multipliers): a mixture in every layer.

Hugging Face's files stack the experts of a layer, each with its gate and up as one matrix.
"""

from settle.model.architectures._experts import Mixture, StackedExperts
from settle.model.architectures.granite import Granite


class GraniteMoe(StackedExperts, Granite):
    """A Granite decoder with experts, whose width is `intermediate_size`."""

    model_type = "granitemoe"
    gguf_architecture = "granitemoe"
    HF_CLASS = "GraniteMoeForCausalLM"
    HF_DEFAULTS = Granite.HF_DEFAULTS | {"attention_multiplier": 1.0, "num_experts": 8, "num_experts_per_tok": 2}
    HF_FIXED = {"hidden_act": "silu", "mlp_bias": False}
    GGUF_LAYER = Granite.GGUF_LAYER | Mixture.EXPERTS_IN_GGUF


GraniteMoe.TINY = GraniteMoe(**Granite.TINY.model_dump() | {"num_experts": 6, "intermediate_size": 32})
