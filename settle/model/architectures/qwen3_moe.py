"""Qwen3 with a mixture of experts (arXiv:2505.09388): a router sends each token to a few of many feed-forwards."""

import re
from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.model.architectures import GgufFields, GgufKeys, HfConfig, Shapes, Tensors, Values
from settle.model.architectures.qwen3 import Qwen3
from settle.model.config import Experts, LayerOptions


class Qwen3Moe(Qwen3):
    """A Qwen3 decoder whose feed-forwards are all mixtures. In a GGUF file a layer's experts are stacked."""

    model_type = "qwen3_moe"
    gguf_architecture = "qwen3moe"
    HF_CLASS = "Qwen3MoeForCausalLM"
    HF_DEFAULTS = {
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
    }
    HF_FIXED = {
        "hidden_act": "silu",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    GGUF_LAYER = Qwen3.GGUF_LAYER | {
        "mlp.gate": "ffn_gate_inp",
        "mlp.experts.gate_proj": "ffn_gate_exps",
        "mlp.experts.up_proj": "ffn_up_exps",
        "mlp.experts.down_proj": "ffn_down_exps",
    }

    num_experts: int = Field(8, gt=1, description="feed-forwards of a layer")
    num_experts_per_tok: int = Field(2, gt=0, description="of them, those that a token meets")
    moe_intermediate_size: int = Field(128, gt=0, description="width of one of them")
    norm_topk_prob: bool = Field(True, description="whether their weights sum to 1")

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError("num_experts_per_tok is more than num_experts")
        return self

    def window(self, layer: int) -> int | None:
        return self.sliding_window if self.use_sliding_window else None

    def feed_forward_parameters(self) -> Shapes:
        width, inner = self.hidden_size, self.moe_intermediate_size
        shapes: Shapes = {"mlp.gate.weight": (self.num_experts, width)}
        for expert in range(self.num_experts):
            shapes[f"mlp.experts.{expert}.gate_proj.weight"] = (inner, width)
            shapes[f"mlp.experts.{expert}.up_proj.weight"] = (inner, width)
            shapes[f"mlp.experts.{expert}.down_proj.weight"] = (width, inner)
        return shapes

    def layer_options(self, layer: int) -> LayerOptions:
        experts = Experts(
            self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size, normalised=self.norm_topk_prob
        )
        return replace(super().layer_options(layer), experts=experts)

    def active_numbers(self, layer: int) -> int:
        idle = self.num_experts - self.num_experts_per_tok
        return super().active_numbers(layer) - idle * 3 * self.hidden_size * self.moe_intermediate_size

    def share_met(self, linear: str) -> float:
        return self.num_experts_per_tok / self.num_experts if ".experts." in linear else 1.0

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        dense = Qwen3.sized(num_parameters, vocab_size, context)
        inner = max(32, dense.intermediate_size // 8 // 32 * 32)
        return cls(**dense.model_dump() | {"moe_intermediate_size": inner})

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        return super().hf_values({"num_experts": config.get("num_local_experts"), **config})  # its newer name

    def gguf_names(self) -> dict[str, str]:
        names = {name: self._gguf_name(re.sub(r"\.experts\.\d+\.", ".experts.", name)) for name in self.parameters()}
        # One kind after the other, so that the parts of a stacked tensor follow each other.
        return dict(sorted(names.items(), key=lambda item: list(names.values()).index(item[1])))

    def gguf_metadata(self) -> GgufKeys:
        if not self.norm_topk_prob:
            raise FormatError(
                "llama.cpp always lets the weights of a token's experts sum to 1, this model does not",
                "export it as safetensors",
            )
        keys = {
            "expert_count": self.num_experts,
            "expert_used_count": self.num_experts_per_tok,
            "expert_feed_forward_length": self.moe_intermediate_size,
        }
        return super().gguf_metadata() | {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        return super().gguf_values(fields, tensors) | {
            "num_experts": fields.number("expert_count"),
            "num_experts_per_tok": fields.number("expert_used_count"),
            "moe_intermediate_size": fields.number("expert_feed_forward_length"),
        }


Qwen3Moe.TINY = Qwen3Moe(
    **Qwen3.TINY.model_dump() | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
)
