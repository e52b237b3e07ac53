"""What the families share: fields, the map of tensor names, size and cost. A family's file holds what is its own.

Letters: D hidden width, F feed-forward width, H heads, K key/value heads, d head width, V vocabulary, T context.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError, model_validator

from settle.base.errors import FormatError
from settle.model import default_shape
from settle.model.architectures import Architecture
from settle.model.config import DecoderOptions, LayerOptions, Rope
from settle.model.layers.rope import RopeScaling, rope_options

_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # None says: off


class Transformer(Architecture):
    """A pre-norm decoder with rotary positions, grouped queries and a gated feed-forward.

    HF_DEFAULTS: what a key means that a `config.json` leaves out. HF_FIXED: keys with the one value that is done.
    GGUF_LAYER: module of a layer → its name in a GGUF file. QUERIES_ARE_WIDTH: whether llama.cpp takes the one for the
    other in this family.
    """

    QUERIES_ARE_WIDTH: ClassVar[bool] = False
    HF_CLASS: ClassVar[str]
    HF_DEFAULTS: ClassVar[dict[str, Any]] = {}
    HF_FIXED: ClassVar[dict[str, Any]] = {"hidden_act": "silu"}
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

    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(704, gt=0, description="width of the feed-forward")
    num_hidden_layers: int = Field(4, gt=0, description="layers")
    num_attention_heads: int = Field(4, gt=0, description="query heads")
    num_key_value_heads: int = Field(4, gt=0, description="key/value heads; divides the query heads")
    head_dim: int = Field(64, gt=0, multiple_of=2, description="width of a head")
    vocab_size: int = Field(1024, gt=0, description="rows of the token tables")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square before its root")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="how the frequencies are stretched")
    tie_word_embeddings: bool = Field(False, description="one table for input and output")
    max_position_embeddings: int = Field(256, gt=0, description="tokens of context")
    bos_token_id: int | None = Field(None, description="id that opens a text")
    eos_token_id: int | tuple[int, ...] | None = Field(None, description="id that ends a text, or several")
    pad_token_id: int | None = Field(None, description="id that fills rows up")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self

    # -- what is in a layer ------------------------------------------------------------------------------------------

    def layer_parameters(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names, without `model.layers.<i>.`, and shapes."""
        return self.attention_parameters() | self.feed_forward_parameters() | self.norm_parameters()

    def attention_parameters(self) -> dict[str, tuple[int, ...]]:
        width, query = self.hidden_size, self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        return {
            "self_attn.q_proj.weight": (query, width),
            "self_attn.k_proj.weight": (key, width),
            "self_attn.v_proj.weight": (key, width),
            "self_attn.o_proj.weight": (width, query),
        }

    def feed_forward_parameters(self) -> dict[str, tuple[int, ...]]:
        width, inner = self.hidden_size, self.intermediate_size
        return {
            "mlp.gate_proj.weight": (inner, width),
            "mlp.up_proj.weight": (inner, width),
            "mlp.down_proj.weight": (width, inner),
        }

    def norm_parameters(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("input_layernorm.weight", "post_attention_layernorm.weight"), (self.hidden_size,))

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, its own included; None for all before it."""
        return None

    def rope(self, layer: int) -> Rope:
        """The rotation of this layer's queries and keys."""
        return rope_options(self.rotary_width, self.rope_theta, self.max_position_embeddings, self.rope_scaling)

    @property
    def rotary_width(self) -> int:
        """Numbers of a head that turn."""
        return self.head_dim

    def layer_options(self, layer: int) -> LayerOptions:
        """What this layer asks of the layers' code."""
        return LayerOptions(
            width=self.hidden_size,
            inner=self.intermediate_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
            rope=self.rope(layer),
            window=self.window(layer),
        )

    def options(self) -> DecoderOptions:
        """What the whole decoder asks of it."""
        layers = tuple(map(self.layer_options, range(self.num_hidden_layers)))
        return DecoderOptions(self.vocab_size, layers, self.tie_word_embeddings)

    def parameters(self) -> dict[str, tuple[int, ...]]:
        table = (self.vocab_size, self.hidden_size)
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": table}
        for layer in range(self.num_hidden_layers):
            own = self.layer_parameters(layer)
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": table}

    # -- size and cost -----------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        return sum(map(math.prod, self.parameters().values()))

    @property
    def num_non_embedding_parameters(self) -> int:
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_parameters - tables * self.vocab_size * self.hidden_size

    def active_numbers(self, layer: int) -> int:
        """Numbers of a layer's matrices that one token meets."""
        return sum(math.prod(shape) for shape in self.layer_parameters(layer).values() if len(shape) > 1)

    def flops_per_token(self, context: int) -> float:
        # Two FLOPs a multiply-add, one pass forward and two backward.
        products, scores = self.vocab_size * self.hidden_size, 0.0
        for layer in range(self.num_hidden_layers):
            products += self.active_numbers(layer)
            scores += 2 * self.num_attention_heads * self.head_dim * keys_met(context, self.window(layer))
        return 6.0 * (products + scores)

    def activation_bytes_per_token(
        self, context: int, bytes_per_number: int, adapter: Mapping[str, int] | None = None
    ) -> float:
        # After the layers: the final norm and the gradient of its result, which the loss computes at once.
        numbers = 2.0 * self.hidden_size + 1
        for layer in self.options().layers:
            numbers += _kept_by_attention(layer, context) + _kept_by_feed_forward(layer, adapter is not None)
        numbers += sum(self.share_met(name) * kept for name, kept in (adapter or {}).items())
        return bytes_per_number * numbers

    def share_met(self, linear: str) -> float:
        """Of all tokens, the share that a linear of a layer meets."""
        return 1.0

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        shape = default_shape.shape(num_parameters, vocab_size)
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

    # -- Hugging Face ------------------------------------------------------------------------------------------------

    def hf_names(self) -> dict[str, str]:
        return {name: name for name in self.parameters()}

    def to_hf_config(self) -> dict[str, Any]:
        config = {"architectures": [self.HF_CLASS], "model_type": self.model_type, "dtype": "float32"} | self.HF_FIXED
        config |= self.model_dump(mode="json", exclude={"rope_scaling"})
        if self.rope_scaling is not None:
            config["rope_scaling"] = self.rope_scaling.to_hf()
        return config

    @classmethod
    def from_hf_config(cls, config: dict[str, Any]) -> Self:
        for key, done in {"model_type": cls.model_type, "quantization_config": None, **cls.HF_FIXED}.items():
            if config.get(key, done) not in (done, None):
                raise FormatError(
                    f"{key} = {config[key]!r} is not done for {cls.model_type}", f"only {done!r} is supported"
                )
        try:
            return cls(**cls.hf_values(config))
        except KeyError as e:
            raise FormatError(f"config.json has no {e.args[0]}", "get the file again") from None
        except ValidationError as e:
            raise FormatError(f"config.json cannot be used: {_first(e)}", "get the file again") from None

    @classmethod
    def hf_values(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The fields that a `config.json` gives; those it leaves out as Hugging Face's class has them."""
        values = dict(cls.HF_DEFAULTS)
        for name in cls.model_fields:
            if config.get(name) is not None or (name in config and name in _NULLABLE):
                values[name] = config[name]
        values.setdefault("num_key_value_heads", config["num_attention_heads"])
        values.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("rope_theta") is not None:
            values["rope_theta"] = rope["rope_theta"]
        values["rope_scaling"] = RopeScaling.from_hf(rope)
        return values

    # -- GGUF --------------------------------------------------------------------------------------------------------

    def gguf_names(self) -> dict[str, str]:
        return {name: self._gguf_name(name) for name in self.parameters()}

    def _gguf_name(self, name: str) -> str:
        module, _, kind = name.rpartition(".")
        if module in _GGUF_MODEL:
            return f"{_GGUF_MODEL[module]}.{kind}"
        _, _, layer, inside = module.split(".", 3)
        return f"blk.{layer}.{self.GGUF_LAYER[inside]}.{kind}"

    def gguf_metadata(self) -> dict[str, Any]:
        queries = self.num_attention_heads * self.head_dim
        if self.QUERIES_ARE_WIDTH and queries != self.hidden_size:
            raise FormatError(
                f"llama.cpp loads a {self.model_type} only when its query heads together are as wide as the model: "
                f"they are {queries} wide, the model {self.hidden_size}",
                "export it as safetensors",
            )
        keys: dict[str, Any] = {
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
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": self.rope_scaling.factor}
        return {f"{self.gguf_architecture}.{key}": value for key, value in keys.items()}

    def gguf_context(self) -> int:
        """Tokens of context as a GGUF file says it: no more than what llama.cpp computes as this model does."""
        return self.max_position_embeddings

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tensors: Mapping[str, Any]) -> Self:
        try:
            return cls(**cls.gguf_values(GgufFields(metadata, cls.gguf_architecture), tensors))
        except ValidationError as e:
            raise FormatError(f"its GGUF metadata cannot be used: {_first(e)}", "get the file again") from None

    @classmethod
    def gguf_values(cls, fields: "GgufFields", tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that a GGUF file gives."""
        if "token_embd.weight" not in tensors:
            raise FormatError("it has no token_embd.weight", "get the file again")
        heads = fields.number("attention.head_count")
        theta = fields.number("rope.freq_base", 10000.0)
        return {
            "hidden_size": fields.number("embedding_length"),
            "intermediate_size": fields.number("feed_forward_length"),
            "num_hidden_layers": fields.number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": fields.number("attention.head_count_kv", heads),
            "head_dim": fields.number("attention.key_length", fields.number("embedding_length") // max(heads, 1)),
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
            "rope_theta": theta,
            "rope_scaling": fields.rope_scaling(),
            "tie_word_embeddings": "output.weight" not in tensors,
            "max_position_embeddings": fields.number("context_length"),
            "bos_token_id": fields.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": fields.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": fields.metadata.get("tokenizer.ggml.padding_token_id"),
        }


_GGUF_MODEL = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


class GgufFields:
    """The keys of one architecture in a GGUF file's metadata. Errors name the key."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def get(self, key: str, default: Any = None) -> Any:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A number; a list of one and the same for each layer counts as it. Raises FormatError."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(
                f"{self.architecture}.{key} is {value!r} in the GGUF file", "one number for all layers is supported"
            )
        return value if isinstance(value, int) else _shortest(value)

    def rope_scaling(self) -> dict[str, Any] | None:
        kind = self.get("rope.scaling.type", "none")
        if kind == "linear":
            return {"rope_type": "linear", "factor": self.number("rope.scaling.factor")}
        if kind not in ("none", "longrope"):  # longrope's lists are tensors
            raise FormatError(f"rope.scaling.type = {kind!r} is not done here", "done are: linear, longrope")
        return None


def keys_met(context: int, window: int | None) -> float:
    """Keys that a query meets on average over a text of `context` tokens."""
    seen = min(context, window or context)
    return seen - seen * (seen - 1) / (2 * context)


def _shortest(value: float) -> float:
    """The shortest number that fp32, in which the file holds it, does not tell from `value`: 1e-05, not 9.99…e-06."""
    short = float(f"{value:.7g}")
    return short if abs(value) < 1e38 and struct.pack("<f", short) == struct.pack("<f", value) else value


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def _kept_by_attention(o: LayerOptions, context: int) -> int:
    """Numbers a token that the way back of one layer's attention needs; see `activation_bytes_per_token`."""
    query, key = o.heads * o.head_dim, o.kv_heads * o.head_dim
    kept = o.width + 1 + query + 2 * key + o.heads * context * (1 if o.soft_cap is None else 2) + query
    if o.head_norms:
        kept += query + key + o.heads + o.kv_heads
    if o.sandwich_norms:
        kept += o.width + 1
    return kept


def _kept_by_feed_forward(o: LayerOptions, frozen: bool) -> int:
    """The same of one layer's feed-forward. Trained, it keeps gate, up, what the gate lets through, and the product."""
    times = 2 if frozen else 4
    kept = o.width + 1 + (o.width + 1 if o.sandwich_norms else 0)
    if o.experts is None:
        return kept + times * o.inner
    e = o.experts
    # beside the experts: the norm's result, the router's chances and choice, and each expert's rows in and out
    return kept + o.width + 2 * e.num + e.top * (2 * o.width + times * e.inner + 1)
