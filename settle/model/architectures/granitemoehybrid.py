"""Granite 4.0: Mamba-2 in most layers and attention in a few, or attention in all, with Granite's multipliers.

Attention has no positions in the hybrid models. `intermediate_size` is the width of what Hugging Face calls the shared
feed-forward, the only one of models without experts (`num_experts` = 0); `moe_intermediate_size` is that of an expert.
llama.cpp knows models without Mamba-2 and experts as `granite`.
"""

from dataclasses import replace
from typing import Literal, Self

from pydantic import Field

from settle.base.errors import FormatError
from settle.formats.gguf.metadata import texts, whole
from settle.model.architectures import TINY_SIZES, GgufFields, GgufKeys, HfConfig, Tensors, Values
from settle.model.architectures._experts import StackedExperts
from settle.model.architectures._layer_types import Hybrid
from settle.model.architectures._mamba import Mamba
from settle.model.architectures.granite import Granite
from settle.model.config import Experts, Mamba2, Rope
from settle.model.layers.rope import no_rope

Kind = Literal["mamba", "attention"]
_SHARED = ("mlp", "mlp.shared_expert")  # without experts, and beside them
_HALVES = {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "output_linear"}
_KINDS = {"linear_attention": "mamba", "full_attention": "attention"}  # names since transformers 5


class GraniteMoeHybrid(StackedExperts, Hybrid, Granite, Mamba):
    """A Granite 4.0 decoder. Its experts are beside a feed-forward that every token meets."""

    model_type = "granitemoehybrid"
    gguf_architecture = "granitehybrid"
    HF_CLASS = "GraniteMoeHybridForCausalLM"
    WIDTH = "moe_intermediate_size"
    HF_DEFAULTS = Granite.HF_DEFAULTS | {
        "attention_multiplier": 1.0, "mamba_n_heads": 128, "mamba_d_state": 256, "num_experts": 8,
        "num_experts_per_tok": 2,
    }  # fmt: skip
    HF_FIXED = {"hidden_act": "silu", "mlp_bias": False, "mamba_proj_bias": False}
    HF_NAMES = StackedExperts.HF_NAMES | {
        f"{module}.{ours}": f"shared_mlp.{theirs}" for module in _SHARED for ours, theirs in _HALVES.items()
    }
    HF_JOINED = StackedExperts.HF_JOINED | {
        f"{module}.{half}_proj": "shared_mlp.input_linear" for module in _SHARED for half in ("gate", "up")
    }
    GGUF_LAYER = Mamba.GGUF_LAYER | StackedExperts.EXPERTS_IN_GGUF
    ATTENDING, OTHER, PERIOD, FIRST = "attention", "mamba", 10, 5

    num_experts: int = Field(0, ge=0, description="feed-forwards of a layer beside the shared one")
    num_experts_per_tok: int = Field(0, ge=0, description="of them, those that a token meets")
    moe_intermediate_size: int = Field(128, gt=0, description="width of one of them")
    position_embedding_type: Literal["rope", "nope"] = Field("nope", description="whether queries and keys turn")
    layer_types: tuple[Kind, ...] = Field((), description="mixer of each layer; one in ten attends if empty")

    @property
    def gguf_family(self) -> str:
        return self.gguf_architecture if "mamba" in self.layer_types else Granite.gguf_architecture

    @property
    def mixture(self) -> Experts:
        return replace(super().mixture, shared=self.intermediate_size)

    def experts(self, layer: int) -> Experts | None:
        return self.mixture if self.num_experts else None

    def recurrence(self, layer: int) -> Mamba2 | None:
        return None if self.attends(layer) else self.state_space("behind gate")

    def rope(self, layer: int) -> Rope:
        return super().rope(layer) if self.position_embedding_type == "rope" else no_rope(self.head_dim)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = super().sized(num_parameters, vocab_size, context)
        heads, width = 2 * shape.num_attention_heads, shape.head_dim
        return shape.with_fields(mamba_n_heads=heads, mamba_d_head=width, mamba_d_state=16)

    def to_hf_config(self) -> Values:
        expand = self.mamba_n_heads * self.mamba_d_head // self.hidden_size
        own = {"shared_intermediate_size": self.intermediate_size, "mamba_expand": expand}
        config = super().to_hf_config() | own
        inner = config.pop("moe_intermediate_size")
        return config | ({"intermediate_size": inner} if self.num_experts else {})

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        values = super().hf_values(config)
        layers = whole(config, "num_hidden_layers")
        kinds = texts(config, "layer_types") or texts(config, "layers_block_type") or ["mamba"] * layers
        values["layer_types"] = [_KINDS.get(kind, kind) for kind in kinds]
        own = {"moe_intermediate_size": values["intermediate_size"]}
        values |= own if values["num_experts"] else {"num_experts_per_tok": 0}
        values["intermediate_size"] = whole({"shared_intermediate_size": 1024, **config}, "shared_intermediate_size")
        values["position_embedding_type"] = "rope" if config.get("position_embedding_type") == "rope" else "nope"
        return values

    def gguf_metadata(self) -> GgufKeys:
        turns, keys = self.position_embedding_type == "rope", super().gguf_metadata()
        if not self.num_experts:
            keys = {key: value for key, value in keys.items() if ".expert_" not in key}
        if "attention" not in self.layer_types:
            raise FormatError("llama.cpp loads no Granite without attention", "export it as safetensors")
        if "mamba" not in self.layer_types:
            if not turns or self.num_experts:
                what = "llama.cpp's Granite 4.0 without Mamba-2 has positions, and no experts"
                raise FormatError(what, "export it as safetensors")
            return {key: value for key, value in keys.items() if ".ssm." not in key}
        if not self.mamba_conv_bias:
            raise FormatError("llama.cpp wants biases of a Granite's convolutions", "export it as safetensors")
        heads = [self.num_key_value_heads if self.attends(i) else 0 for i in range(self.num_hidden_layers)]
        own: GgufKeys = {"attention.head_count_kv": heads, "rope.scaling.finetuned": turns}
        if self.num_experts:
            own |= {
                "feed_forward_length": self.moe_intermediate_size,
                "expert_shared_feed_forward_length": self.intermediate_size,
            }
        return keys | {f"{self.gguf_family}.{key}": value for key, value in own.items()}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        layers = range(whole(values, "num_hidden_layers"))
        kinds = ["attention" if f"blk.{i}.attn_q.weight" in tensors else "mamba" for i in layers]
        if values["num_experts"]:
            values["moe_intermediate_size"] = values["intermediate_size"]
            values["intermediate_size"] = fields.number("expert_shared_feed_forward_length")
        return values | {
            "layer_types": kinds,
            "attention_bias": any(name.endswith("attn_q.bias") for name in tensors),
            "position_embedding_type": "rope" if fields.get("rope.scaling.finetuned", True) else "nope",
        }


GraniteMoeHybrid.TINY = GraniteMoeHybrid(
    **TINY_SIZES | {"num_hidden_layers": 3},
    num_experts=6,
    num_experts_per_tok=2,
    moe_intermediate_size=32,
    layer_types=("mamba", "attention", "mamba"),
    mamba_n_heads=4,
    mamba_d_head=16,
    mamba_d_state=16,
    embedding_multiplier=3.0,
    residual_multiplier=0.3,
    attention_multiplier=0.4,
    logits_scaling=2.0,
)
