"""The gate: does the exported file, in llama.cpp, behave like the model that was trained?

A file can pass every structural check and still be broken (https://github.com/unslothai/unsloth/issues/7792), so
this compares behaviour: rendered prompts byte for byte, token ids, the distribution over the next token, and greedy
continuations. What short texts cannot show, a rotation for long ones or a weak adapter that was lost, is compared in
the file itself. A failed gate hands over nothing, says where the first difference is and, if it can, why.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from settle.base.errors import GateError, ResourceError
from settle.base.run import fsync_folder
from settle.evaluate.gate.behaviour import (
    ADVERSARIAL,
    BRIEF,
    CONVERSATIONS,
    Difference,
    Effort,
    compare_distributions,
    compare_greedy,
    compare_ids,
    compare_lists,
    compare_opening,
    compare_prompts,
    lookalikes,
    opening,
    spread,
)
from settle.evaluate.gate.diagnose import LEAST_KEPT, Contents, Origin, adapter, causes, header, inspect
from settle.formats import Format, Weights
from settle.formats.gguf import Gguf, read_gguf
from settle.formats.gguf.types import Bars, ggml_type, is_float
from settle.formats.lora_gguf import export_lora, read_lora, require_fit
from settle.infer.engine import Engine

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

SMALL_FILE = 400_000_000  # bytes
SEQUENCE_TEXTS = 200

# The same blocks on both sides. llama.cpp rounds activations to 8 bits before it multiplies by them: bars as of Q8_0.
SAME_BLOCKS = "blocks"


@dataclass(frozen=True)
class Merged:
    """An adapter that was merged into the weights of its base, and what that may cost.

    base: parameter name → tensor, before. base_type: of the base's file, "F16" or "Q4_1"; what was quantized cannot
    take up a small change unless it is stored more finely than before. limit: mean KL in nats per token between the
    model as it was trained and the merged file.
    """

    base: Mapping[str, Any]
    base_type: str
    limit: float = 0.02

    @property
    def quantized(self) -> bool:
        return not is_float(self.base_type)


def run_gate(
    model: Any,
    tokenizer: Any,
    path: Path,
    held_out_texts: Sequence[str],
    dtype: str = "f16",
    effort: Effort = BRIEF,
    *,
    origin: Origin | None = None,
    lora: Path | None = None,
    merged: Merged | None = None,
    conversations: Sequence[list[dict[str, str]]] = CONVERSATIONS,
) -> dict[str, Any]:
    """Compare a live model with its GGUF file. Returns the figures, `passed`, `first_difference` and `cause` (or None).

    model: the live one, compared in fp32; held_out_texts: documents it was not trained on; lora: an adapter's file,
    served over `path`; origin: what the file was made from, by which a difference is explained; merged: when an adapter
    was merged into what the file holds. Raises FormatError or EngineError when the file cannot even be loaded.
    """
    start = time.perf_counter()
    file = read_gguf(path)
    adapted = read_lora(lora) if lora else None
    if adapted and lora:
        require_fit(adapted, file, (lora.name, path.name))
    bars = _bars(file, dtype, lora is not None, merged, effort)
    figures: dict[str, Any] = {"dtype": dtype, "bars": vars(bars), "first_difference": None, "cause": None}
    small = path.stat().st_size < SMALL_FILE
    contents = inspect(origin, file) if origin and not origin.adapter else Contents(None, [])
    figures["adapter_kept"] = contents.kept
    try:
        for what in header(origin, file) if origin else ():
            raise Difference(what)
        with _reference(model, small), Engine(path, threads=1 if small else None, adapter=lora) as engine:
            figures |= _behave(model, tokenizer, engine, held_out_texts, bars, effort, conversations)
        for what in (*adapter(origin, adapted, contents.kept), *contents.damage) if origin else ():
            raise Difference(what)
    except Difference as e:
        figures |= e.figures | {"first_difference": str(e)}
        figures["cause"] = next(iter(causes(origin, file, contents, adapted)), None) if origin else None
    if merged:
        figures["merge"] = {"base_type": merged.base_type, "limit": merged.limit, "kl": figures.get("kl")}
    figures["passed"] = figures["first_difference"] is None
    figures["seconds"] = round(time.perf_counter() - start, 3)
    return figures


def _bars(file: Weights, dtype: str, has_lora: bool, merged: Merged | None, effort: Effort) -> Bars:
    """Of an adapter over a file that is kept as it is, that file's type of weights decides."""
    is_large = len(file.metadata.get("tokenizer.ggml.tokens", [])) > effort.most_likely
    if has_lora:
        dtype = "f16" if all(is_float(t.dtype) for t in file.tensors.values()) else SAME_BLOCKS
    stored = ggml_type("Q8_0" if dtype == SAME_BLOCKS else dtype)
    bars = stored.large_bars if is_large else stored.bars
    assert bars is not None, f"{dtype} is no type of exports"
    return replace(bars, kl=min(bars.kl, merged.limit)) if merged and merged.quantized else bars


