"""LFM2 and LFM2.5 with experts (arXiv:2511.23404): LFM2's mixers, and a mixture in all but the first layers."""

from dataclasses import replace
from typing import Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.model.architectures import GgufFields, GgufKeys, HfConfig, Tensors, Values
from settle.model.architectures._experts import NarrowMixture
from settle.model.architectures.lfm2 import Lfm2
from settle.model.config import Experts

_SIGMOID = 2  # llama.cpp's number of it


class Lfm2Moe(NarrowMixture, Lfm2):
    """An LFM2 decoder with experts. Those of a token are chosen by their chances and a bias, and weighed without it."""

    model_type = "lfm2_moe"
    gguf_architecture = "lfm2moe"
    HF_CLASS = "Lfm2MoeForCausalLM"
    HF_DEFAULTS = Lfm2.HF_DEFAULTS | {
        "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 1792,
    }  # fmt: skip
    HF_NAMES = Lfm2.HF_NAMES | {
        "mlp.gate": "feed_forward.gate",
        "mlp.experts": "feed_forward.experts",
        "mlp.expert_bias.weight": "feed_forward.expert_bias",
        "mlp.experts.*.gate_proj": "feed_forward.experts.*.w1",
        "mlp.experts.*.up_proj": "feed_forward.experts.*.w3",
        "mlp.experts.*.down_proj": "feed_forward.experts.*.w2",
    }
    PEFT_NAMES_EXPERTS = False
    GGUF_LAYER = Lfm2.GGUF_LAYER | NarrowMixture.EXPERTS_IN_GGUF | {"mlp.expert_bias.weight": "exp_probs_b.bias"}

    num_dense_layers: int = Field(0, ge=0, description="first layers without experts")
    use_expert_bias: bool = Field(True, description="whether experts are chosen with a bias")
    norm_topk_prob: bool = Field(True, description="whether the weights of a token's experts sum to 1")
    routed_scaling_factor: float = Field(1.0, gt=0, description="multiplies what the experts add")

    @property
    def mixture(self) -> Experts:
        return replace(
            super().mixture,
            sigmoid=True,
            biased=self.use_expert_bias,
            normalised=self.norm_topk_prob,
            scale=self.routed_scaling_factor,
        )

    def experts(self, layer: int) -> Experts | None:
        return None if layer < self.num_dense_layers else self.mixture

    def shortened(self, layers: int) -> Self:
        dense = self.num_dense_layers * layers // self.num_hidden_layers
        return super().shortened(layers).with_fields(num_dense_layers=dense)

    def to_hf_config(self) -> Values:
        own = ("block_auto_adjust_ff_dim", "block_dim", "block_multiple_of", "block_ffn_dim_multiplier")
        return {key: value for key, value in super().to_hf_config().items() if key not in own}

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        return super().hf_values({**config, "block_auto_adjust_ff_dim": False})

    def gguf_metadata(self) -> GgufKeys:
        if not (self.use_expert_bias and self.norm_topk_prob and self.routed_scaling_factor == 1):
            raise FormatError(
                "llama.cpp chooses an LFM2's experts with a bias, and lets the weights of a token's experts sum to 1: "
                "this model does not",
                "export it as safetensors",
            )
        own: GgufKeys = {"leading_dense_block_count": self.num_dense_layers, "expert_gating_func": _SIGMOID}
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in own.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        if fields.whole("expert_gating_func", _SIGMOID) != _SIGMOID:
            raise FormatError("its experts' chances come of no sigmoid", "get the file again")
        return super().gguf_values(fields, tensors) | {"num_dense_layers": fields.number("leading_dense_block_count")}


Lfm2Moe.TINY = Lfm2Moe(
    **Lfm2.TINY.model_dump(), num_dense_layers=1, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=32
)
