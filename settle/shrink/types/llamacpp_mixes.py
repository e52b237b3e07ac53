"""Which type each tensor of a file gets in llama.cpp's mixed file types, and the size that comes of it.

The decisions are those of llama.cpp's `llama_model_quantize` (src/llama-quant.cpp, build 11739), told here as tables; a
test asks llama.cpp itself, file for file. A mix gives more bits to the tensors that hurt most: values of attention, the
way down of the feed-forward, the table of tokens.

A row must be a whole number of blocks. K-quants have blocks of 256: where a row is no multiple, the tensor falls back
to a type with blocks of 32, which is larger.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from settle.base.errors import FormatError, UsageError
from settle.formats import LazyTensor, Weights
from settle.formats.gguf.layout import dimensions
from settle.shrink.types.ggml import FLOATS, block, num_bytes


@dataclass(frozen=True)
class Recipe:
    """base: the type of most tensors; file_type: llama.cpp's number of the mix (general.file_type)."""

    base: str
    file_type: int


RECIPES: dict[str, Recipe] = {
    "F32": Recipe("F32", 0),
    "F16": Recipe("F16", 1),
    "BF16": Recipe("BF16", 32),
    "Q8_0": Recipe("Q8_0", 7),
    "Q6_K": Recipe("Q6_K", 18),
    "Q5_K_M": Recipe("Q5_K", 17),
    "Q5_K_S": Recipe("Q5_K", 16),
    "Q5_1": Recipe("Q5_1", 9),
    "Q5_0": Recipe("Q5_0", 8),
    "Q4_K_M": Recipe("Q4_K", 15),
    "Q4_K_S": Recipe("Q4_K", 14),
    "Q4_1": Recipe("Q4_1", 3),
    "Q4_0": Recipe("Q4_0", 2),
    "IQ4_NL": Recipe("IQ4_NL", 25),
    "IQ4_XS": Recipe("IQ4_XS", 30),
    "Q3_K_L": Recipe("Q3_K", 13),
    "Q3_K_M": Recipe("Q3_K", 12),
    "Q3_K_S": Recipe("Q3_K", 11),
    "Q2_K": Recipe("Q2_K", 10),
}

# What a tensor becomes whose rows are no multiple of 256.
FALL_BACK = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True)
class Choice:
    """The type of one tensor. wanted: what the recipe gives it, another one where its rows do not fit."""

    kind: str
    wanted: str
    num_bytes: int

    @property
    def fell_back(self) -> bool:
        return self.kind != self.wanted


def recipe_types(file: Weights, recipe: str, has_importance: bool = False) -> dict[str, Choice]:
    """The type of every tensor of a GGUF file, in the order that llama.cpp writes them.

    has_importance: whether an importance will be given; some mixes spend their bits otherwise then. Raises UsageError
    for a recipe that is not known.
    """
    if recipe not in RECIPES:
        raise UsageError(f"there is no recipe {recipe!r}", f"known: {', '.join(RECIPES)}")
    names = sorted(file.tensors, key=order)
    mix = _Mix(recipe, RECIPES[recipe].base, _facts(file), has_importance)
    chosen = {}
    for name in names:
        tensor = file.tensors[name]
        wanted, kind = mix.choose(tensor) if may_be_quantized(tensor) else (tensor.dtype, tensor.dtype)
        chosen[name] = Choice(kind, wanted, num_bytes(kind, math.prod(tensor.shape)))
    return chosen


def order(name: str) -> tuple[int, bytes]:
    """llama.cpp's order of tensors: what is in no block first, then block by block, by name within."""
    found = re.match(r"blk\.(\d+)", name)
    return (int(found[1]) if found else -1), name.encode()


_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "time_mix_first.weight",
    "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight",
    "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight", "time_mix_g1.weight",
    "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight",
    "attn_rel_b.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd",
    ".patch_merger", "a.rvq.codebook", "mm.a.code_embd",
)  # fmt: skip
_KEPT_WHOLE = ("position_embd.weight", "token_types.weight")


def may_be_quantized(tensor: LazyTensor) -> bool:
    """Matrices of weights, but for those that are tiny or that a small error ruins: norms, routers, positions …"""
    name = tensor.name
    if len(dimensions(tensor.shape)) < 2 or not name.endswith("weight") or name in _KEPT_WHOLE:
        return False
    return not any(part in name for part in _KEPT)


