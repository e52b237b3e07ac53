"""Llama 1 to 3.3 (arXiv:2302.13971, arXiv:2407.21783) and its look-alikes, such as SmolLM2 and DeepSeek-Coder.

Field names are those of `LlamaConfig`. llama.cpp turns neighbouring pairs of a head where Hugging Face turns its two
halves, so the rows of queries and keys lie in another order in a GGUF file.
"""

from dataclasses import replace

from pydantic import Field

from settle.formats.gguf.metadata import number, whole
from settle.model.architectures import TINY_SIZES, Architecture, GgufFields, GgufMetadata, Rows, Tensors, Values
from settle.model.config import LayerOptions
from settle.model.layers.rope import divisors, llama3_scaling


class Llama(Architecture):
    """A Llama decoder."""

    model_type = "llama"
    gguf_architecture = "llama"
    HF_CLASS = "LlamaForCausalLM"
    HF_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}

    attention_bias: bool = Field(False, description="biases of the attention's linears")
    mlp_bias: bool = Field(False, description="biases of the feed-forward's linears")

    def layer_options(self, layer: int) -> LayerOptions:
        attention, mlp = self.attention_bias, self.mlp_bias
        return replace(super().layer_options(layer), qkv_bias=attention, out_bias=attention, mlp_bias=mlp)

    @classmethod
    def is_of_gguf(cls, metadata: GgufMetadata) -> bool:
        return super().is_of_gguf(metadata) and not metadata.get(f"{Llama.gguf_architecture}.expert_count")

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        scaling = self.rope_scaling
        if scaling is None or scaling.rope_type != "llama3":
            return {}
        factors = divisors(scaling, self.rotary_width, self.rope_theta, self.max_position_embeddings)
        return {"rope_freqs.weight": factors}

    @classmethod
    def gguf_values(cls, fields: GgufFields, tensors: Tensors) -> Values:
        values = super().gguf_values(fields, tensors)
        if "rope_freqs.weight" in tensors:
            factors = tensors["rope_freqs.weight"].load().tolist()
            values["rope_scaling"] = llama3_scaling(factors, whole(values, "head_dim"), number(values, "rope_theta"))
        values["attention_bias"] = "blk.0.attn_q.bias" in tensors
        values["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
        return values

    def to_gguf(self, name: str, values: Rows) -> Rows:
        heads = self._turned_heads(name)
        if heads is None:
            return super().to_gguf(name, values)
        split = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        return split.swapaxes(1, 2).reshape(values.shape)

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        heads = self._turned_heads(name)
        if heads is None:
            return super().from_gguf_tensor(name, values)
        split = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return split.swapaxes(1, 2).reshape(values.shape)

    def _turned_heads(self, name: str) -> int | None:
        """Heads of a projection whose rows GGUF orders otherwise; None for every other tensor."""
        if ".q_proj." in name:
            return self.num_attention_heads
        return self.num_key_value_heads if ".k_proj." in name else None


Llama.TINY = Llama(**TINY_SIZES)
