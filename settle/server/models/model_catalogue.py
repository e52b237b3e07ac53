"""What can be asked for by name: the models of the store, what runs made, and adapters over them.

Read from disk whenever it is asked for, so that what `settle pull` or `settle tune` just made is there at once.
"""

import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from settle.base.errors import FormatError, SettleError
from settle.base.run import Run, home
from settle.formats.gguf import Pooling, embeds, pooling, read_gguf
from settle.infer.child_process import Draft
from settle.library.facts import TEMPLATE_KEY as TEMPLATE
from settle.library.facts import bytes_per_token, longest_context
from settle.library.store import StoredModel, all_models, stamp_of
from settle.server.errors import Refusal
from settle.server.models.aliases import aliases

CONVERTED = "-bf16.gguf"  # a model in Hugging Face's layout, as `settle.library.convert` keeps it in GGUF
CONVERT_SECONDS = 1800
REASONING = ("reasoning_content", "enable_thinking", "reasoning_effort", "<think>")  # in templates of models that think
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
FIM = {
    "pre": ("<|fim_prefix|>", "<fim_prefix>", "<fim-prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>"),
    "suf": ("<|fim_suffix|>", "<fim_suffix>", "<fim-suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>"),
    "mid": ("<|fim_middle|>", "<fim_middle>", "<fim-middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>"),
    "rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<reponame>"),
    "sep": ("<|file_sep|>", "<file_sep>"),
}


@dataclass(frozen=True)
class Entry:
    """id: the name that clients ask for; adapters are called `base:adapter`. path: of the GGUF file, which need not be
    there yet for a model that is converted when first used. aliases: other names for it. collection: of documents that
    it answers from (see `documents.py`), "" for the model itself."""

    id: str
    path: Path
    adapter: Path | None = None
    base: str = ""
    aliases: tuple[str, ...] = ()
    origin: str = ""
    collection: str = ""

    @property
    def created(self) -> int:
        """Seconds since the epoch."""
        file = self.adapter or self.path
        return int(file.stat().st_mtime) if file.exists() else 0


@dataclass(frozen=True)
class Facts:
    """What a GGUF file says of itself. template: of chats, or None. context: the longest its model knows. embeds: made
    for vectors only, not to write.
    ends: the tokens that end an answer. fim: those around a gap to fill (pre, suf, mid) and between files (rep, sep),
    empty when the model knows none."""

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


class Catalogue:
    """models: names and files to serve. only: nothing but these and adapters over them, not what else there is.
    drafts: by the resolved file of the model that they propose for."""

    def __init__(
        self, models: Sequence[Entry] = (), only: bool = False, drafts: Mapping[Path, Draft] = MappingProxyType({})
    ) -> None:
        self._given = tuple(models)
        self._only = only
        self._drafts = dict(drafts)
        self._known: dict[str, tuple[Entry, tuple]] = {}

    def entries(self) -> list[Entry]:
        """Every model that can be asked for now."""
        found = {entry.id: entry for entry in self._found() if not entry.collection}
        return list(found.values())

    def offered(self) -> list[Entry]:
        """Everything that can be asked for now: the models, and the collections that they answer from."""
        models = self.entries()
        if self._only:
            return [*models, *(entry for entry in self._given if entry.collection)]
        try:
            from settle.server.requests.document_chat import offered
        except ModuleNotFoundError:  # the extra `rag` is not installed
            return models
        return [*models, *offered(models)]

    def find(self, name: str) -> Entry:
        """The entry of that name. Raises Refusal (404) naming what there is."""
        wanted = name.removesuffix(":latest")
        known, stamp = self._known.get(wanted, (None, ()))
        if known is not None and stamp == _stamps(known):
            return known
        entries = self.offered()
        for entry in entries:
            if wanted == entry.id or wanted in entry.aliases:
                self._known[wanted] = entry, _stamps(entry)
                return entry
        models = [entry for entry in entries if not entry.collection]
        if not wanted and len(models) == 1:
            return models[0]
        known = ", ".join(entry.id for entry in entries[:20])
        said = f"the model {name[:100]!r} does not exist here" if name else "which model? The field 'model' is missing"
        fix = f"; there are: {known}" if known else "; there is none yet: `settle pull smollm2`"
        raise Refusal(404 if name else 400, said + fix, "model_not_found", "model")

    def draft_of(self, path: Path) -> Draft | None:
        """Who proposes tokens for the model in that file."""
        return self._drafts.get(path.resolve())

    def _found(self) -> Iterator[Entry]:
        yield from self._given
        if self._only:
            models = [entry for entry in self._given if not entry.adapter and not entry.collection]
            bases = {entry.path.resolve(): entry.id for entry in models}
            yield from (entry for entry in _adapters(bases) if entry.path.resolve() in bases)
            return
        stored = [_of_store(model) for model in all_models()]
        made = [entry for run in Run.all() for entry in _of_run(run)]
        bases = {entry.path.resolve(): entry.id for entry in [*made, *stored]}
        found = [*stored, *made, *_adapters(bases)]
        yield from found
        yield from _renamed(found)

    @property
    def is_fixed(self) -> bool:
        """Whether only what was named at the start is served, whatever comes into the store."""
        return self._only


def _stamps(entry: Entry) -> tuple:
    """As long as they are the same, a name means the same: of the entry's files, and of the folders names come from."""
    names = (home() / "models", home() / "runs", home() / "collections", home() / "server" / "aliases.json")
    return tuple(_changed(path) for path in (entry.path, entry.adapter, *names) if path)


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _of_store(model: StoredModel) -> Entry:
    path = model.path if model.kind == "gguf" else model.folder / f"{model.name}{CONVERTED}"
    return Entry(model.name, path, origin=model.origin)


