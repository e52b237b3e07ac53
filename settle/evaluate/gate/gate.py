"""The gate: the exported file, in llama.cpp, must behave like the model that was trained.

A file can pass every structural check and still be broken (https://github.com/unslothai/unsloth/issues/7792), so this
compares behaviour: rendered prompts byte for byte, token ids, the distribution over the next token, and greedy
continuations. What short texts cannot show, a rotation for long ones or a weak adapter that was lost, is compared in
the file itself. When the gate fails, nothing is exported; it says where the first difference is and, if it can, why.
"""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from settle.base.errors import GateError
from settle.base.event_log import Events
from settle.base.events import Warn
from settle.base.files import home
from settle.base.run import Run
from settle.base.tokenizer import Tokenizer
from settle.data.corpus import stored_corpus
from settle.data.decisions.corpus import open_decisions
from settle.data.rows.prepare import prepared_rows
from settle.data.store import RowStore, TokenStore
from settle.evaluate.compare.cases import spread
from settle.evaluate.gate.behaviour import (
    ADVERSARIAL,
    BRIEF,
    Difference,
    Effort,
    Figures,
    compare_distributions,
    compare_greedy,
    compare_ids,
    compare_lists,
    compare_opening,
    compare_prompts,
    compare_template,
    lookalikes,
    misrouted,
    opening,
)
from settle.evaluate.gate.diagnose import LEAST_KEPT, Contents, Origin, adapter, causes, header, inspect, kept_text
from settle.formats import TensorLike, Weights
from settle.formats.gguf import read_gguf
from settle.formats.gguf.metadata import TOKENS, texts
from settle.formats.gguf.types import Bars, ggml_type, is_float
from settle.formats.lora_gguf import read_lora, require_fit
from settle.infer.engine import Engine
from settle.model.decoder import Decoder
from settle.train.proof import has_experts

PROSE = (
    "The river was high that spring, and nobody crossed it before the end of May. When the water fell, the first to go "
    "over was a miller's boy with a letter in his hat; he had been told to ask for no answer and to wait for one. "
    "What he found on the other side was an empty house, a warm stove, and 3 cups on the table.\n\n"
    "He sat down. After an hour, he poured himself some tea.\n",
    "def mean(values: list[float]) -> float:\n    if not values:\n        raise ValueError('no values')\n"
    "    total = 0.0\n    for value in values:\n        total += value\n    return total / len(values)\n",
    "# Notes\n\n- buy bread, 2 litres of milk (1.5 %), and a dozen eggs\n- call the office before 17:30\n\n"
    "| day | hours |\n|-----|-------|\n| Mon | 7.5   |\n| Tue | 8     |\n",
)


