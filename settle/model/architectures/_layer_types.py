"""Families whose configuration names the kind of each layer.

Most layers look back over a window only (Gemma 2 and 3, OLMo 3), or have no attention (LFM2, Granite 4).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import section, texts, whole
from settle.model.architectures import Architecture, GgufFields, GgufKeys, HfConfig, Tensors, Values


class WindowPattern(Architecture):
    """A decoder whose layers slide, but for some.

    PERIOD: the last of this many layers sees everything.
    """

    PERIOD: ClassVar[int]

    sliding_window: int = Field(4096, gt=0, description="tokens that a query of a sliding layer sees")
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(
        None, description="which layers slide; None: all but the last of each period"
    )

    @model_validator(mode="after")
    def _a_type_for_each_layer(self) -> Self:
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name each layer")
        return self

    def shortened(self, layers: int) -> Self:
        return self.with_fields(num_hidden_layers=layers, layer_types=None)

    def slides(self, layer: int) -> bool:
        """Return whether a layer looks back over the window only."""
        if self.layer_types is not None:
            return self.layer_types[layer] == "sliding_attention"
        return (layer + 1) % self.PERIOD != 0

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.slides(layer) else None

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        rope = section(config, "rope_parameters")
        whole_rope = section(rope, "full_attention")  # newer: one for each kind of layer
        values = super().hf_values({**config, "rope_parameters": whole_rope} if whole_rope else config)
        layers, pattern = whole(config, "num_hidden_layers"), "sliding_window_pattern"
        period = whole(config, pattern) if config.get(pattern) else cls.PERIOD
        types = texts(config, "layer_types") or _layer_types(layers, period)
        values["layer_types"] = None if types == _layer_types(layers, cls.PERIOD) else types
        return values

    def to_hf_config(self) -> Values:
        types = self.layer_types or _layer_types(self.num_hidden_layers, self.PERIOD)
        return super().to_hf_config() | {"layer_types": list(types)}

    def gguf_metadata(self) -> GgufKeys:
        if any(self.slides(i) != ((i + 1) % self.PERIOD != 0) for i in range(self.num_hidden_layers)):
            raise FormatError(
                f"llama.cpp lets all but each {self.PERIOD}th layer of this family slide, this model has others",
                "export it as safetensors",
            )
        return super().gguf_metadata() | {f"{self.gguf_architecture}.attention.sliding_window": self.sliding_window}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        window = fields.number("attention.sliding_window", 4096)
        return super().gguf_values(fields, tensors) | {"sliding_window": window}


class Hybrid(Architecture):
    """A decoder that attends in some layers and has another mixer in the others.

    ATTENDING, OTHER: what the two are called in `layer_types`. Where that is empty, one layer of each PERIOD attends,
    number FIRST of it.
    """

    ATTENDING: ClassVar[str]
    OTHER: ClassVar[str]
    PERIOD: ClassVar[int]
    FIRST: ClassVar[int]

    layer_types: tuple[str, ...] = Field((), description="mixer of each layer; one of each period attends if empty")

    @model_validator(mode="before")
    @classmethod
    def _each_layer(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and not values.get("layer_types"):
            number = int(values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default))
            first = min(cls.FIRST, number - 1)  # llama.cpp loads none without attention
            kinds = [cls.ATTENDING if layer % cls.PERIOD == first else cls.OTHER for layer in range(number)]
            return {**values, "layer_types": kinds}
        return values

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError("layer_types must name as many layers as num_hidden_layers")
        return self

    def attends(self, layer: int) -> bool:
        return self.layer_types[layer] == self.ATTENDING

    def shortened(self, layers: int) -> Self:
        kinds = [self.layer_types[i * self.num_hidden_layers // layers] for i in range(layers)]
        return self.with_fields(num_hidden_layers=layers, layer_types=kinds)


def _layer_types(layers: int, period: int) -> list[str]:
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
