"""A transformer in GGUF's layout: the last of what the families share. A family's file holds what is its own."""

import struct
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import ValidationError

from settle.base.errors import FormatError
from settle.formats import LazyTensor
from settle.formats.gguf.metadata import section, whole
from settle.model.architectures._contract import GgufMetadata, HfConfig
from settle.model.architectures._size import TransformerSize
from settle.model.layers.rope import RopeScaling

_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # None says: off


class TransformerHf(TransformerSize):
    """HF_DEFAULTS: values of keys that a `config.json` leaves out. HF_FIXED: keys with the one supported value."""

    HF_CLASS: ClassVar[str]
    HF_DEFAULTS: ClassVar[dict[str, object]] = {}
    HF_FIXED: ClassVar[dict[str, object]] = {"hidden_act": "silu"}

    def hf_names(self) -> dict[str, str]:
        return {name: name for name in self.parameters()}

    def to_hf_config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "architectures": [self.HF_CLASS],
            "model_type": self.model_type,
            "dtype": "float32",
        }
        config |= self.HF_FIXED | self.model_dump(mode="json", exclude={"rope_scaling"})
        if self.rope_scaling is not None:
            config["rope_scaling"] = self.rope_scaling.to_hf()
        return config

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        for key, done in {"model_type": cls.model_type, "quantization_config": None, **cls.HF_FIXED}.items():
            if config.get(key, done) not in (done, None):
                raise FormatError(
                    f"{key} = {config[key]!r} is not supported for {cls.model_type}", f"only {done!r} is supported"
                )
        try:
            return cls.model_validate(cls.hf_values(config))
        except KeyError as e:
            raise FormatError(f"config.json has no {e.args[0]}", "get the file again") from None
        except ValidationError as e:
            raise FormatError(f"config.json cannot be used: {first_error(e)}", "get the file again") from None

    @classmethod
    def hf_values(cls, config: HfConfig) -> dict[str, object]:
        """Return the fields that a `config.json` gives; those it leaves out as Hugging Face's class has them."""
        values = dict(cls.HF_DEFAULTS)
        for name in cls.model_fields:
            if config.get(name) is not None or (name in config and name in _NULLABLE):
                values[name] = config[name]
        values.setdefault("num_key_value_heads", config["num_attention_heads"])
        values.setdefault("head_dim", whole(config, "hidden_size") // whole(config, "num_attention_heads"))
        rope = section(config, "rope_parameters") or section(config, "rope_scaling")
        if rope.get("rope_theta") is not None:
            values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = RopeScaling.from_hf(rope)
        return values


def first_error(error: ValidationError) -> str:
    """Which value is wrong, and how."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


_GGUF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class Transformer(TransformerHf):
    """A pre-norm decoder with rotary positions, grouped queries and a gated feed-forward.

    GGUF_LAYER: module of a layer → its name in a GGUF file. QUERIES_ARE_WIDTH: whether llama.cpp takes the one for the
    other in this family.
    """

    QUERIES_ARE_WIDTH: ClassVar[bool] = False
    GGUF_LAYER: ClassVar[dict[str, str]] = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }

    def gguf_names(self) -> dict[str, str]:
        return {name: self._gguf_name(name) for name in self.parameters()}

    def _gguf_name(self, name: str) -> str:
        module, _, kind = name.rpartition(".")
        if module in _GGUF_MODEL:
            return f"{_GGUF_MODEL[module]}.{kind}"
        _, _, layer, inside = module.split(".", 3)
        return f"blk.{layer}.{self.GGUF_LAYER[inside]}.{kind}"

    def gguf_metadata(self) -> dict[str, str | float]:
        queries = self.num_attention_heads * self.head_dim
        if self.QUERIES_ARE_WIDTH and queries != self.hidden_size:
            raise FormatError(
                f"llama.cpp loads a {self.model_type} only when its query heads together are as wide as the model: "
                f"they are {queries} wide, the model {self.hidden_size}",
                "export it as safetensors",
            )
        keys: dict[str, str | float] = {
            "vocab_size": self.vocab_size,
            "context_length": self.gguf_context(),
            "embedding_length": self.hidden_size,
            "block_count": self.num_hidden_layers,
            "feed_forward_length": self.intermediate_size,
            "attention.head_count": self.num_attention_heads,
            "attention.head_count_kv": self.num_key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.rms_norm_eps,
            "rope.dimension_count": self.rotary_width,
            "rope.freq_base": self.rope_theta,
        }
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": self.rope_scaling.factor or 1.0}
        return {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    def gguf_context(self) -> int:
        """Tokens of context as a GGUF file says it: no more than what llama.cpp computes as this model does."""
        return self.max_position_embeddings

    @classmethod
    def from_gguf(cls, metadata: GgufMetadata, tensors: Mapping[str, LazyTensor]) -> Self:
        try:
            return cls.model_validate(cls.gguf_values(GgufFields(metadata, cls.gguf_architecture), tensors))
        except ValidationError as e:
            raise FormatError(f"its GGUF metadata cannot be used: {first_error(e)}", "get the file again") from None

    @classmethod
    def gguf_values(cls, fields: "GgufFields", tensors: Mapping[str, LazyTensor]) -> dict[str, object]:
        """Return the fields that a GGUF file gives."""
        if "token_embd.weight" not in tensors:
            raise FormatError("it has no token_embd.weight", "get the file again")
        heads = fields.whole("attention.head_count")
        return {
            "hidden_size": fields.number("embedding_length"),
            "intermediate_size": fields.number("feed_forward_length"),
            "num_hidden_layers": fields.number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": fields.number("attention.head_count_kv", heads),
            "head_dim": fields.whole("attention.key_length", fields.whole("embedding_length") // max(heads, 1)),
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": fields.number("rope.freq_base", 10000.0),
            "rope_scaling": fields.rope_scaling(),
            "tie_word_embeddings": "output.weight" not in tensors,
            "max_position_embeddings": fields.number("context_length"),
            "bos_token_id": fields.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": fields.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": fields.metadata.get("tokenizer.ggml.padding_token_id"),
        }


class GgufFields:
    """The keys of one architecture in a GGUF file's metadata. Errors name the key."""

    def __init__(self, metadata: GgufMetadata, architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def get(self, key: str, default: object = None) -> object:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        """Read a number; a list of one and the same for each layer counts as it. Raises FormatError."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(
                f"{self.architecture}.{key} is {value!r} in the GGUF file", "one number for all layers is supported"
            )
        return value if isinstance(value, int) else _shortest(value)

    def whole(self, key: str, default: int | None = None) -> int:
        """Read a whole number, as `number` does."""
        return whole({key: self.number(key, default)}, key)

    def rope_scaling(self) -> dict[str, object] | None:
        kind = self.get("rope.scaling.type", "none")
        if kind == "linear":
            return {"rope_type": "linear", "factor": self.number("rope.scaling.factor")}
        if kind not in ("none", "longrope"):  # longrope's lists are tensors
            raise FormatError(f"rope.scaling.type = {kind!r} is not supported", "supported are: linear, longrope")
        return None


def _shortest(value: float) -> float:
    """Return the shortest number that rounds to the same fp32 as `value`: 1e-05, not 9.99…e-06."""
    short = float(f"{value:.7g}")
    return short if abs(value) < 1e38 and struct.pack("<f", short) == struct.pack("<f", value) else value
