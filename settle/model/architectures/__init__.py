"""Architectures: decoders with rotary positions, grouped queries and mostly a gated feed-forward.

What they share is here, with the fields of a Hugging Face `config.json`: size, cost, and where parameters lie in files.
A family's file holds what is its own.

Letters: D hidden width, F feed-forward width, H heads, K key/value heads, d head width, V vocabulary, T context.
"""

import math
import re
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from settle.base.errors import FormatError
from settle.base.registry import Part
from settle.formats import LazyTensor, TensorLike
from settle.formats.gguf.metadata import section, whole
from settle.model.config import (
    ROUTERS,
    DecoderOptions,
    Experts,
    LayerOptions,
    LinearShape,
    RecurrenceOptions,
    Rope,
    default_shape,
)
from settle.model.decoder import Decoder
from settle.model.layers.rope import RopeScaling, attention_factor, rope_options, yarn_attention_factor

HfConfig = Mapping[str, object]
GgufMetadata = Mapping[str, object]
GgufKeys = dict[str, str | float | list[int]]
Values = dict[str, object]  # of fields, as a file has them: a family's class checks them
Tensors = Mapping[str, LazyTensor]  # of a file
Shapes = dict[str, tuple[int, ...]]  # by a parameter's name
Rows = TypeVar("Rows", np.ndarray, Tensor)
TINY_SIZES: dict[str, Any] = {  # of each family's `TINY`
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
FLASH_WIDTH = 256  # numbers of a head at most
TURN_BYTES = 4  # a number of a head: half of them are cosines, half of them sines
LSE_BYTES = 4  # a token and head: the logarithm of the sum of its exponentials
_LAYERS = "model.layers"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_READ_BY_ALL = ("gate", "shared_expert.gate_proj", "shared_expert_gate")  # linears of a mixture that all tokens meet
_NULLABLE = ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping")  # None says: off


class Architecture(Part):
    """A model family, sized by its fields.

    MULTIMODAL: `model_type` of checkpoints whose text model is of this family. HF_DEFAULTS: values of keys that a
    `config.json` leaves out. HF_FIXED: keys with the one supported value. HF_NAMES: module of a layer, or of the model,
    or a parameter of a layer → its name in Hugging Face's files, where that is another. HF_JOINED: linear of a layer →
    the linear that holds its rows there, behind those of the linears before it. GGUF_LAYER, GGUF_MODEL: module of a
    layer or of the model, or a parameter of a layer → its name in a GGUF file. Any one of several experts is
    `experts.*`, in a GGUF file without the number. GGUF_EPSILON: key of the norms' epsilon there. PEFT_NAMES_EXPERTS:
    whether PEFT knows the experts by the names of their files. QUERIES_ARE_WIDTH: whether llama.cpp takes the one for
    the other in this family. MAY_BE_TIED: whether it does without an output table.
    """

    TINY: ClassVar[Self]
    model_type: ClassVar[str]
    MULTIMODAL: ClassVar[tuple[str, ...]] = ()
    HF_CLASS: ClassVar[str]
    HF_DEFAULTS: ClassVar[Values] = {}
    HF_FIXED: ClassVar[Values] = {"hidden_act": "silu"}
    HF_NAMES: ClassVar[dict[str, str]] = {}
    HF_JOINED: ClassVar[dict[str, str]] = {}
    gguf_architecture: ClassVar[str]
    GGUF_MODEL: ClassVar[dict[str, str]] = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    QUERIES_ARE_WIDTH: ClassVar[bool] = False
    MAY_BE_TIED: ClassVar[bool] = True
    PEFT_NAMES_EXPERTS: ClassVar[bool] = True
    GGUF_EPSILON: ClassVar[str] = "attention.layer_norm_rms_epsilon"
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

    vocab_size: int = Field(1024, gt=0, description="rows of the token tables")
    max_position_embeddings: int = Field(256, gt=0, description="tokens of context")
    hidden_size: int = Field(256, gt=0, description="width of the residual stream")
    intermediate_size: int = Field(704, gt=0, description="width of the feed-forward")
    num_hidden_layers: int = Field(4, gt=0, description="layers")
    num_attention_heads: int = Field(4, gt=0, description="query heads")
    num_key_value_heads: int = Field(4, gt=0, description="key/value heads; divides the query heads")
    head_dim: int = Field(64, gt=0, multiple_of=2, description="width of a head")
    rms_norm_eps: float = Field(1e-5, gt=0, description="added to the mean square before its root")
    rope_theta: float = Field(10000.0, gt=0, description="base of the rotary frequencies")
    rope_scaling: RopeScaling | None = Field(None, description="how the frequencies are stretched")
    tie_word_embeddings: bool = Field(False, description="one table for input and output")
    bos_token_id: int | None = Field(None, description="id that opens a text")
    eos_token_id: int | tuple[int, ...] | None = Field(None, description="id that ends a text, or several")
    pad_token_id: int | None = Field(None, description="id that fills rows up")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads must divide num_attention_heads")
        return self

    def build(self, seed: int, device: str = "cpu") -> Decoder:
        """Build a freshly initialised model; the same seed gives the same weights everywhere."""
        model = self.skeleton("cpu")
        model.initialise(torch.Generator().manual_seed(seed))
        return model.to(device)

    def skeleton(self, device: str = "meta") -> Decoder:
        """Build the model with weights that hold nothing yet; on "meta" they take no memory either."""
        with torch.device(device):
            model = Decoder(self.options())
        model.file_name = self.hf_module
        return model

    def with_fields(self, **fields: object) -> Self:
        """Return a copy with other values of some fields, which are checked as always."""
        return type(self)(**self.model_dump() | fields)

    def shortened(self, layers: int) -> Self:
        """Return a copy with fewer layers; kinds of layers follow each other as llama.cpp has them in this family."""
        return self.with_fields(num_hidden_layers=layers)

    # --- layers ---

    def layer_parameters(self, layer: int) -> Shapes:
        """Names, without `model.layers.<i>.`, and shapes."""
        recurrence = self.recurrence(layer)
        shapes = self.attention_parameters() if self.attends(layer) else {}
        if recurrence is not None:
            own = recurrence.parameters(self.hidden_size)
            shapes = shapes | {f"{recurrence.module}.{name}": shape for name, shape in own.items()}
        experts = self.experts(layer)
        feed_forward = self.feed_forward_parameters() if experts is None else experts.parameters(self.hidden_size)
        return shapes | feed_forward | self.norm_parameters()

    def attends(self, layer: int) -> bool:
        """Return whether a layer has attention."""
        return True

    def recurrence(self, layer: int) -> RecurrenceOptions | None:
        """Return what mixes a layer's tokens in attention's place, or beside it."""
        return None

    def experts(self, layer: int) -> Experts | None:
        """Return the mixture of experts that a layer has in its feed-forward's place."""
        return None

    def attention_parameters(self) -> Shapes:
        return self.layer_options(0).attention_parameters()

    def feed_forward_parameters(self) -> Shapes:
        return self.layer_options(0).feed_forward_parameters()

    def norm_parameters(self) -> Shapes:
        options = self.layer_options(0)
        return {name: shape for norm in options.norms() for name, shape in options.norm_parameters(norm).items()}

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, its own included; None for all before it."""
        return None

    def rope(self, layer: int) -> Rope:
        """Return the rotation of this layer's queries and keys."""
        return rope_options(self.rotary_width, self.rope_theta, self.max_position_embeddings, self.rope_scaling)

    @property
    def rotary_width(self) -> int:
        """Numbers of a head that turn."""
        return self.head_dim

    def layer_options(self, layer: int) -> LayerOptions:
        """Return the options of one layer for the layers' code."""
        return LayerOptions(
            width=self.hidden_size,
            inner=self.intermediate_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            eps=self.rms_norm_eps,
            rope=self.rope(layer),
            window=self.window(layer),
            attends=self.attends(layer),
            recurrence=self.recurrence(layer),
            experts=self.experts(layer),
        )

    def options(self) -> DecoderOptions:
        """Return the options of the whole decoder."""
        layers = tuple(map(self.layer_options, range(self.num_hidden_layers)))
        return DecoderOptions(self.vocab_size, layers, self.tie_word_embeddings)

    def parameters(self) -> Shapes:
        """Every parameter's name and shape, in the order in which they are met."""
        table = (self.vocab_size, self.hidden_size)
        shapes: Shapes = {"model.embed_tokens.weight": table}
        for layer in range(self.num_hidden_layers):
            own = self.layer_parameters(layer)
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        shapes |= self.layer_options(0).norm_parameters("model.norm")
        return shapes if self.tie_word_embeddings else shapes | {"lm_head.weight": table}

    def linears(self) -> dict[str, LinearShape]:
        """Name in files → shape of every linear of the layers; the head is none of them."""
        named = [(n.removesuffix(".weight"), s) for n, s in self.parameters().items() if ".layers." in n]
        return {
            self.hf_module(name): LinearShape(shape[0], shape[1], self._only_named(name))
            for name, shape in named
            if len(shape) == 2
        }

    def _only_named(self, linear: str) -> bool:
        """Return whether only adapters that name a linear adapt it."""
        experts = self.experts(int(linear.split(".")[2])) if _EXPERT.search(linear) else None
        return linear.endswith(ROUTERS) or (experts is not None and experts.only_named)

    # --- size and cost ---

    @property
    def num_parameters(self) -> int:
        """Trainable numbers; tied tables count once."""
        return sum(map(math.prod, self.parameters().values()))

    @property
    def num_non_embedding_parameters(self) -> int:
        """Trainable numbers without the input and output tables."""
        tables = 1 if self.tie_word_embeddings else 2
        return self.num_parameters - tables * self.vocab_size * self.hidden_size

    def active_numbers(self, layer: int) -> int:
        """Numbers of a layer's matrices that one token is multiplied by."""
        experts = self.experts(layer)
        idle = 0 if experts is None else (experts.num - experts.top) * 3 * self.hidden_size * experts.inner
        return sum(math.prod(shape) for shape in self.layer_parameters(layer).values() if len(shape) > 1) - idle

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs (products only) a token, in full segments of `context` tokens.

        Two a multiply-add, one pass forward and two backward.
        """
        products, scores = self.vocab_size * self.hidden_size, 0.0
        for layer in range(self.num_hidden_layers):
            recurrence = self.recurrence(layer)
            products += self.active_numbers(layer)
            scores += 0 if recurrence is None else recurrence.products
            if self.attends(layer):
                o = self.layer_options(layer)
                scores += 2 * o.heads * o.head_dim * keys_met(context, o.window)
        return 6.0 * (products + scores)

    def activation_bytes_per_token(
        self,
        context: int,
        bytes_per_number: int,
        adapter: Mapping[str, int] | None = None,
        is_flash: bool = False,
    ) -> float:
        """Bytes kept between forward and backward a token, in full segments of `context` tokens.

        adapter: linear → numbers that an adapter keeps of it, all else frozen; None when everything is trained.
        is_flash: whether attention is a kernel that keeps no probabilities, where a layer's shape allows it
        (`settle/model/layers/attention.keeps_no_probabilities`).
        """
        # After the layers: the final norm and the gradient of its result, which the loss computes at once.
        layers = self.options().layers
        numbers = 2.0 * self.hidden_size + 1 + layers[-1].centred_norms
        if adapter is not None and layers[0].centred_norms:  # nothing before the first layer's norms is trained
            numbers -= self.hidden_size + (4 if layers[0].parallel else 2)
        for layer in layers:
            attends = layer.heads * LSE_BYTES / bytes_per_number if is_flash and is_for_flash(layer) else None
            numbers += _kept_by_mixers(layer, context, attends) + _kept_by_feed_forward(layer, adapter is not None)
            numbers += _kept_by_input(layer, adapter is not None)
        numbers += self.kept_beside_layers(adapter is not None)
        if adapter is not None:
            numbers -= self._not_kept_by_frozen(adapter)
        numbers += sum(self.share_met(name) * adapter_numbers for name, adapter_numbers in (adapter or {}).items())
        return bytes_per_number * numbers + (self._turns() if is_flash else 0)

    def kept_beside_layers(self, frozen: bool) -> float:
        """Return the numbers a token that a family keeps beyond its layers' mixers and feed-forwards."""
        return 0.0

    def _not_kept_by_frozen(self, adapter: Mapping[str, int]) -> int:
        """Count the numbers a token that are kept when all is trained, and not beside these adapted linears."""
        numbers = 0
        for layer, o in enumerate(self.options().layers):
            mlp = f"{_LAYERS}.{layer}.mlp"
            if o.experts and adapter.keys().isdisjoint(self.hf_module(f"{mlp}.{name}") for name in _READ_BY_ALL):
                numbers += o.width
            if o.experts and self.hf_module(f"{mlp}.experts.0.gate_proj") not in adapter:
                numbers += o.experts.top * o.width
            if o.recurrence is None:
                continue
            if layer == 0 and o.attends:
                numbers += _kept_by_norm(o)  # of mixers side by side, before which nothing is trained
            writes = f"{_LAYERS}.{layer}.{o.recurrence.module}.out_proj"
            if self.hf_module(writes) not in adapter:
                numbers += self.parameters()[f"{writes}.weight"][1]
        return numbers

    def _turns(self) -> int:
        """Bytes a token of the cosines and sines that layers which turn alike share, where attention is fused."""
        layers = [layer for layer in self.options().layers if is_for_flash(layer)]
        tables = {(o.head_dim, o.heads + o.kv_heads, o.rope, o.query_scale) for o in layers}
        return sum(width * heads * TURN_BYTES for width, heads, *_ in tables)

    def share_met(self, linear: str) -> float:
        """Return the share of all tokens that pass through a linear of a layer."""
        experts = self.experts(self.num_hidden_layers - 1) if _EXPERT.search(linear) else None
        return 1.0 if experts is None else experts.top / experts.num

    @classmethod
    def sized(cls, num_parameters: int, vocab_size: int, context: int) -> Self:
        """Return the shape of this family whose number of parameters comes nearest."""
        shape = default_shape(num_parameters, vocab_size)
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

    # --- Hugging Face's layout ---

    def hf_names(self) -> dict[str, str]:
        """Parameter name → name in Hugging Face's safetensors; a tensor of several has their rows in this order."""
        return {name: self._hf_parameter(name) for name in self.parameters()}

    def hf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in Hugging Face's files of a tensor that has these rows (R, I): experts may be stacked."""
        return shape

    def hf_modules(self) -> dict[str, str]:
        """Weight's name → its module as adapters call it; linears that files join are two here."""
        names = [name.removesuffix(".weight") for name in self.parameters() if name.endswith(".weight")]
        return {f"{name}.weight": self.hf_module(name) for name in names}

    @classmethod
    def hf_module(cls, name: str) -> str:
        """Return what Hugging Face's files call a module of the decoder."""
        return cls._hf_name(name, {})

    @classmethod
    def _hf_parameter(cls, name: str) -> str:
        module, _, kind = name.rpartition(".")
        whole = cls._hf_name(name, {})
        return f"{cls._hf_name(module, cls.HF_JOINED)}.{kind}" if whole.endswith(f".{kind}") else whole

    @classmethod
    def _hf_name(cls, name: str, joined: Mapping[str, str]) -> str:
        if not name.startswith(f"{_LAYERS}."):
            return cls.HF_NAMES.get(name, name)
        _, _, layer, inside = name.split(".", 3)
        expert = _EXPERT.search(inside)
        of_any = _EXPERT.sub(".experts.*.", inside)
        theirs = joined.get(of_any) or cls.HF_NAMES.get(of_any, of_any)
        return f"{cls.HF_NAMES.get(_LAYERS, _LAYERS)}.{layer}.{theirs.replace('*', expert[1]) if expert else theirs}"

    def expert_parameters(self) -> dict[str, list[list[str]]]:
        """Map each parameter of transformers' model that holds a layer's experts to the linears of each expert in it.

        Linears as in `hf_modules`, in the order of their rows.
        """
        return {}

    def to_hf_config(self) -> Values:
        """`config.json` that `transformers` loads."""
        config: Values = {"architectures": [self.HF_CLASS], "model_type": self.model_type, "dtype": "float32"}
        config |= self.HF_FIXED | self.model_dump(mode="json", exclude={"rope_scaling"})
        if self.rope_scaling is not None:
            config["rope_scaling"] = self.rope_scaling.to_hf()
        return config

    @classmethod
    def hf_keys(cls) -> frozenset[str]:
        """Return the keys of a `config.json` that this family understands."""
        rope = ("rope_parameters", "rope_scaling", "rope_theta")
        return frozenset({*cls.TINY.to_hf_config(), *cls.model_fields, *cls.HF_FIXED, *cls.HF_DEFAULTS, *rope})

    @classmethod
    def from_hf_config(cls, config: HfConfig) -> Self:
        """From a `config.json`. Raises FormatError naming the key that this family does not support."""
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
            raise FormatError(f"config.json cannot be used: {_first_error(e)}", "get the file again") from None

    @classmethod
    def hf_values(cls, config: HfConfig) -> Values:
        """Return the fields that a `config.json` gives; those it leaves out as Hugging Face's class has them."""
        config, values = {**cls.HF_DEFAULTS, **config}, dict(cls.HF_DEFAULTS)
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

    def unstack_experts(self, tensors: Tensors) -> Tensors:
        """Return the tensors of Hugging Face's files by `hf_names`, where some hold experts in another layout.

        Raises FormatError for one that does not fit.
        """
        return tensors

    def stack_experts(self, tensors: Mapping[str, TensorLike]) -> Mapping[str, TensorLike]:
        """Invert `unstack_experts`: return what Hugging Face's files hold."""
        return tensors

    def is_unused(self, name: str) -> bool:
        """Return whether files may hold a tensor of that name that the model does not read."""
        return False

    # --- GGUF's layout ---

    @classmethod
    def is_of_gguf(cls, metadata: GgufMetadata) -> bool:
        """Return whether a file of `gguf_architecture` is of this family rather than of another that GGUF names so."""
        return cls.model_type == metadata.get("general.architecture")

    @property
    def gguf_family(self) -> str:
        """`general.architecture` of its file: another family's where llama.cpp computes the model as one of those."""
        return self.gguf_architecture

    def gguf_names(self) -> dict[str, str]:
        """Map each parameter's name to its name in a GGUF file, in the file's order.

        Parameters that share a name are one tensor there: the first is its slice 0 along a new first axis, and so on
        (experts).
        """
        return {parameter: name for name, members in self.gguf_members().items() for parameter in members}

    def gguf_members(self) -> dict[str, list[str]]:
        """Return each tensor of a GGUF file with the parameters that it holds: several where experts are stacked."""
        members: dict[str, list[str]] = {}
        for parameter in self.parameters():
            members.setdefault(self._gguf_name(parameter), []).append(parameter)
        return members

    def _gguf_name(self, name: str) -> str:
        module, _, kind = name.rpartition(".")
        if module in self.GGUF_MODEL:
            return f"{self.GGUF_MODEL[module]}.{kind}"
        _, _, layer, inside = _EXPERT.sub(".experts.", module).split(".", 3)
        own = self.GGUF_LAYER.get(f"{inside}.{kind}") or f"{self.GGUF_LAYER[inside]}.{kind}"
        return f"blk.{layer}.{own}"

    def gguf_metadata(self) -> GgufKeys:
        """Metadata keys that say what llama.cpp must compute. Raises FormatError for what it cannot."""
        queries = self.num_attention_heads * self.head_dim
        if self.QUERIES_ARE_WIDTH and queries != self.hidden_size:
            raise FormatError(
                f"llama.cpp loads a {self.model_type} only when its query heads together are as wide as the model: "
                f"they are {queries} wide, the model {self.hidden_size}",
                "export it as safetensors",
            )
        if self.tie_word_embeddings and not self.MAY_BE_TIED:
            raise FormatError(
                f"llama.cpp loads no {self.model_type} whose output table is its input table",
                "export it as safetensors",
            )
        keys: GgufKeys = {
            "vocab_size": self.vocab_size,
            "context_length": self.gguf_context(),
            "embedding_length": self.hidden_size,
            "block_count": self.num_hidden_layers,
            "feed_forward_length": self.intermediate_size,
            "attention.head_count": self.num_attention_heads,
            "attention.head_count_kv": self.num_key_value_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            self.GGUF_EPSILON: self.rms_norm_eps,
            "rope.dimension_count": self.rotary_width,
            "rope.freq_base": self.rope_theta,
        }
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "linear":
            keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": self.rope_scaling.factor or 1.0}
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "yarn":
            keys |= _yarn_keys(self.rope_scaling)
        return {f"{self.gguf_family}.{key}": value for key, value in keys.items()}

    def gguf_constants(self) -> dict[str, tuple[float, ...]]:
        """Vectors that a GGUF file holds as tensors and that are no parameters: factors of rotary frequencies."""
        return {}

    def gguf_context(self) -> int:
        """Tokens of context as a GGUF file says it: no more than what llama.cpp computes as this model does."""
        return self.max_position_embeddings

    @classmethod
    def from_gguf(cls, metadata: GgufMetadata, tensors: Tensors) -> Self:
        """Read a GGUF file's metadata and lazy tensors (name → `.shape`, `.load()`; only constants are loaded).

        Raises FormatError naming the key that is missing or not supported.
        """
        try:
            return cls.model_validate(cls.gguf_values(GgufFields(metadata, cls.gguf_architecture), tensors))
        except ValidationError as e:
            raise FormatError(f"its GGUF metadata cannot be used: {_first_error(e)}", "get the file again") from None

    @classmethod
    def gguf_values(cls, fields: "GgufFields", tensors: Tensors) -> Values:
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
            "rms_norm_eps": fields.number(cls.GGUF_EPSILON),
            "rope_theta": fields.number("rope.freq_base", 10000.0),
            "rope_scaling": fields.rope_scaling(),
            "tie_word_embeddings": "output.weight" not in tensors,
            "max_position_embeddings": fields.number("context_length"),
            "bos_token_id": fields.metadata.get("tokenizer.ggml.bos_token_id"),
            "eos_token_id": fields.metadata.get("tokenizer.ggml.eos_token_id"),
            "pad_token_id": fields.metadata.get("tokenizer.ggml.padding_token_id"),
        }

    def gguf_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that a file says of a parameter's numbers: taps of channels (C, 1, K) are a matrix there."""
        return (shape[0], shape[2]) if len(shape) == 3 else shape

    def to_gguf(self, name: str, values: Rows) -> Rows:
        """Return a parameter's values (numpy or torch) as a GGUF file holds them.

        Rows of quantized blocks may be given too, where inputs that stay together are whole blocks (`column_run`).
        """
        return values

    def from_gguf_tensor(self, name: str, values: Rows) -> Rows:
        """Invert `to_gguf`."""
        return values

    def columns_to_gguf(self, name: str, values: Rows) -> Rows:
        """Return rows of a parameter's inputs (R, I) in the order of a GGUF file, which `to_gguf` puts them in too."""
        return values

    def columns_from_gguf(self, name: str, values: Rows) -> Rows:
        """Invert `columns_to_gguf`."""
        return values

    def column_run(self, name: str) -> int:
        """Return how many inputs of a matrix stay together in that order; 0 where all do."""
        return 0