def _of_run(run: Run) -> Iterator[Entry]:
    """The whole model that a run made."""
    if run.exported is not None:
        yield Entry(run.name, run.exported, aliases=(run.path.name,), origin=f"run {run.name}")


def _adapters(bases: dict[Path, str]) -> Iterator[Entry]:
    """The adapters that runs made, newest last. bases: file → id."""
    for run in Run.all():
        adapter = run.out / f"{run.name}-lora.gguf"
        try:
            tuning = ((run.read("plan.json") or {}).get("tuning") or {}) if adapter.is_file() else {}
        except SettleError:
            continue
        path = Path(tuning.get("base") or "/nowhere")
        if path.is_file():
            base = bases.get(path.resolve(), str(tuning.get("base_name") or path.stem))
            yield Entry(
                f"{base}:{run.name}",
                path,
                adapter,
                base,
                (run.name, run.path.name),
                origin=f"adapter of run {run.name}",
            )


def _renamed(found: Sequence[Entry]) -> Iterator[Entry]:
    """Adapters under the names that clients gave them; a model of the same name goes first."""
    by_id = {entry.id: entry for entry in found}
    for name, of in aliases().items():
        if of in by_id and name not in by_id:
            yield replace(by_id[of], id=name, aliases=(), origin=f"another name of {of}")


def facts(path: Path) -> Facts:
    """Raises Refusal when the file is not a sound GGUF."""
    try:
        return _facts(path, stamp_of(path))
    except (FormatError, OSError) as e:
        said = e.what if isinstance(e, FormatError) else f"{path.name} cannot be read: {e.strerror}"
        raise Refusal(503, said, "model_broken", "model") from None


@functools.lru_cache(256)
def _facts(path: Path, stamp: str) -> Facts:
    weights = read_gguf(path)
    meta = weights.metadata
    architecture = str(meta["general.architecture"])
    tokens = meta.get("tokenizer.ggml.tokens", [])
    return Facts(
        architecture=architecture,
        parameters=sum(_size(tensor.shape) for tensor in weights.tensors.values()),
        bytes=path.stat().st_size,
        context=longest_context(path.name, meta),
        bytes_per_token=bytes_per_token(meta),
        width=int(meta.get(f"{architecture}.embedding_length", 0)),
        layers=int(meta.get(f"{architecture}.block_count", 0)),
        quantization=_quantization(path, weights),
        template=meta.get(TEMPLATE),
        pooling=pooling(meta),
        embeds=embeds(meta),
        num_vocab=len(tokens),
        ends=tuple(sorted({meta[k] for k in ENDS if isinstance(meta.get(k), int)})),
        fim=_fim(meta, tokens),
    )


def template_of(entry: Entry) -> str | None:
    """The chat template that an entry takes turns by: its adapter's own where that brings one."""
    if entry.adapter:
        own = adapter_template(entry.adapter, stamp_of(entry.adapter))
        if own:
            return own
    return facts(entry.path).template


@functools.lru_cache(256)
def adapter_template(path: Path, stamp: str) -> str | None:
    """An adapter's own chat template, or None."""
    from settle.formats.lora_gguf import read_lora

    try:
        found: str | None = read_lora(path).metadata.get(TEMPLATE)
    except FormatError as e:
        raise Refusal(503, e.what, "adapter_broken", "model") from None
    return found


def capabilities(entry: Entry) -> list[str]:
    """In Ollama's words. Raises Refusal."""
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


def make_file(entry: Entry) -> None:
    """The GGUF file of an entry, where it is still to be made: in a process of its own, for it takes torch to read.
    Raises Refusal."""
    if entry.path.exists():
        return
    if not entry.path.name.endswith(CONVERTED):
        raise Refusal(503, f"the file of {entry.id} is gone: {entry.path.name}", "model_broken", "model")
    command = [sys.executable, "-m", "settle.library.convert", entry.id]
    done = subprocess.run(command, capture_output=True, text=True, timeout=CONVERT_SECONDS)
    if done.returncode or not entry.path.exists():
        said = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise Refusal(503, f"{entry.id} cannot be made a GGUF file: {said[0][:300]}", "model_broken", "model")


def _fim(meta: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    """As the file says, under either name of the key; else by how the token is spelled, as llama.cpp looks for it."""
    spelled = {text: key for key, texts in FIM.items() for text in texts}
    found = {spelled[text]: number for number, text in enumerate(tokens) if text in spelled}
    for key, old in (("pre", "prefix"), ("suf", "suffix"), ("mid", "middle"), ("rep", ""), ("sep", "")):
        for name in (f"tokenizer.ggml.{old}_token_id", f"tokenizer.ggml.fim_{key}_token_id"):
            if type(meta.get(name)) is int and meta[name] < len(tokens):
                found[key] = meta[name]
    return found if {"pre", "suf", "mid"} <= {*found} else {}


def _size(shape: Sequence[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _quantization(path: Path, weights: Any) -> str:
    """As `llama.cpp` calls it, from general.file_type; else the type of most of the matrices."""
    from gguf.constants import LlamaFileType

    try:
        return LlamaFileType(weights.metadata["general.file_type"]).name.removeprefix("MOSTLY_").removeprefix("ALL_")
    except (KeyError, ValueError):
        return "unknown"
