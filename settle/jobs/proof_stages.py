"""Stages that make sure the gradient is right before the first step, and choose a slower exact way where it is not."""

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from settle.audit.session import declared
from settle.base.events import Say, Warn
from settle.base.files import write_json
from settle.base.version import __version__
from settle.data.rows.prepare import RowCorpus
from settle.data.store import RowStore
from settle.jobs.training_stages import TrainingContext
from settle.machine import describe
from settle.model.decoder import score_sizes, too_large
from settle.train.gradient import backward
from settle.train.proof import Recipe, prove, whole_rows
from settle.train.proof.compute_type import RoundingError
from settle.train.proof.source import SourceRow, require_text
from settle.train.state import Schedule

PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "gguf", "xllamacpp")  # whose versions plan.json keeps
MEASURED_TOKENS = 512  # of the forward pass that measures the scores

C = TypeVar("C", bound=TrainingContext)
Again = Callable[[C, str, str], None]  # (context, dtype, why): plan, build and forecast anew


def scores(c: TrainingContext) -> None:
    """Attention scores in float32 in those layers of a pretrained model where they are too large for a half type."""
    if c.record is not None or c.plan.dtype == "float32" or c.plan.tuning is None:
        return
    live = c.live
    batch = whole_rows(live.batches.at(0), MEASURED_TOKENS, live.objective.segments_per_row)
    inputs, bounds = (torch.from_numpy(a).to(live.model.device) for a in (batch.inputs, batch.cu_seqlens))
    sizes = score_sizes(live.model, inputs, bounds)
    if layers := too_large(sizes):
        why = f"attention scores reach {max(sizes):,.0f} in {len(layers)} of {len(sizes)} layers, which are computed in"
        _put_scores_in_float32(c, layers, f"{why} float32 there")
        c.events.emit(Say(text=c.plan.why["float32_scores"]))


def proof(again: Again[C]) -> Callable[[C], None]:
    """Return the stage of that name. again: plans, builds and forecasts the run anew in another type."""

    def proof(c: C) -> None:
        """Check that the gradient, the mask and the packing are right for this recipe; then write plan.json.

        Where the compute type does not carry the gradient, the exact ways are tried, the one that costs least first.
        Raises ProofError.
        """
        if c.record is not None:
            return
        ways = iter((_all_scores_in_float32, _all_in_float32))
        while True:
            try:
                checks = _checks(c)
                break
            except RoundingError as e:
                if not any(way(c, e, again) for way in ways):
                    raise
        c.record = {
            **c.plan.to_json(),
            "asked": c.settings.model_dump(mode="json"),
            "corpus": c.corpus.fingerprint,
            "versions": {"settle": __version__, **{p: importlib.metadata.version(p) for p in PACKAGES}},
            "machine": describe(),
            "proof": checks,
            "reaches": declared(),
        }
        write_json(c.run.path / "plan.json", c.record)

    return proof


def _checks(c: TrainingContext) -> list[dict[str, object]]:
    corpus, live = c.corpus, c.live
    tuned = isinstance(corpus, RowCorpus)
    rows, tokenizer = _source_rows(c), live.tokenizer
    if not tuned:
        require_text(rows, tokenizer.decode, tokenizer.encode)
    vocab_size = live.model.options.vocab_size if tuned else tokenizer.vocab_size
    recipe = Recipe(
        live.model,
        live.objective,
        live.optimizer,
        live.batches.at(0),
        rows,
        vocab_size,
        rate=Schedule(c.plan.loop.warmup_steps).multiplier(0),
        seed=c.plan.loop.seed,
        tuned=tuned,
        decode=tokenizer.decode,
    )
    return prove(recipe, c.events)


def _source_rows(c: TrainingContext) -> list[SourceRow]:
    """Return what the segments of the first batch have to be, from the documents on disk."""
    store = c.corpus.train
    before = int(store.tokens[0])
    rows = []
    for document, start, stop in c.live.batches.rows_of(0):
        name, mask = store.origin(document), None
        if isinstance(store, RowStore):
            mask = store.mask(document)
        else:
            name = f"{name}, tokens {start} to {stop}"
        rows.append(SourceRow(name, store.document(document), start, stop, before, mask))
    return rows


def _all_scores_in_float32(c: C, error: RoundingError, again: Again[C]) -> bool:
    """Compute the scores of every layer in float32; return whether that changes anything."""
    layers = tuple(range(len(c.live.model.layers)))
    if c.plan.dtype == "float32" or c.plan.tuning is None or c.plan.tuning.float32_scores == layers:
        return False
    before = _step_seconds(c)
    _put_scores_in_float32(c, layers, f"{error.what}: attention scores are computed in float32")
    _report(c, c.plan.why["float32_scores"], before)
    return True


def _all_in_float32(c: C, error: RoundingError, again: Again[C]) -> bool:
    """Everything in float32, unless a person chose the type."""
    if c.plan.dtype == "float32" or c.origin.get("dtype", "default") != "default":
        return False
    before = _step_seconds(c)
    again(c, "float32", f"{error.what}: the run computes in float32")
    _report(c, c.plan.why["dtype"], before)
    return True


def _report(c: TrainingContext, what: str, before: float) -> None:
    """Report what was changed, and what that costs. before: seconds of a step until then."""
    c.events.emit(Warn(text=f"{what}; a step takes about {_step_seconds(c) / before:.1f} times as long"))


def _put_scores_in_float32(c: TrainingContext, layers: tuple[int, ...], why: str) -> None:
    assert c.plan.tuning is not None
    tuning, reasons = replace(c.plan.tuning, float32_scores=layers), {**c.plan.why, "float32_scores": why}
    c.plan = c.live.plan = replace(c.plan, tuning=tuning, why=reasons)
    c.live.model.float32_scores = layers


def _step_seconds(c: TrainingContext) -> float:
    """Time the first batch's forward and backward, twice, and return the second: the first finds its memory."""
    live, took = c.live, 0.0
    batch = live.objective.annotated(live.batches.at(0))
    for _ in range(2):
        began = time.perf_counter()
        backward(live.model, live.objective, [batch])
        took = time.perf_counter() - began
        live.model.zero_grad(set_to_none=True)
    return took
