"""Qwen2, Qwen2.5 and Qwen2.5-Coder (arXiv:2407.10671): queries, keys and values have biases."""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field

from settle.model.architectures import TINY_SIZES, Architecture
from settle.model.config import LayerOptions


class Qwen2(Architecture):
    """A Qwen2 decoder.

    llama.cpp computes it without windows: a GGUF file's context ends where they would begin to hide something.
    """

    model_type = "qwen2"
    gguf_architecture = "qwen2"
    QUERIES_ARE_WIDTH = True
    HF_CLASS = "Qwen2ForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 32768}

    use_sliding_window: bool = Field(False, description="whether some layers look back over a window only")
    sliding_window: int | None = Field(4096, gt=0, description="tokens that a query of such a layer sees")
    max_window_layers: int = Field(28, ge=0, description="layers before the first such layer")
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(
        None, description="which layers these are, where the number above does not say it"
    )

    def window(self, layer: int) -> int | None:
        if not self.use_sliding_window:
            return None
        if self.layer_types is not None:
            return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None
        return self.sliding_window if layer >= self.max_window_layers else None

    def shortened(self, layers: int) -> Self:
        """Layers with and without a window in the same proportion; llama.cpp ignores windows here anyway."""
        before = self.num_hidden_layers
        types = self.layer_types and tuple(self.layer_types[i * before // layers] for i in range(layers))
        unwindowed = min(self.max_window_layers, before) * layers // before
        return self.with_fields(num_hidden_layers=layers, layer_types=types, max_window_layers=unwindowed)

    def gguf_context(self) -> int:
        windows = [self.window(layer) or self.max_position_embeddings for layer in range(self.num_hidden_layers)]
        return min(self.max_position_embeddings, *windows)

    def layer_options(self, layer: int) -> LayerOptions:
        return replace(super().layer_options(layer), qkv_bias=True)


Qwen2.TINY = Qwen2(**TINY_SIZES | {"rms_norm_eps": 1e-6, "rope_theta": 1e6})
