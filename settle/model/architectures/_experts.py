"""Families with mixtures of experts: a router sends each token to a few of many feed-forwards.

In a GGUF file a layer's experts are stacked.
"""

from dataclasses import replace
from typing import ClassVar, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.model.architectures import Architecture, GgufFields, GgufKeys, HfConfig, Tensors, Values
from settle.model.config import Experts


class Mixture(Architecture):
    """A decoder whose feed-forwards are mixtures, or some of them.

    HF_NUMBER: key of the number of experts in a `config.json`. WIDTH: field of the width of one of them.
    """

    HF_NUMBER: ClassVar[str] = "num_experts"
    WIDTH: ClassVar[str] = "intermediate_size"
    EXPERTS_IN_GGUF: ClassVar[dict[str, str]] = {
        "mlp.gate": "ffn_gate_inp",
        "mlp.experts.gate_proj": "ffn_gate_exps",
        "mlp.experts.up_proj": "ffn_up_exps",
        "mlp.experts.down_proj": "ffn_down_exps",
        "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
        "mlp.shared_expert.up_proj": "ffn_up_shexp",
        "mlp.shared_expert.down_proj": "ffn_down_shexp",
        "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    }

    num_experts: int = Field(8, gt=1, description="feed-forwards of a layer")
    num_experts_per_tok: int = Field(2, gt=0, description="of them, those that a token meets")

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError("num_experts_per_tok is more than num_experts")
        return self

    @property
    def expert_width(self) -> int:
        """Width of one of the feed-forwards of a mixture."""
        width: int = getattr(self, self.WIDTH)
        return width

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        dense = super().sized(num_parameters, vocab_size, context)
        return dense.with_fields(**{cls.WIDTH: max(32, dense.intermediate_size // 8 // 32 * 32)})

    @property
    def mixture(self) -> Experts:
        """What a layer with experts has."""
        return Experts(self.num_experts, self.num_experts_per_tok, self.expert_width)

    def experts(self, layer: int) -> Experts | None:
        return self.mixture

    def expert_parameters(self) -> dict[str, list[list[str]]]:
        found = {}
        for layer in range(self.num_hidden_layers):
            module = f"model.layers.{layer}.mlp.experts"
            names = [f"{module}.{i}" for i in range(self.num_experts if self.experts(layer) else 0)]
            for own, halves in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
                linears = [[self.hf_module(f"{name}.{half}_proj") for half in halves] for name in names]
                if linears:
                    found[f"{self.hf_module(module)}.{own}"] = linears
        return found

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        names = ("num_experts", "num_local_experts")
        number = next((config[name] for name in names if config.get(name) is not None), None)
        return super().hf_values(config if number is None else {**config, "num_experts": number})

    def to_hf_config(self) -> Values:
        config = super().to_hf_config()
        return config | {self.HF_NUMBER: config.pop("num_experts")}

    def gguf_metadata(self) -> GgufKeys:
        keys = {"expert_count": self.num_experts, "expert_used_count": self.num_experts_per_tok}
        return super().gguf_metadata() | {f"{self.gguf_family}.{key}": value for key, value in keys.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        if "blk.0.ffn_gate.0.weight" in tensors:
            what = "it has one tensor for each expert, as llama.cpp wrote them until April 2024"
            raise FormatError(what, "get a newer file, whose experts are stacked (ffn_gate_exps)")
        return super().gguf_values(fields, tensors) | {
            "num_experts": fields.number("expert_count", 0),
            "num_experts_per_tok": fields.number("expert_used_count", 0),
        }


class StackedExperts(Mixture):
    """A mixture whose experts are stacked in Hugging Face's files too, gate and up one matrix (Granite)."""

    HF_NUMBER = "num_local_experts"
    HF_NAMES: ClassVar[dict[str, str]] = {
        "mlp.gate": "block_sparse_moe.router.layer",
        "mlp.experts": "block_sparse_moe.experts",
        "mlp.experts.*.gate_proj": "block_sparse_moe.experts.*.gate_proj",
        "mlp.experts.*.up_proj": "block_sparse_moe.experts.*.up_proj",
        "mlp.experts.*.down_proj": "block_sparse_moe.experts.*.down_proj",
    }
    HF_JOINED: ClassVar[dict[str, str]] = {
        "mlp.experts.*.gate_proj": "block_sparse_moe.input_linear",
        "mlp.experts.*.up_proj": "block_sparse_moe.input_linear",
        "mlp.experts.*.down_proj": "block_sparse_moe.output_linear",
    }
    PEFT_NAMES_EXPERTS = False

    def hf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if ".block_sparse_moe." in name and not name.endswith("router.layer.weight"):
            return (self.num_experts, shape[0] // self.num_experts, *shape[1:])
        return super().hf_shape(name, shape)


class NarrowMixture(Mixture):
    """A mixture whose experts have a width by themselves."""

    WIDTH = "moe_intermediate_size"

    moe_intermediate_size: int = Field(128, gt=0, description="width of one of the feed-forwards of a mixture")

    def gguf_metadata(self) -> GgufKeys:
        return super().gguf_metadata() | {f"{self.gguf_family}.expert_feed_forward_length": self.moe_intermediate_size}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        inner = fields.number("expert_feed_forward_length", fields.whole("feed_forward_length"))
        return super().gguf_values(fields, tensors) | {"moe_intermediate_size": inner}


class WeighedMixture(Mixture):
    """A mixture whose files say whether the weights of a token's experts sum to 1.

    NORMALISED_IN_GGUF: whether they do in llama.cpp, which computes one of the two in each family.
    """

    NORMALISED_IN_GGUF: ClassVar[bool] = True

    norm_topk_prob: bool = Field(True, description="whether the weights of a token's experts sum to 1")

    @property
    def mixture(self) -> Experts:
        return replace(super().mixture, normalised=self.norm_topk_prob)

    def gguf_metadata(self) -> GgufKeys:
        if self.norm_topk_prob != self.NORMALISED_IN_GGUF:
            lets, does = ("always lets", "does not") if self.NORMALISED_IN_GGUF else ("never lets", "does")
            raise FormatError(
                f"llama.cpp {lets} the weights of a token's experts sum to 1, this model {does}",
                "export it as safetensors",
            )
        return super().gguf_metadata()

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        return super().gguf_values(fields, tensors) | {"norm_topk_prob": cls.NORMALISED_IN_GGUF}


class SharedMixture(NarrowMixture):
    """A mixture beside a feed-forward that every token meets, which a sigmoid of a linear multiplies (Qwen)."""

    shared_expert_intermediate_size: int = Field(
        256, gt=0, description="width of the feed-forward that all tokens meet"
    )

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = super().sized(num_parameters, vocab_size, context)
        return shape.with_fields(shared_expert_intermediate_size=2 * shape.moe_intermediate_size)

    @property
    def mixture(self) -> Experts:
        return replace(super().mixture, shared=self.shared_expert_intermediate_size, shared_gate=True)

    def gguf_metadata(self) -> GgufKeys:
        key = f"{self.gguf_family}.expert_shared_feed_forward_length"
        return super().gguf_metadata() | {key: self.shared_expert_intermediate_size}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        shared = fields.number("expert_shared_feed_forward_length", fields.whole("feed_forward_length"))
        return super().gguf_values(fields, tensors) | {"shared_expert_intermediate_size": shared}

    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[1:] if name.endswith("mlp.shared_expert_gate.weight") else super().gguf_shape(name, shape)
