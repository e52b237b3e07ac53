"""What the GGUF file of a model says: size, context, template, special tokens, and what the model can do."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf.constants import LlamaFileType

from settle.base.errors import FormatError
from settle.formats.gguf import Pooling, embeds, pooling, read_gguf
from settle.formats.lora_gguf import read_lora
from settle.library.facts import TEMPLATE_KEY, bytes_per_token, longest_context
from settle.library.store import stamp_of
from settle.server.errors import ApiError
from settle.server.models.model_entry import ModelEntry

REASONING = ("reasoning_content", "enable_thinking", "reasoning_effort", "<think>")  # in templates of reasoning models
END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
FIM_TOKENS = {
    "pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
    "suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
    "mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"),
    "sep": ("<|file_sep|>", "<file_sep>"),
}


@dataclass(frozen=True)
class ModelFacts:
    """template: of chats, or None. context: the longest that the model supports. embeds: the model makes vectors only
    and writes no text. ends: the tokens that end an answer. fim: the tokens of fill-in-the-middle (pre, suf, mid) and
    between files (rep, sep), empty when the model has none."""

    architecture: str
    parameters: int
    bytes: int
    context: int
    bytes_per_token: int
    width: int
    layers: int
    quantization: str
    template: str | None
    pooling: Pooling
    embeds: bool
    num_vocab: int
    ends: tuple[int, ...]
    fim: dict[str, int]

    @property
    def reranks(self) -> bool:
        return self.pooling == "rank"


def facts(path: Path) -> ModelFacts:
    """Raises ApiError when the file is not a valid GGUF."""
    try:
        return _facts(path, stamp_of(path))
    except (FormatError, OSError) as e:
        message = e.what if isinstance(e, FormatError) else f"{path.name} cannot be read: {e.strerror}"
        raise ApiError(503, message, "model_broken", "model") from None


@functools.lru_cache(256)
def _facts(path: Path, stamp: str) -> ModelFacts:
    weights = read_gguf(path)
    meta = weights.metadata
    architecture = str(meta["general.architecture"])
    tokens = meta.get("tokenizer.ggml.tokens", [])
    return ModelFacts(
        architecture=architecture,
        parameters=sum(prod(tensor.shape) for tensor in weights.tensors.values()),
        bytes=path.stat().st_size,
        context=longest_context(path.name, meta),
        bytes_per_token=bytes_per_token(meta),
        width=int(meta.get(f"{architecture}.embedding_length", 0)),
        layers=int(meta.get(f"{architecture}.block_count", 0)),
        quantization=_quantization(meta),
        template=meta.get(TEMPLATE_KEY),
        pooling=pooling(meta),
        embeds=embeds(meta),
        num_vocab=len(tokens),
        ends=tuple(sorted({meta[k] for k in END_KEYS if isinstance(meta.get(k), int)})),
        fim=_fim_tokens(meta, tokens),
    )


def template_of(entry: ModelEntry) -> str | None:
    """The chat template of an entry: its adapter's own where that has one."""
    if entry.adapter:
        own = _adapter_template(entry.adapter, stamp_of(entry.adapter))
        if own:
            return own
    return facts(entry.path).template


@functools.lru_cache(256)
def _adapter_template(path: Path, stamp: str) -> str | None:
    try:
        template: str | None = read_lora(path).metadata.get(TEMPLATE_KEY)
    except FormatError as e:
        raise ApiError(503, e.what, "adapter_broken", "model") from None
    return template


def capabilities(entry: ModelEntry) -> list[str]:
    """By Ollama's names. Raises ApiError."""
    known = facts(entry.path)
    if known.reranks:
        return ["rerank"]
    if known.embeds:
        return ["embedding"]
    if entry.collection:
        return ["completion"]
    template = template_of(entry)
    thinks = ["thinking"] if template and any(word in template for word in REASONING) else []
    return ["completion", *(["tools"] if template else []), *(["insert"] if known.fim else []), *thinks]


def _fim_tokens(meta: Mapping[str, object], tokens: Sequence[str]) -> dict[str, int]:
    """The ids that the file names, under either key; otherwise by the token's spelling, as llama.cpp finds them."""
    roles = {text: role for role, texts in FIM_TOKENS.items() for text in texts}
    ids = {roles[text]: number for number, text in enumerate(tokens) if text in roles}
    for role, old in (("pre", "prefix"), ("suf", "suffix"), ("mid", "middle"), ("rep", ""), ("sep", "")):
        for name in (f"tokenizer.ggml.{old}_token_id", f"tokenizer.ggml.fim_{role}_token_id"):
            value = meta.get(name)
            if type(value) is int and value < len(tokens):
                ids[role] = value
    return ids if {"pre", "suf", "mid"} <= {*ids} else {}


def _quantization(meta: Mapping[str, object]) -> str:
    """By llama.cpp's name for general.file_type."""
    try:
        return LlamaFileType(int(str(meta["general.file_type"]))).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return "unknown"