_CATEGORIES = (
    ("attn_qkv.weight", "values"),
    ("attn_kv_b.weight", "values"),
    ("attn_v.weight", "values"),
    ("attn_k.weight", "keys"),
    ("attn_q.weight", "queries"),
    ("attn_output.weight", "mixed"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
TOKEN_TABLES = ("token_embd.weight", "per_layer_token_embd.weight")


def _category(name: str) -> str:
    if name == "output.weight":
        return "head"
    if name in TOKEN_TABLES:
        return "tokens"
    return next((category for part, category in _CATEGORIES if part in name), "")


@dataclass(frozen=True)
class _Facts:
    """What llama.cpp asks about a model. group: query heads of a key/value head."""

    architecture: str
    num_layers: int
    num_experts: int
    group: int
    num_values: int  # tensors of the category "values"
    is_tied: bool
    is_70b: bool


# Architectures whose models of 80 layers llama.cpp takes for one of 70 billion parameters, with shared key/value heads.
_SEVENTY = {"deci", "llama", "llama-embed", "olmo", "qwen2"}
_SEVENTY_IF_SHARED = {"llama", "llama-embed"}


def _facts(file: Weights) -> _Facts:
    architecture = str(file.metadata.get("general.architecture", ""))

    def number(key: str, default: int = 0) -> int:
        value = file.metadata.get(f"{architecture}.{key}", default)
        first = value[0] if isinstance(value, list) and value else value
        return int(first) if isinstance(first, int) else default

    layers, heads = number("block_count"), number("attention.head_count")
    shared = number("attention.head_count_kv", heads)
    is_70b = architecture in _SEVENTY and layers == 80
    is_70b = is_70b and not (architecture in _SEVENTY_IF_SHARED and heads == shared)
    return _Facts(
        architecture,
        layers,
        number("expert_count"),
        heads // shared if shared else 0,
        sum(_category(name) == "values" for name in file.tensors),
        "output.weight" not in file.tensors,
        is_70b,
    )


class _Mix:
    """Goes through the tensors in llama.cpp's order, counting them as it does."""

    def __init__(self, recipe: str, base: str, facts: _Facts, has_importance: bool) -> None:
        self.recipe, self.base, self.facts, self.has_importance = recipe, base, facts, has_importance
        self.seen_values = self.seen_down = 0

    def choose(self, tensor: LazyTensor) -> tuple[str, str]:
        """(what the recipe wants, what the rows allow)."""
        if self.base in FLOATS:
            return self.base, self.base
        wanted = self._wanted(tensor.name)
        row = tensor.shape[-1]
        is_head = self._is_head(_category(tensor.name))
        # the head is judged by the recipe's own blocks: Q6_K for it when those fit
        if is_head and row % block(self.base)[0]:
            return wanted, _fitting("Q8_0", row)
        return wanted, _fitting(wanted, row)

    def _is_head(self, category: str) -> bool:
        return category == "head" or (category == "tokens" and self.facts.is_tied)

    def _wanted(self, name: str) -> str:
        category = _category(name)
        if self._is_head(category):
            return "Q8_0" if self.base == "Q8_0" or self.facts.architecture == "falcon" else "Q6_K"
        if category == "values":
            self.seen_values += 1
            return self._values(self.seen_values - 1)
        if category == "keys" and self.facts.num_experts == 8:
            return "Q8_0"
        if category == "down":
            self.seen_down += 1
            return self._down(self._layer(name, self.seen_down - 1))
        if category == "mixed":
            return self._mixed()
        return self.base

    def _layer(self, name: str, counted: int) -> int:
        """Experts' tensors are not counted one a layer, so their layer is read from the name."""
        if self.facts.num_experts < 2:
            return counted
        layer = order(name)[0]
        if not 0 <= layer < self.facts.num_layers:
            raise FormatError(f"the tensor {name} is in no block of the model", "get the file again")
        return layer

    def _values(self, index: int) -> str:
        recipe, group = self.recipe, self.facts.group
        kind = self.base
        if recipe == "Q2_K":
            kind = "Q4_K" if group >= 4 else "Q3_K"
        elif recipe == "Q3_K_M":
            kind = "Q5_K" if index < 2 else "Q4_K"
        elif recipe == "Q3_K_L" or (recipe in ("IQ4_NL", "IQ4_XS") and group >= 4):
            kind = "Q5_K"
        elif recipe in ("Q4_K_M", "Q5_K_M") and _gets_more(index, self.facts.num_values):
            kind = "Q6_K"
        elif recipe == "Q4_K_S" and index < 4:
            kind = "Q5_K"
        if self.facts.is_70b and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.facts.num_experts == 8 else kind

    def _down(self, layer: int) -> str:
        recipe, layers = self.recipe, self.facts.num_layers
        is_falcon = self.facts.architecture == "falcon"
        gets_more, is_early = _gets_more(layer, layers), layer < layers // 8
        if recipe == "Q2_K":
            return "Q3_K"
        if recipe == "Q3_K_M":
            if layer < layers // 16:
                return "Q5_K"
            return "Q4_K" if gets_more or not is_falcon else "Q3_K"
        if recipe == "Q3_K_L":
            return "Q4_K" if is_falcon else "Q5_K"
        if recipe == "Q4_K_M" and is_falcon:
            return "Q6_K" if layer < layers // 16 else "Q5_K" if gets_more else "Q4_K"
        if recipe in ("Q4_K_M", "Q5_K_M") and gets_more:
            return "Q6_K"
        if recipe == "Q4_K_S" and is_early and not is_falcon:
            return "Q5_K"
        if recipe in ("IQ4_NL", "IQ4_XS") and is_early and not self.has_importance:
            return "Q5_K"
        if recipe in ("Q4_0", "Q5_0") and is_early and self.has_importance:
            return {"Q4_0": "Q4_1", "Q5_0": "Q5_1"}[recipe]
        return self.base

    def _mixed(self) -> str:
        """The projection out of the attention."""
        if self.facts.architecture == "falcon":
            return "Q4_K" if self.recipe == "Q3_K_L" else self.base
        if self.facts.num_experts == 8:
            bumped = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS")
            return "Q5_K" if self.recipe in bumped else self.base
        return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(self.recipe, self.base)


def _gets_more(index: int, count: int) -> bool:
    """The first and the last eighth, and every third between them."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def _fitting(wanted: str, row: int) -> str:
    """The type that rows of that many values get. F16 where no block divides them (there llama.cpp gives up, but for
    K-quants)."""
    if row % block(wanted)[0] == 0:
        return wanted
    kind = FALL_BACK.get(wanted, "F16")
    return kind if row % block(kind)[0] == 0 else "F16"


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    """Bytes of all tensors, without header and padding."""
    return sum(choice.num_bytes for choice in chosen.values())
