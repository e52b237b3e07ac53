"""What a GGUF file says of its model: the one reader of its kind, type, context, chat template and parameters."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from settle.base.errors import FormatError, RunError, SettleError, UsageError, malformed_is_format_error
from settle.base.files import read_json
from settle.base.run import Run
from settle.data.tokenizer.tokenizer_files import folder_template
from settle.data.tokenizer.vocabulary import CONTROL, ENDS, UNKNOWN
from settle.formats import Metadata
from settle.formats.gguf import Pooling, embeds, pooling, read_gguf
from settle.formats.gguf.decision import TEMPLATE_KEY as DECISION_TEMPLATE_KEY
from settle.formats.gguf.decision import DecisionKeys, read_decision
from settle.formats.gguf.metadata import TOKENS, largest, text, texts, whole
from settle.formats.lora_gguf import read_lora
from settle.library.catalogue import Recommended, recommended_sampling
from settle.library.reference import ModelRef
from settle.library.resolve import all_refs, resolve
from settle.library.store import stamp_of

TEMPLATE_KEY = "tokenizer.chat_template"
FEWEST_PARAMETERS = 100_000_000  # of a model that is offered to answer from documents
PROSE_MEASURE = "token F1"  # what answers in prose are compared by
PLAIN_TEXT_KEY = "settle.base"  # true where the model was trained on plain text and completes it
END_KEYS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
FIM_TOKENS = {
    "pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
    "suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
    "mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"),
    "sep": ("<|file_sep|>", "<file_sep>"),
}
OLD_FIM_KEYS = {"pre": "prefix", "suf": "suffix", "mid": "middle"}

Use = Literal["generate", "embed", "rerank"]


@dataclass(frozen=True)
class Facts:
    """What a GGUF file says of itself.

    template: of chats, or None. templates: all that the file has, those for special uses too. context: the longest its
    model was trained for, in tokens. embeds: it gives vectors or scores, and writes nothing. ends: the ids of tokens
    that end an answer. fim: the ids of tokens around a gap to fill (pre, suf, mid) and between files (rep, sep), empty
    when the model has none. longest_token: bytes of a text that one token may stand for, 0 where that is not known.
    decision: by what it answers typed questions, or None. controls: tokens that stand for no text. completes: it was
    trained on plain text alone, whatever template its file has. sampling: how its answers are drawn best.
    """

    architecture: str
    parameters: int
    bytes: int
    context: int
    bytes_per_token: int
    width: int
    layers: int
    quantization: str
    template: str | None
    templates: tuple[str, ...]
    pooling: Pooling
    embeds: bool
    num_vocab: int
    ends: tuple[int, ...]
    fim: dict[str, int]
    longest_token: int = 0
    decision: DecisionKeys | None = None
    controls: tuple[str, ...] = ()
    completes: bool = False
    sampling: Recommended = Recommended({}, "")

    @property
    def reranks(self) -> bool:
        return self.pooling == "rank"

    @property
    def use(self) -> Use:
        return "rerank" if self.reranks else "embed" if self.embeds else "generate"


def read_facts(path: Path) -> Facts:
    """Return the facts of a GGUF file, read once while it is unchanged.

    Raises FormatError when it is not sound or cannot be read.
    """
    with malformed_is_format_error(path.name):
        return _facts(path, stamp_of(path))


def adapter_template(path: Path) -> str | None:
    """Return an adapter's own chat template, or None. Raises FormatError, OSError."""
    return _adapter_template(path, stamp_of(path))


def takes_turns(metadata: Metadata) -> bool:
    """Whether a model answers through a chat template; otherwise it completes text."""
    return bool(metadata.get(TEMPLATE_KEY)) and not metadata.get(PLAIN_TEXT_KEY)


def templates(metadata: Metadata) -> tuple[str, ...]:
    """Return every chat template of a GGUF file: llama.cpp also compiles those for special uses.

    The template of a decision model is none: it reads no messages.
    """
    named = (value for key, value in metadata.items() if key.startswith(TEMPLATE_KEY) and key != DECISION_TEMPLATE_KEY)
    return tuple(value for value in named if isinstance(value, str))


def answering_models(fewest: int | None = None) -> list[str]:
    """Return the names of the models on this machine that may answer from documents.

    They have a chat template of their own, at least so many parameters (FEWEST_PARAMETERS), and were not tuned for one
    kind of answer. A model that is still to be converted is assumed to qualify.
    """
    fewest = FEWEST_PARAMETERS if fewest is None else fewest
    refs = [ref for ref in all_refs() if _chats(ref, fewest) and not _is_specialist(ref)]
    wholes = {ref.name for ref in refs if ref.kind == "model"}
    names = [ref.id if ref.kind == "adapter" and ref.name in wholes else ref.name for ref in refs]
    return list(dict.fromkeys(names))


