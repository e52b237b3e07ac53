"""What `settle models fit` answers: each model at the finest type that fits, its memory, speed and longest context."""

from collections.abc import Sequence
from dataclasses import dataclass

from settle.base.words.amounts import three_digits
from settle.machine import Machine
from settle.plan.fit.model_shapes import NamedShape
from settle.plan.fit.speed import (
    Law,
    Rate,
    decode_rate,
    drafted,
    first_token_seconds,
    further_seconds,
    offloaded,
    prefill_rate,
    streamed,
)
from settle.plan.fit.weight_types import CHOICES, TYPES, read_bytes
from settle.plan.memory_model import Fit, fit, longest_context, need

GIB = 2**30
SLOW = 1.0  # tokens per second: a model that writes fewer is of no use to a person who waits
DRAFT_TYPE = "q4_k_m"  # of a draft whose file is not here
SMALL_PROMPT = 512  # tokens of the prompt that the first token is told for, or the context when it is shorter


@dataclass(frozen=True)
class FitRow:
    """One model at one type."""

    model: NamedShape
    type: str
    fit: Fit
    decode: Rate
    prefill: Rate
    first_token: float  # seconds, for a prompt of SMALL_PROMPT tokens
    longest: int  # context in tokens that fits beside the weights

    is_shared: bool = False  # one memory for device and processor: what does not fit cannot lie elsewhere

    @property
    def is_whole(self) -> bool:
        return self.fit.fits

    @property
    def runs(self) -> bool:
        """Whether it fits, or could run with layers in the processor's memory."""
        return self.fit.fits or (not self.is_shared and self.fit.share > 0)


def fit_row(
    model: NamedShape, type_name: str, machine: Machine, context: int, texts: int = 1, law: Law | None = None,
    draft: NamedShape | None = None,
) -> FitRow:  # fmt: skip
    """Forecast one model at one type and context, its layers beyond the device's memory on the processor.

    draft: a small model that proposes tokens, which lies beside it.
    """
    context = min(context, model.shape.context)
    weights = model.bytes if type_name == model.type else None
    beside = _of_draft(draft, machine, context, texts) if draft else 0.0
    found = fit(model.shape, type_name, machine, context, texts, weights=weights, beside=beside)
    matrices = model.matrices if type_name == model.type else None
    decode = decode_rate(model.shape, type_name, machine, context // 2, texts, law, matrices)
    if draft:
        proposals = decode_rate(draft.shape, draft.type or DRAFT_TYPE, machine, context // 2, texts, law)
        decode = drafted(decode, proposals, further_seconds(model.shape, type_name, machine, law))
    prompt = min(SMALL_PROMPT, context)
    prefill = prefill_rate(model.shape, type_name, machine, law, prompt, matrices)
    if not found.fits and not machine.is_unified:
        decode = offloaded(decode, 1 - found.share, read_bytes(model.shape, type_name))
        prefill = streamed(prefill, 1 - found.share, found.need.weights)
    return FitRow(
        model=model,
        type=type_name,
        fit=found,
        decode=decode,
        prefill=prefill,
        first_token=first_token_seconds(prefill, decode, prompt),
        longest=longest_context(model.shape, type_name, machine),
        is_shared=machine.is_unified,
    )


def _of_draft(draft: NamedShape, machine: Machine, context: int, texts: int) -> float:
    """Return the bytes of a draft's weights and its cache."""
    needed = need(draft.shape, draft.type or DRAFT_TYPE, machine, context, texts)
    return needed.weights + needed.cache


def type_rows(
    model: NamedShape, machine: Machine, context: int, texts: int = 1, law: Law | None = None,
    draft: NamedShape | None = None,
) -> list[FitRow]:  # fmt: skip
    """One model at every type that people use, or at its own where it is a file."""
    types = [model.type] if model.type in TYPES else ["f16", *CHOICES]
    return [fit_row(model, name, machine, context, texts, law, draft) for name in types if name]


def best_rows(
    models: Sequence[NamedShape], machine: Machine, context: int, texts: int = 1, law: Law | None = None
) -> list[FitRow]:
    """Each model at the finest type that fits whole; those that do not fit at any are left out."""
    rows = []
    for model in models:
        for name in [model.type] if model.type else CHOICES:
            if fit(model.shape, name, machine, min(context, model.shape.context), texts).fits:
                row = fit_row(model, name, machine, context, texts, law)
                if row.decode.value >= SLOW:
                    rows.append(row)
                break
    return rows


COLUMNS = (
    "model",
    "type",
    "parameters",
    "memory",
    "fits",
    "tokens/s",
    "80 % interval",
    "prompt/s",
    "first token",
    "most context",
)


def cells(row: FitRow) -> list[object]:
    """Return a row of COLUMNS."""
    share = "yes" if row.is_whole else f"{row.fit.share:.0%} on the device" if row.runs else "no"
    decode = row.decode
    speed = [
        three_digits(decode.value),
        f"{three_digits(decode.low)}–{three_digits(decode.high)}",
        three_digits(row.prefill.value),
        f"{three_digits(row.first_token)} s",
    ]
    return [
        row.model.name,
        row.type,
        {"value": row.model.shape.parameters, "unit": "count"},
        {"value": row.fit.need.total, "unit": "bytes"},
        share,
        *(speed if row.runs else ["–"] * len(speed)),
        {"value": row.longest, "unit": "count"} if row.longest else "–",
    ]


def as_json(row: FitRow) -> dict[str, object]:
    """Return the row as plain values: bytes, tokens per second, seconds."""
    need = row.fit.need
    return {
        "model": row.model.name,
        "source": row.model.source,
        "type": row.type,
        "parameters": row.model.shape.parameters,
        "active_parameters": row.model.shape.active,
        "memory": {"weights": need.weights, "cache": need.cache, "work": need.working + need.logits,
                   "runtime": need.overhead, "total": need.total, "room": row.fit.room},
        "fits": row.is_whole,
        "share_on_device": row.fit.share,
        "decode": {"value": row.decode.value, "low": row.decode.low, "high": row.decode.high, "why": row.decode.why},
        "prefill": {"value": row.prefill.value, "low": row.prefill.low, "high": row.prefill.high},
        "first_token_seconds": row.first_token,
        "longest_context": row.longest,
    }  # fmt: skip
