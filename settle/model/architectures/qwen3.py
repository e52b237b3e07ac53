"""Qwen3 (arXiv:2505.09388): each query and key head is normed before it turns; no biases."""

from dataclasses import replace

from settle.model.architectures.qwen2 import Qwen2
from settle.model.config import LayerOptions


class Qwen3(Qwen2):
    """A Qwen3 decoder; about windows as Qwen2."""

    model_type = "qwen3"
    gguf_architecture = "qwen3"
    QUERIES_ARE_WIDTH = False
    HF_CLASS = "Qwen3ForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "head_dim": 128}
    HF_FIXED = {"hidden_act": "silu", "attention_bias": False}

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), qkv_bias=False, head_norms=True)


Qwen3.TINY = Qwen3(**Qwen2.TINY.model_dump() | {"head_dim": 16})
