"""The numbers of a model that decide what it needs: from the catalogue, a config.json or the header of a GGUF file."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from settle.base.errors import FormatError
from settle.formats import Metadata
from settle.formats.gguf.metadata import largest

FLOAT32 = 4


class ModelShape(BaseModel):
    """A decoder in numbers. Counts of parameters are of the whole model, `active` of what one token passes through.

    layers: all of them, of which `window_layers` see the last `window` tokens only and `linear_layers` keep a state of
    `state_elements` numbers (float32) instead of keys and values. kv_layers: those with keys and values of their own,
    where some share another's. heads, kv_heads, head_dim: of full attention; window_kv_heads, window_head_dim: of the
    others where they differ. latent: numbers that multi-head latent attention keeps for a token in the place of keys
    and values. inner: width of the feed-forward part, of one expert in a mixture. tied: the output is the embedding.
    lookup: parameters of tables that a token reads one row of (Gemma's per-layer embeddings). towers: parameters of
    what reads pictures and sound, which are loaded beside these, in float16, and no text passes through.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: int = Field(gt=0)
    active: int = Field(gt=0)
    layers: int = Field(gt=0, le=4096)
    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    vocab: int = Field(gt=0)
    context: int = Field(gt=0)
    inner: int = Field(0, ge=0)
    experts: int = Field(0, ge=0)
    experts_used: int = Field(0, ge=0)
    tied: bool = False
    window: int = Field(0, ge=0)
    window_layers: int = Field(0, ge=0)
    window_kv_heads: int = Field(0, ge=0)
    window_head_dim: int = Field(0, ge=0)
    linear_layers: int = Field(0, ge=0)
    state_elements: int = Field(0, ge=0)
    kv_layers: int | None = None
    latent: int = Field(0, ge=0)
    lookup: int = Field(0, ge=0)
    towers: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _adds_up(self) -> "ModelShape":
        if self.active > self.parameters:
            raise ValueError("more active parameters than parameters")
        if self.window_layers + self.linear_layers > self.layers:
            raise ValueError("more window and linear layers than layers")
        if self.experts_used > self.experts:
            raise ValueError("more experts used than there are")
        if self.vocab * self.width > 1.05 * self.parameters:
            raise ValueError("the embedding alone has more parameters than the model")
        return self

    @property
    def is_mixture(self) -> bool:
        return self.experts > 1

    @property
    def beside_experts(self) -> int:
        """Parameters that every token passes through: all of a dense model."""
        if not self.is_mixture or self.experts == self.experts_used:
            return self.active
        each = (self.parameters - self.active) / (self.experts - self.experts_used)
        return max(0, round(self.active - self.experts_used * each))

    @property
    def table(self) -> int:
        """Parameters of the input embedding; the output matrix has as many."""
        return self.vocab * self.width

    @property
    def read(self) -> int:
        """Parameters read for every token that is decoded: the active ones without tables that give one row."""
        return max(self.active - (0 if self.tied else self.table) - self.lookup, self.active // 4)

    def kv_bytes(self, context: int, element: float = 2.0) -> float:
        """Bytes that `context` tokens of one text keep: keys and values of every layer, windows cut, states whole.

        element: bytes of a number, 2 for float16, 1.0625 for q8_0. A window of llama.cpp is rounded up to 256 tokens.
        """
        with_kv = self.layers - self.linear_layers if self.kv_layers is None else self.kv_layers
        windows = round(with_kv * self.window_layers / max(1, self.layers - self.linear_layers))
        full = with_kv - windows
        per_token = self.latent or 2 * self.kv_heads * self.head_dim
        in_window = 2 * (self.window_kv_heads or self.kv_heads) * (self.window_head_dim or self.head_dim)
        seen = min(context, 256 * math.ceil(self.window / 256)) if self.window else context
        state = self.linear_layers * self.state_elements * FLOAT32
        return element * (full * context * per_token + windows * seen * in_window) + state


def shape_from_config(config: Mapping[str, Any], parameters: int) -> ModelShape:
    """From a config.json and the number of parameters in the files. Raises FormatError for one that lacks a number."""
    text = config.get("text_config")
    config = {**config, **text} if isinstance(text, Mapping) else config
    try:
        layers, heads, width = (int(config[k]) for k in ("num_hidden_layers", "num_attention_heads", "hidden_size"))
        head_dim = int(config.get("head_dim") or width // heads)
        kinds = [str(kind) for kind in config.get("layer_types") or ()]
        experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
        used = _number(config, "num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token")
        of_expert = ("moe_intermediate_size", "expert_ffn_hidden_size") if experts else ()
        inner = _number(config, *of_expert, "intermediate_size")
        dense = _number(config, "first_k_dense_replace", "moe_layer_start_index")  # first layers without experts
        window_layers, linear = _layer_kinds(config, kinds, layers)
        latent = int(config.get("kv_lora_rank") or 0)
        return ModelShape(
            parameters=parameters,
            active=_active(parameters, layers - dense, width, inner, experts, used),
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            vocab=int(config["vocab_size"]),
            context=int(config.get("max_position_embeddings") or 2048),
            inner=inner,
            experts=experts,
            experts_used=used,
            tied=bool(config.get("tie_word_embeddings", False)),
            window=int(config.get("sliding_window") or 0) if window_layers else 0,
            window_layers=window_layers,
            linear_layers=linear,
            state_elements=_state_elements(config) if linear else 0,
            latent=latent + int(config.get("qk_rope_head_dim") or 64) if latent else 0,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as e:
        raise FormatError(
            f"config.json does not describe a decoder: {e}", "get the model again, or another one"
        ) from None


def shape_from_gguf(metadata: Metadata, sizes: Mapping[str, int]) -> ModelShape:
    """From the header of a GGUF file. sizes: elements of each tensor by its name. Raises FormatError."""
    number = partial(largest, metadata)
    layers, width = number("block_count"), number("embedding_length")
    heads = number("attention.head_count")
    table = sizes.get("token_embd.weight", 0)
    if not (layers and width and heads and table):
        raise FormatError("the GGUF file does not say its layers, width, heads or vocabulary", "get the file again")
    parameters = sum(sizes.values())
    experts, used = number("expert_count"), number("expert_used_count")
    in_experts = sum(size for name, size in sizes.items() if "_exps." in name)
    keeping = [i for i in range(layers) if any(f"blk.{i}.attn_k{end}" in sizes for end in (".weight", "_b.weight"))]
    keeping = keeping or [i for i in range(layers) if f"blk.{i}.attn_qkv.weight" in sizes] or list(range(layers))
    linear = layers - len(keeping) if any(".ssm_" in name or ".shortconv" in name for name in sizes) else 0
    latent = number("attention.kv_lora_rank")
    window = number("attention.sliding_window")
    window_layers = _gguf_window_layers(metadata, layers) if window else 0
    try:
        return ModelShape(
            parameters=parameters,
            active=parameters - round(in_experts * (1 - used / experts)) if experts else parameters,
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=number("attention.head_count_kv") or heads,
            head_dim=number("attention.key_length") or width // heads,
            vocab=max(1, table // width),
            context=number("context_length", 2048),
            inner=number("expert_feed_forward_length") or number("feed_forward_length"),
            experts=experts,
            experts_used=used,
            tied="output.weight" not in sizes,
            window=window if window_layers else 0,
            window_layers=window_layers,
            window_head_dim=number("attention.key_length_swa"),
            linear_layers=linear,
            state_elements=number("ssm.inner_size") * (number("ssm.state_size") or number("shortconv.l_cache") or 4),
            kv_layers=layers - number("attention.shared_kv_layers") if number("attention.shared_kv_layers") else None,
            latent=latent + number("rope.dimension_count", 64) if latent else 0,
            lookup=sizes.get("per_layer_token_embd.weight", 0),
        )
    except ValueError as e:
        raise FormatError(f"the GGUF file contradicts itself: {e}", "get the file again") from None


def _number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of these numbers that a config has, 0 when it has none: families name it differently.

    Where layers differ, it is that of the first.
    """
    found = next((config[name] for name in names if config.get(name)), 0)
    return int(found[0] if isinstance(found, list) else found)


def _active(parameters: int, layers: int, width: int, inner: int, experts: int, used: int) -> int:
    """Parameters that one token passes through: all but the experts that are not chosen."""
    if not experts:
        return parameters
    unused = 3 * width * inner * layers * (experts - used)
    return max(parameters - unused, parameters * used // experts)


def _layer_kinds(config: Mapping[str, Any], kinds: list[str], layers: int) -> tuple[int, int]:
    """How many layers see a window only, and how many keep a state: as the config lists, or as its family is built."""
    if kinds:
        windows = sum("sliding" in kind or "local" in kind or "chunked" in kind for kind in kinds)
        linear = sum("linear" in kind or "conv" in kind or "mamba" in kind or "recurrent" in kind for kind in kinds)
        return windows, linear
    every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 0)
    family = str(config.get("model_type", ""))
    if not every:
        every = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "cohere2": 4}.get(family, 0)
    if every > 1 and config.get("sliding_window"):
        return layers - layers // every, 0
    full = int(config.get("full_attention_interval") or 0)
    if full > 1:
        return 0, layers - layers // full
    pattern = str(config.get("hybrid_override_pattern") or "")
    return (0, len(pattern) - pattern.count("*")) if pattern else (0, 0)


def _state_elements(config: Mapping[str, Any]) -> int:
    """Numbers that a layer of linear attention, Mamba or convolution keeps."""
    heads, key = config.get("linear_num_value_heads"), config.get("linear_key_head_dim")
    if heads and key:
        return int(heads) * int(key) * int(config.get("linear_value_head_dim") or key)
    if config.get("mamba_num_heads"):
        return int(config["mamba_num_heads"]) * int(config["mamba_head_dim"]) * int(config.get("ssm_state_size") or 128)
    return int(config["hidden_size"]) * int(config.get("conv_L_cache") or 4)


def _gguf_window_layers(metadata: Metadata, layers: int) -> int:
    """Return how many layers see a window only: as the file lists, or as llama.cpp builds the family."""
    architecture = str(metadata.get("general.architecture"))
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list):
        return sum(bool(value) for value in pattern)
    every = pattern if isinstance(pattern, int) and pattern > 1 else 0
    every = every or {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "llama4": 4}.get(architecture, 0)
    return layers - layers // every if every else 0