def _behave(
    model: Any,
    tokenizer: Any,
    engine: Engine,
    held_out_texts: Sequence[str],
    bars: Bars,
    effort: Effort,
    conversations: Sequence[list[dict[str, str]]],
) -> dict[str, Any]:
    texts = _pieces(held_out_texts, effort.num_texts)
    figures: dict[str, Any] = {"prompts_equal": compare_prompts(tokenizer, engine, conversations)}
    compare_opening(tokenizer, engine)
    figures["texts_equal"] = compare_ids(tokenizer, engine, [*ADVERSARIAL, *lookalikes(tokenizer), *texts])
    compare_lists(tokenizer, engine.metadata)
    sequences = _sequences(tokenizer, held_out_texts, max(2, min(effort.window, engine.context // 2)))
    figures |= compare_distributions(model, engine, sequences, bars, effort)
    return figures | compare_greedy(model, tokenizer, engine, sequences, bars, effort)


def export_through_gate(
    model: Any,
    part: Any,
    weights: Mapping[str, Any],
    tokenizer: Any,
    path: Path,
    held_out_texts: Sequence[str],
    dtype: str = "f16",
    metadata: Mapping[str, Any] | None = None,
    effort: Effort = BRIEF,
    *,
    form: Format | None = None,
    base: Mapping[str, Any] | None = None,
    merged: Merged | None = None,
    conversations: Sequence[list[dict[str, str]]] = CONVERSATIONS,
) -> dict[str, Any]:
    """Write `path` only if it passes the gate against the live model; the gate's figures.

    part, weights, tokenizer, metadata: as in `Format.write`. form: a format with a GGUF in it, plain GGUF by default.
    merged: when an adapter was merged into `weights`. Raises GateError, and then nothing lies at `path` that
    was not there before.
    """
    form = form or Gguf(dtype=dtype)
    origin = Origin(part, weights, merged.base if merged else None)
    with unproven_place(path) as unproven:
        form.write(unproven, part, weights, tokenizer, metadata or {})
        file = form.gguf(unproven)
        assert file is not None, f"{form} has no GGUF in it"
        figures = run_gate(
            model,
            tokenizer,
            file,
            held_out_texts,
            dtype,
            effort,
            origin=origin,
            merged=merged,
            conversations=conversations,
        )
        require(figures, path)
    return figures


def adapter_through_gate(
    model: Any,
    origin: Origin,
    tokenizer: Any,
    path: Path,
    base_file: Path,
    held_out_texts: Sequence[str],
    dtype: str = "f32",
    metadata: Mapping[str, Any] | None = None,
    effort: Effort = BRIEF,
    conversations: Sequence[list[dict[str, str]]] = CONVERSATIONS,
) -> dict[str, Any]:
    """Write the LoRA-GGUF `path` only if llama.cpp, with it over `base_file`, behaves like the live model.

    origin: with the adapter; its weights are the base's, as `base_file` holds them. Raises and returns as
    `export_through_gate`.
    """
    assert origin.adapter is not None
    with unproven_place(path) as unproven:
        export_lora(origin.part, origin.adapter, unproven, dtype, metadata)
        figures = run_gate(
            model, tokenizer, base_file, held_out_texts, dtype, effort,
            origin=origin, lora=unproven, conversations=conversations,
        )  # fmt: skip
        require(figures, path)
    return figures


@contextlib.contextmanager
def unproven_place(path: Path) -> Iterator[Path]:
    """A place to write a file or folder to; it becomes `path` when nothing was raised."""
    try:
        folder = tempfile.TemporaryDirectory(prefix=".unproven-", dir=path.parent)
    except OSError as e:
        raise ResourceError(f"cannot write {path}: {e.strerror}", "choose another place") from None
    with folder as beside:
        unproven = Path(beside) / path.name
        yield unproven
        if path.is_dir():
            path.rename(Path(beside) / "before")
        unproven.replace(path)
        fsync_folder(path.parent)


@contextlib.contextmanager
def _reference(model: Any, small: bool) -> Iterator[None]:
    """The live model in fp32, whatever it was trained in, and one torch thread for a small one: threads that wait for
    each other spinning, torch's and llama.cpp's, are ten times slower than one as soon as the machine is shared."""
    import torch

    num_threads, compute_dtype = torch.get_num_threads(), model.compute_dtype
    torch.set_num_threads(1 if small else num_threads)
    model.compute_dtype = torch.float32
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        model.compute_dtype = compute_dtype


def held_out_texts(store: Any, tokenizer: Any, most_tokens: int = 60_000) -> list[str]:
    """Documents of a token store as text, evenly spread: about `most_tokens` in all, at least 8 documents if it has
    them, none longer than an eighth of the whole."""
    number = store.num_documents
    stride = min(max(1, round(store.num_tokens / most_tokens)), max(1, number // 8))
    return [tokenizer.decode(store.document(i)[:-1][: most_tokens // 8]) for i in range(0, number, stride)][:2000]


def require(
    figures: Mapping[str, Any],
    path: Path,
    like: str = "the trained model",
    fix: str = "nothing was handed over; the weights are safe in the run, and this is worth a bug report",
) -> None:
    """Raises GateError with the first difference unless the gate was passed. like: what it should behave like."""
    if figures["passed"]:
        return
    if figures.get("merge"):
        _require_merge(figures)
    known = (None, figures["first_difference"])
    why = "" if figures["cause"] in known else f". The cause: {figures['cause']}"
    raise GateError(f"{path.name} does not behave like {like}: {figures['first_difference']}{why}", fix)


def _require_merge(figures: Mapping[str, Any]) -> None:
    """Raises GateError when it is rounding that a merge did not survive: more is lost than may be."""
    merge, dtype, share = figures["merge"], figures["dtype"], figures["adapter_kept"]
    costs = merge["kl"] is not None and merge["kl"] > figures["bars"]["kl"]
    swallowed = dtype.startswith("q") and 0.02 < share < LEAST_KEPT
    if not swallowed and not (costs and share >= LEAST_KEPT):
        return
    raise GateError(
        f"merging the adapter into its {merge['base_type']} base and writing it as {dtype} costs {merge['kl']:.2g} "
        f"nats per token (KL, the limit is {figures['bars']['kl']:g}) and keeps {share:.0%} of its change to weights",
        "nothing was handed over; serve the adapter over the base as it is (--to lora-gguf, --to ollama), or merge "
        "into a finer type (--dtype f16)",
    )


def _pieces(texts: Sequence[str], number: int) -> list[str]:
    """`number` pieces of up to 400 characters, evenly spread, cut anywhere (in mid-word too)."""
    pieces = [t[i : i + 400] for t in texts for i in range(0, len(t), 400)]
    return spread(pieces, number)


def _sequences(tokenizer: Any, texts: Sequence[str], longest: int) -> list[list[int]]:
    """Ids of held-out documents (and of some prose, for there may be few) in pieces of at most `longest`: the full
    ones, or the longer half if fewer are full."""
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
