"""Llama: RMS norms, rotary positions, grouped-query attention, SwiGLU (arXiv:2302.13971).

Field names are those of `LlamaConfig`; what llama.cpp calls `llama` is this and nothing else, so an export is a
renaming. Letters: N tokens, D hidden width, F feed-forward width, L layers, H heads, K key/value heads, d head width,
V vocabulary, T context.
"""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from settle.base.errors import FormatError
from settle.model import sizing
from settle.model.architectures import Architecture
from settle.model.options import DecoderOptions, LayerOptions, Rope


class Llama(Architecture):
    """A Llama decoder."""

    model_type: ClassVar[str] = "llama"
    TINY: ClassVar["Llama"]

    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(704, gt=0, description="width of the feed-forward")
    num_hidden_layers: int = Field(4, gt=0, description="layers")
    num_attention_heads: int = Field(4, gt=0, description="query heads")
    num_key_value_heads: int = Field(4, gt=0, description="key/value heads; divides the query heads")
    head_dim: int = Field(64, gt=0, multiple_of=2, description="width of a head")
    vocab_size: int = Field(1024, gt=0, description="rows of the token tables")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square before its root")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    tie_word_embeddings: bool = Field(False, description="one table for input and output")
    max_position_embeddings: int = Field(256, gt=0, description="tokens of context")
    bos_token_id: int | None = Field(None, description="id that opens a text")
    eos_token_id: int | None = Field(None, description="id that ends a text")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self

    def options(self) -> DecoderOptions:
        layer = LayerOptions(
            width=self.hidden_size,
            inner=self.intermediate_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
            rope=Rope(self.rope_theta),
        )
        return DecoderOptions(self.vocab_size, (layer,) * self.num_hidden_layers, self.tie_word_embeddings)

    @property
    def num_parameters(self) -> int:
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_non_embedding_parameters + tables * self.vocab_size * self.hidden_size

    @property
    def num_non_embedding_parameters(self) -> int:
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_hidden_layers * self._matrix_numbers + norms

    @property
    def _matrix_numbers(self) -> int:
        """Numbers in one layer's matrices."""
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return self.hidden_size * (2 * query + 2 * key + 3 * self.intermediate_size)

    def flops_per_token(self, context: int) -> float:
        # Two FLOPs a multiply-add, one pass forward and two backward; a causal query meets (T + 1) / 2 keys.
        products = self.num_hidden_layers * self._matrix_numbers + self.vocab_size * self.hidden_size
        scores = self.num_hidden_layers * self.num_attention_heads * self.head_dim * (context + 1)
        return 6.0 * (products + scores)

    def activation_bytes_per_token(self, context: int, bytes_per_number: int) -> float:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        qkv = (heads + 2 * kv_heads) * self.head_dim
        attention = self.hidden_size + 1 + qkv + heads * context + heads * self.head_dim
        feed_forward = self.hidden_size + 1 + 4 * self.intermediate_size
        # After the layers: the final norm and the gradient of its result, which the loss computes at once.
        numbers = self.num_hidden_layers * (attention + feed_forward) + 2 * self.hidden_size + 1
        return float(bytes_per_number * numbers)

    def hf_names(self) -> dict[str, str]:
        return {name: name for name in self.gguf_names()}

    def gguf_names(self) -> dict[str, str]:
        names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
        if not self.tie_word_embeddings:
            names["lm_head.weight"] = "output.weight"
        for i in range(self.num_hidden_layers):
            names |= {f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for ours, theirs in _GGUF.items()}
        return names

    def to_hf_config(self) -> dict[str, Any]:
        fixed = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "dtype": "float32",
        }
        return fixed | self.model_dump()

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Self:
        _refuse_unknown(config)
        values = {name: config[name] for name in cls.model_fields if config.get(name) is not None}
        values.setdefault("num_key_value_heads", config["num_attention_heads"])
        values.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        rope = config.get("rope_parameters") or {}
        values["rope_theta"] = rope.get("rope_theta", config.get("rope_theta", 10000.0))
        for name in ("bos_token_id", "eos_token_id"):
            if isinstance(values.get(name), list):
                values[name] = values[name][0]
        return cls(**values)

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = sizing.shape(num_parameters, vocab_size)
        return cls(
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads,
            head_dim=shape.head_dim,
            vocab_size=vocab_size,
            max_position_embeddings=context,
            tie_word_embeddings=shape.tied,
        )


_GGUF = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def _refuse_unknown(config: dict[str, Any]) -> None:
    """Refuse what a `config.json` may ask for and this family does not do."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    asked = {
        "model_type": (config.get("model_type"), "llama"),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "rope_type": (kind, "default"),
    }
    for key, (value, done) in asked.items():
        if value != done:
            raise FormatError(f"{key} = {value!r} is not a plain Llama", f"only {done!r} is supported")


Llama.TINY = Llama(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=64,
    max_position_embeddings=64,
)