class GgufFields:
    """The keys of one architecture in a GGUF file's metadata. Errors name the key."""

    def __init__(self, metadata: GgufMetadata, architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def get(self, key: str, default: object = None) -> object:
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: float | None = None) -> float:
        """Read a number; a list of one and the same, or 0, for each layer counts as it. Raises FormatError."""
        value = self.get(key, default)
        if isinstance(value, list) and len(set(value) - {0}) == 1:
            value = max(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(
                f"{self.architecture}.{key} is {value!r} in the GGUF file", "one number for all layers is supported"
            )
        return value if isinstance(value, int) else _shortest(value)

    def whole(self, key: str, default: int | None = None) -> int:
        """Read a whole number, as `number` does."""
        return whole({key: self.number(key, default)}, key)

    def rope_scaling(self) -> Values | None:
        kind = self.get("rope.scaling.type", "none")
        if kind == "linear":
            return {"rope_type": "linear", "factor": self.number("rope.scaling.factor")}
        if kind == "yarn":
            factor, times = self.number("rope.scaling.factor"), self.number("rope.scaling.attn_factor", 1.0)
            return {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": self.number("rope.scaling.original_context_length"),
                "attention_factor": None if times == 1 else times * yarn_attention_factor(factor),
                "beta_fast": self.get("rope.scaling.yarn_beta_fast"),
                "beta_slow": self.get("rope.scaling.yarn_beta_slow"),
            }
        if kind not in ("none", "longrope"):  # longrope's lists are tensors
            raise FormatError(f"rope.scaling.type = {kind!r} is not supported", "supported are: linear, longrope, yarn")
        return None


def _shortest(value: float) -> float:
    """Return the shortest number that rounds to the same fp32 as `value`: 1e-05, not 9.99…e-06."""
    short = float(f"{value:.7g}")
    return short if abs(value) < 1e38 and struct.pack("<f", short) == struct.pack("<f", value) else value


def _yarn_keys(scaling: RopeScaling) -> GgufKeys:
    """llama.cpp multiplies by yarn's own factor in any case: the file says by how much more."""
    if (scaling.beta_fast or 32.0, scaling.beta_slow or 1.0) != (32.0, 1.0):
        raise FormatError("llama.cpp reads no beta_fast and beta_slow of yarn but 32 and 1", "export it as safetensors")
    if not scaling.truncate:
        raise FormatError(
            "llama.cpp begins and ends yarn's ramp at whole pairs (truncate), this model does not",
            "export it as safetensors, or start from the model's GGUF file",
        )
    factor, old = scaling.factor or 1.0, scaling.original_max_position_embeddings or 0
    keys: GgufKeys = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": old,
    }
    times = attention_factor(scaling, old) / yarn_attention_factor(factor)
    return keys if abs(times - 1) < 1e-6 else keys | {"rope.scaling.attn_factor": times}