def held_out_texts(store: TokenStore | RowStore, tokenizer: Tokenizer, most_tokens: int = 60_000) -> list[str]:
    """Return documents of a token store as text, evenly spread: about `most_tokens` in all.

    At least 8 documents if it has them, none longer than an eighth of the whole.
    """
    number = store.num_documents
    stride = min(max(1, round(store.num_tokens / most_tokens)), max(1, number // 8))
    return [tokenizer.decode(store.document(i)[:-1][: most_tokens // 8]) for i in range(0, number, stride)][:2000]


def held_out_text(run: Run, tokenizer: Tokenizer, events: Events, most_tokens: int = 60_000) -> list[str]:
    """Return the run's held-out text; when its token store was removed, prose that is always there."""
    record = run.read("plan.json") or {}
    fingerprint = str(record.get("corpus"))
    folder = home() / "tokens" / fingerprint / "held_out"
    store: TokenStore | RowStore | None
    if not record.get("tuning"):
        store = TokenStore(folder) if folder.is_dir() else None
    else:
        is_decision = record.get("objective") == "decision"
        rows = stored_corpus(fingerprint, open_decisions) if is_decision else prepared_rows(fingerprint)
        store = rows.held_out if rows else None
    if store is not None:
        return held_out_texts(store, tokenizer, most_tokens)
    events.emit(Warn(text="the run's held-out text is gone; the file is compared on a few built-in texts instead"))
    return list(PROSE)


SMALL_FILE = 400_000_000  # bytes
SEQUENCE_TEXTS = 200

# The same blocks on both sides. llama.cpp rounds activations to 8 bits before it multiplies by them: bars as of Q8_0.
SAME_BLOCKS = "blocks"


@dataclass(frozen=True)
class Merge:
    """An adapter merged into the weights of its base, and the permitted loss.

    base: parameter name → tensor, before. base_type: of the base's file, "F16" or "Q4_1"; what was quantized cannot
    take up a small change unless it is stored more finely than before. limit: mean KL in nats per token between the
    model as it was trained and the merged file.
    """

    base: Mapping[str, TensorLike]
    base_type: str
    limit: float = 0.02

    @property
    def quantized(self) -> bool:
        return not is_float(self.base_type)


@dataclass(frozen=True)
class Reference:
    """What a file is held against: the live model, compared in fp32, and documents that it was not trained on."""

    model: Decoder
    tokenizer: Tokenizer
    held_out_texts: Sequence[str]


def run_gate(
    reference: Reference,
    path: Path,
    dtype: str = "f16",
    effort: Effort = BRIEF,
    *,
    origin: Origin | None = None,
    lora: Path | None = None,
    merge: Merge | None = None,
) -> Figures:
    """Compare a live model with its GGUF file. Returns the figures, `passed`, `first_difference` and `cause` (or None).

    lora: an adapter's file, served over `path`; origin: what the file was made from, by which a difference is
    explained; merge: when an adapter was merged into what the file holds. Raises FormatError or EngineError when the
    file cannot even be loaded.
    """
    start = time.perf_counter()
    file = read_gguf(path)
    adapted = read_lora(lora) if lora else None
    if adapted and lora:
        require_fit(adapted, file, (lora.name, path.name))
    bars = _bars(file, dtype, lora is not None, merge, effort)
    figures: Figures = {"dtype": dtype, "bars": vars(bars), "first_difference": None, "cause": None}
    small = path.stat().st_size < SMALL_FILE
    contents = inspect(origin, file) if origin and not origin.adapter else Contents(None, [])
    figures["adapter_kept"] = contents.kept
    try:
        for what in header(origin, file) if origin else ():
            raise Difference(what)
        with in_fp32(reference.model, small), Engine(path, threads=1 if small else None, adapter=lora) as engine:
            figures |= _behave(reference, engine, bars, effort)
        for what in (*adapter(origin, adapted, contents.kept), *contents.damage) if origin else ():
            raise Difference(what)
    except Difference as e:
        figures |= e.figures | {"first_difference": str(e)}
        if origin:
            figures["cause"] = next(iter(causes(origin, file, contents, adapted)), None)
            figures["cause"] = figures["cause"] or _rerouted(reference, bars, dtype, small, effort)
    if merge:
        figures["merge"] = {"base_type": merge.base_type, "limit": merge.limit, "kl": figures.get("kl")}
    figures["passed"] = figures["first_difference"] is None
    figures["seconds"] = round(time.perf_counter() - start, 3)
    return figures


def _bars(file: Weights, dtype: str, has_lora: bool, merge: Merge | None, effort: Effort) -> Bars:
    """Return the bars for a file of this type; an adapter over an unchanged file is held to that file's type."""
    is_large = len(texts(file.metadata, TOKENS)) > effort.most_likely
    if has_lora:
        dtype = "f16" if all(is_float(t.dtype) for t in file.tensors.values()) else SAME_BLOCKS
    stored = ggml_type("Q8_0" if dtype == SAME_BLOCKS else dtype)
    bars = stored.large_bars if is_large else stored.bars
    assert bars is not None, f"{dtype} is no type of exports"
    return replace(bars, kl=min(bars.kl, merge.limit)) if merge and merge.quantized else bars


def _rerouted(reference: Reference, bars: Bars, dtype: str, small: bool, effort: Effort) -> str | None:
    """Say that rounding alone sends tokens to other experts, if that alone costs more than the bar."""
    if not has_experts(reference.model):
        return None
    # llama.cpp keeps keys and values in f16, whatever the file's type
    noise = max(ggml_type("Q8_0" if dtype == SAME_BLOCKS else dtype).rounding, ggml_type("F16").rounding)
    with in_fp32(reference.model, small):
        sequences = _sequences(reference.tokenizer, reference.held_out_texts, effort.window)
        error, share = misrouted(reference.model, sequences, noise, effort)
    if error <= bars.logit_error:
        return None
    return (
        f"its routers choose by less than rounding: chances that are {noise:.1%} off send {share:.1%} of the tokens to "
        f"other experts, which alone is a logit error of {error:.1e}; a model hardly trained does so"
    )


def _behave(reference: Reference, engine: Engine, bars: Bars, effort: Effort) -> Figures:
    model, tokenizer, held_out_texts = reference.model, reference.tokenizer, reference.held_out_texts
    texts = _pieces(held_out_texts, effort.num_texts)
    figures: Figures = {"prompts_equal": compare_prompts(tokenizer, engine, effort.conversations)}
    compare_template(tokenizer, engine.metadata)
    compare_opening(tokenizer, engine)
    figures["texts_equal"] = compare_ids(tokenizer, engine, [*ADVERSARIAL, *lookalikes(tokenizer), *texts])
    compare_lists(tokenizer, engine.metadata)
    sequences = _sequences(tokenizer, held_out_texts, max(2, min(effort.window, engine.context // 2)))
    figures |= compare_distributions(model, engine, sequences, bars, effort)
    return figures | compare_greedy(model, tokenizer, engine, sequences, bars, effort, figures["likely_error"])


@contextlib.contextmanager
def in_fp32(model: Decoder, small: bool) -> Iterator[None]:
    """Hold the live model in fp32, whatever it was trained in, and one torch thread for a small one.

    Threads that wait for each other spinning, torch's and llama.cpp's, are ten times slower than one as soon as the
    machine is shared.
    """
    before, compute_dtype = torch.get_num_threads(), model.compute_dtype
    torch.set_num_threads(1 if small else before)
    model.compute_dtype = torch.float32
    try:
        yield
    finally:
        torch.set_num_threads(before)
        model.compute_dtype = compute_dtype


def require(
    figures: Figures,
    path: Path,
    like: str = "the trained model",
    fix: str = "nothing was exported; the weights are safe in the run, and this is worth a bug report",
) -> None:
    """Raise GateError with the first difference unless the gate was passed. like: what it should behave like."""
    if figures["passed"]:
        return
    if figures.get("merge"):
        _require_merge(figures)
    known = (None, figures["first_difference"])
    why = "" if figures["cause"] in known else f". The cause: {figures['cause']}"
    raise GateError(f"{path.name} does not behave like {like}: {figures['first_difference']}{why}", fix)


def _require_merge(figures: Figures) -> None:
    """Raise GateError when it is rounding that a merge did not survive: more is lost than may be."""
    merge, dtype, share = figures["merge"], figures["dtype"], figures["adapter_kept"]
    costs = merge["kl"] is not None and merge["kl"] > figures["bars"]["kl"]
    swallowed = dtype.startswith("q") and 0.02 < share < LEAST_KEPT
    if not swallowed and not (costs and share >= LEAST_KEPT):
        return
    raise GateError(
        f"merging the adapter into its {merge['base_type']} base and writing it as {dtype} costs {merge['kl']:.2g} "
        f"nats per token (KL, the limit is {figures['bars']['kl']:g}) and {kept_text(share)}",
        "nothing was exported; serve the adapter over the base as it is (--to lora-gguf), or merge into a finer "
        "type (--dtype f16)",
    )


def _pieces(texts: Sequence[str], number: int) -> list[str]:
    """Return `number` pieces of up to 400 characters, evenly spread, cut anywhere (in mid-word too)."""
    return spread([t[i : i + 400] for t in texts for i in range(0, len(t), 400)], number)


def _sequences(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Return ids of held-out documents (and of some prose, for there may be few) in pieces of at most `longest`.

    The full ones, or the longer half if fewer are full.
    """
    pieces: list[list[int]] = []
    first = opening(tokenizer)
    longest -= len(first)
    for text in [*texts[:SEQUENCE_TEXTS], *PROSE]:
        ids = tokenizer.encode(text[: longest * 64]).tolist()
        pieces += [ids[i : i + longest] for i in range(0, len(ids), longest)]
    pieces = [first + ids for ids in pieces if len(ids) >= 2]
    pieces.sort(key=len, reverse=True)
    full = sum(len(ids) == len(pieces[0]) for ids in pieces)
    return pieces[: max(full, -(-len(pieces) // 2))]