def chat_models() -> tuple[list[str], list[str]]:
    """Return the models that take turns, and those that only complete a text; embedders and deciders are neither."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for ref in all_refs():
        if ref.kind in ("model", "adapter") and (is_chat := _talks(ref)) is not None:
            names[is_chat].append(ref.id)
    return names[True], names[False]


def sampling_of(name: str) -> Mapping[str, float]:
    """Return how a model's answers are drawn best, under llama.cpp's names; nothing where that is not known."""
    try:
        return read_facts(resolve(name).weights).sampling.settings
    except (SettleError, OSError):
        return {}


def longest_context(name: str, metadata: Metadata) -> int:
    """Tokens that the model was trained for. Raises FormatError when the file does not say."""
    longest = largest(metadata, "context_length")
    if longest < 1:
        raise FormatError(f"{name} does not say how long its context is", "it is not a whole model")
    return longest


def bytes_per_token(metadata: Metadata) -> int:
    """Memory for one token of context: keys and values of every layer, two bytes each."""
    heads = largest(metadata, "attention.head_count")
    width = largest(metadata, "attention.key_length") or largest(metadata, "embedding_length") // max(heads, 1)
    return 4 * largest(metadata, "block_count") * (largest(metadata, "attention.head_count_kv") or heads) * width


def control_tokens(metadata: Metadata) -> tuple[str, ...]:
    """Return a file's tokens that stand for no text, as `Vocabulary.special_tokens` counts them, the longest first."""
    tokens, types = texts(metadata, TOKENS), metadata.get("tokenizer.ggml.token_type")
    kinds = types if isinstance(types, list) else [None] * len(tokens)
    controls = {
        token for token, kind in zip(tokens, kinds, strict=False) if kind in (UNKNOWN, CONTROL) or token in ENDS
    }
    return tuple(sorted(controls, key=len, reverse=True))


@functools.lru_cache(256)
def _facts(path: Path, stamp: str) -> Facts:
    weights = read_gguf(path)
    meta = weights.metadata
    tokens = texts(meta, TOKENS)
    return Facts(
        architecture=str(meta["general.architecture"]),
        parameters=sum(math.prod(tensor.shape) for tensor in weights.tensors.values()),
        bytes=path.stat().st_size,
        context=longest_context(path.name, meta),
        bytes_per_token=bytes_per_token(meta),
        width=largest(meta, "embedding_length"),
        layers=largest(meta, "block_count"),
        quantization=_quantization(meta),
        template=text(meta, TEMPLATE_KEY),
        templates=templates(meta),
        pooling=pooling(meta),
        embeds=embeds(meta),
        num_vocab=len(tokens),
        ends=tuple(sorted({value for key in END_KEYS if isinstance(value := meta.get(key), int)})),
        fim=_fim(meta, tokens),
        longest_token=_longest_token(meta, tokens),
        decision=read_decision(meta),
        controls=control_tokens(meta),
        completes=bool(meta.get(PLAIN_TEXT_KEY)),
        sampling=recommended_sampling(meta, takes_turns(meta)),
    )


def _longest_token(meta: Metadata, tokens: Sequence[str]) -> int:
    """Other tokenizers than these leave parts of a text out, so a token of theirs may stand for any number of bytes."""
    is_known = meta.get("tokenizer.ggml.model") in ("gpt2", "llama", "gemma4")
    return max((len(token.encode("utf-8", "replace")) for token in tokens), default=0) if is_known else 0


@functools.lru_cache(256)
def _adapter_template(path: Path, stamp: str) -> str | None:
    return text(read_lora(path).metadata, TEMPLATE_KEY)


def _chats(ref: ModelRef, fewest: int) -> bool:
    if ref.source.kind == "safetensors":
        return _writes_text(ref.path)
    try:
        if 8 * ref.weights.stat().st_size < fewest:  # not a bit for each
            return False
        weights = read_gguf(ref.weights)
        metadata = weights.metadata
        if sum(math.prod(tensor.shape) for tensor in weights.tensors.values()) < fewest or read_decision(metadata):
            return False  # what was tuned to name an option writes no answers
        own = adapter_template(ref.adapter) if ref.adapter else None
    except (UsageError, FormatError, OSError):
        return False
    return bool(own) or takes_turns(metadata)


def _talks(ref: ModelRef) -> bool | None:
    """Whether a model takes turns; None where it writes nothing, or cannot be read."""
    try:
        if ref.source.kind == "safetensors":
            return bool(ref.adapter or folder_template(ref.path)) if _writes_text(ref.path) else None
        facts = read_facts(ref.weights)
        own = adapter_template(ref.adapter) if ref.adapter else None
    except (SettleError, OSError, ValueError):
        return None
    if facts.use != "generate" or facts.decision:
        return None
    return bool(own) or (bool(facts.template) and not facts.completes)


def _is_specialist(ref: ModelRef) -> bool:
    """Whether it was tuned on rows whose answers have a form: labels, codes, JSON, programs, calls."""
    run = Run.named(ref.name)
    try:
        result = run.result() if run else None
    except RunError:
        return False
    comparison = (result.comparison if result else None) or {}
    measure, beside = comparison.get("measure"), comparison.get("beside")
    return measure is not None and (measure != PROSE_MEASURE or bool(beside))


def _writes_text(folder: Path) -> bool:
    try:
        config = read_json(folder / "config.json")
    except (RunError, OSError):
        return False
    names = config.get("architectures") if isinstance(config, dict) else None
    return any(str(name).endswith("ForCausalLM") for name in names or ())


def _fim(metadata: Metadata, tokens: Sequence[str]) -> dict[str, int]:
    """As the file says, under either name of the key; else by how the token is spelled, as llama.cpp looks for it."""
    spelled = {token: key for key, tokens in FIM_TOKENS.items() for token in tokens}
    ids = {spelled[token]: i for i, token in enumerate(tokens) if token in spelled}
    for key in FIM_TOKENS:
        for name in (OLD_FIM_KEYS.get(key, ""), f"fim_{key}"):
            value = metadata.get(f"tokenizer.ggml.{name}_token_id")
            if type(value) is int and value < len(tokens):
                ids[key] = value
    return ids if {"pre", "suf", "mid"} <= {*ids} else {}


def _quantization(metadata: Metadata) -> str:
    """As llama.cpp calls the file's mix of types."""
    from gguf.constants import LlamaFileType  # which brings YAML and sentencepiece: 5 MB in every process

    try:
        name = LlamaFileType(whole(metadata, "general.file_type")).name
    except (KeyError, ValueError, FormatError):
        return "unknown"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