def _first_error(error: ValidationError) -> str:
    """Which value is wrong, and how."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def keys_met(context: int, window: int | None) -> float:
    """Keys that a query attends to on average over a text of `context` tokens."""
    visible = min(context, window or context)
    return visible - visible * (visible - 1) / (2 * context)


def is_for_flash(o: LayerOptions) -> bool:
    """Return whether torch's attention on packed rows knows a layer's scores and the width of its heads."""
    return o.attends and o.soft_cap is None and not o.sinks and o.head_dim <= FLASH_WIDTH and o.head_dim % 8 == 0


def _kept_by_mixers(o: LayerOptions, context: int, flash: float | None) -> float:
    """Count the numbers per token that the backward pass of one layer's attention or recurrence needs.

    See `activation_bytes_per_token`. flash: numbers that a kernel keeps in the place of the probabilities; None: it
    keeps those.
    """
    query, key = o.heads * o.head_dim, o.kv_heads * o.head_dim
    if o.recurrence is not None and not o.attends:
        return _kept_by_norm(o) + o.recurrence.kept(o.width)
    numbers: float = _kept_by_norm(o) + query
    if flash is None:
        numbers += query + 2 * key + o.heads * context * (1 if o.soft_cap is None else 2)
    else:  # keys and values are repeated for the query heads that share them; the rotated heads stay beside them
        numbers += query + key + 2 * query + flash
    if o.clip_qkv is not None:
        numbers += query + 2 * key
    if o.whole_norms:
        numbers += query + key + 2
    if o.head_norms:
        numbers += query + o.heads + (0 if o.borrows else key + o.kv_heads)
    if o.value_norms and not o.borrows:
        numbers += key + o.kv_heads
    if o.recurrence is not None:  # its rows, and what both read
        numbers += o.width + o.recurrence.kept(o.width)
    if o.attention_gates:  # the gates, and what is multiplied with them, which a kernel keeps anyway
        numbers += 2 * query if flash is None else query
    if o.sandwich_norms:
        numbers += o.width + 1
    return numbers


def _kept_by_norm(o: LayerOptions) -> int:
    """Count the numbers per token that the backward pass of a norm before a branch needs, and the product behind it.

    One that is not folded into the product keeps its input, mean and deviation, and the product its result.
    """
    return 2 * o.width + 2 if o.centred_norms else o.width + o.pre_norms


def _kept_by_feed_forward(o: LayerOptions, frozen: bool) -> int:
    """Count the numbers per token that the backward pass of one layer's feed-forward needs.

    Trained, it keeps gate, up, what the gate lets through, and the product; without a gate, one number before the
    activation and one behind it.
    """
    times = 2 if frozen or not o.gated else 4
    numbers = _kept_by_norm(o) + (o.width + 1 if o.sandwich_norms else 0)
    if o.centred_norms and o.parallel:
        numbers -= o.width  # the norm of attention keeps the same
    if o.experts is None:
        return numbers + times * o.inner
    e = o.experts
    # beside the experts: the norm's result, the router's chances, and each expert's rows in, out and weighted
    numbers += o.width + e.num + e.top * (3 * o.width + times * e.inner + 1)
    if e.normalised:
        numbers += e.top + 1
    if e.shared:
        numbers += times * e.shared
    return numbers + (o.width + 1 if e.shared_gate else 0)


def _kept_by_input(o: LayerOptions, frozen: bool) -> int:
    """Count the numbers per token that the backward pass of what a token gives to one layer alone needs."""
    if not o.per_layer_input:
        return 0
    if frozen:
        return 2 * o.width + 1 + 2 * o.per_layer_input
    return 2 * o.width + 1 + 5 * o.per_layer_input + 1  # one of the five, and the last, where the input is made
