"""SmolLM3 (its model card, July 2025): a Llama of which every fourth layer has no positions (arXiv:2501.18795)."""

from typing import Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import whole
from settle.model.architectures import TINY_SIZES, GgufKeys, HfConfig, Values
from settle.model.architectures.llama import Llama
from settle.model.config import Rope
from settle.model.layers.rope import no_rope

_INTERVAL = 4  # of the layers without positions, in llama.cpp
_EVERY, _LAYERS = "no_rope_layer_interval", "no_rope_layers"


class SmolLM3(Llama):
    """A SmolLM3 decoder."""

    model_type = "smollm3"
    gguf_architecture = "smollm3"
    HF_CLASS = "SmolLM3ForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rope_theta": 2e6,
        "tie_word_embeddings": True,
    }
    HF_FIXED = {"hidden_act": "silu", "use_sliding_window": False}

    tie_word_embeddings: bool = Field(True, description="one table for input and output")
    no_rope_layer_interval: int = Field(_INTERVAL, gt=0, description="the last of so many layers has no positions")
    no_rope_layers: tuple[int, ...] | None = Field(
        None, description="1 for each layer with positions, 0 for each without; None: as the interval says"
    )

    @model_validator(mode="after")
    def _one_for_each_layer(self) -> Self:
        if self.no_rope_layers is not None and len(self.no_rope_layers) != self.num_hidden_layers:
            raise ValueError("no_rope_layers must name each layer")
        return self

    def has_rope(self, layer: int) -> bool:
        """Return whether positions matter to a layer's attention."""
        if self.no_rope_layers is not None:
            return bool(self.no_rope_layers[layer])
        return (layer + 1) % self.no_rope_layer_interval != 0

    def rope(self, layer: int) -> Rope:
        return super().rope(layer) if self.has_rope(layer) else no_rope(self.head_dim)

    def shortened(self, layers: int) -> Self:
        return self.with_fields(num_hidden_layers=layers, no_rope_layers=None)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        every = whole({_EVERY: _INTERVAL, **config}, _EVERY)
        if values.get(_LAYERS) == [int((i + 1) % every != 0) for i in range(whole(config, "num_hidden_layers"))]:
            values[_LAYERS] = None
        return values

    def to_hf_config(self) -> Values:
        kinds = [int(self.has_rope(layer)) for layer in range(self.num_hidden_layers)]
        return super().to_hf_config() | {"no_rope_layers": kinds}

    def gguf_metadata(self) -> GgufKeys:
        if any(self.has_rope(i) != ((i + 1) % _INTERVAL != 0) for i in range(self.num_hidden_layers)):
            raise FormatError(
                f"llama.cpp takes positions from each {_INTERVAL}th layer of a SmolLM3, this model has others",
                "export it as safetensors",
            )
        if self.gguf_constants() or self.attention_bias or self.mlp_bias:
            raise FormatError(
                "llama.cpp knows no biases of a SmolLM3, and does not stretch it as a Llama 3",
                "export it as safetensors",
            )
        return super().gguf_metadata()


SmolLM3.TINY = SmolLM3(**TINY_SIZES | {"num_hidden_layers": 4, "tie_word_embeddings": True})
