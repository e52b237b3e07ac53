"""OLMo 3 (Allen Institute for AI, November 2025): OLMo 2 of which three layers of four have a sliding window."""

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section
from settle.model.architectures import GgufMetadata, HfConfig, Values
from settle.model.architectures._layer_types import WindowPattern
from settle.model.architectures.olmo2 import Olmo2
from settle.model.config import Rope
from settle.model.layers.rope import RopeScaling, rope_options


class Olmo3(WindowPattern, Olmo2):
    """An OLMo 3 decoder. `rope_scaling` is of the layers that see everything."""

    model_type = "olmo3"
    HF_CLASS = "Olmo3ForCausalLM"
    HF_DEFAULTS = Olmo2.HF_DEFAULTS | {"rope_theta": 5e5}
    PERIOD = 4

    rope_theta: float = Field(5e5, gt=0, description="base of the rotary frequencies")

    def rope(self, layer: int) -> Rope:
        if self.slides(layer):
            return rope_options(self.head_dim, self.rope_theta, self.max_position_embeddings, None)
        return super().rope(layer)

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        sliding = section(section(config, "rope_parameters"), "sliding_attention")
        if sliding.get("rope_theta", values["rope_theta"]) != values["rope_theta"] or RopeScaling.from_hf(sliding):
            raise FormatError("the sliding layers' rotations have another base or are stretched", "only others may be")
        return values

    def to_hf_config(self) -> Values:
        plain: Values = {"rope_type": "default", "rope_theta": self.rope_theta}
        whole = plain if self.rope_scaling is None else plain | self.rope_scaling.to_hf()
        return super().to_hf_config() | {"rope_parameters": {"full_attention": whole, "sliding_attention": plain}}

    @classmethod
    def is_of_gguf(cls, metadata: GgufMetadata) -> bool:
        return not Olmo2.is_of_gguf(metadata)


Olmo3.TINY = Olmo3(**Olmo2.TINY.model_dump() | {"num_hidden_layers": 4, "sliding_window": 8})
