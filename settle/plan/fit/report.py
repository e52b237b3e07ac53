"""`settle models fit`: asks the machine, the models and the laws, and says what fits and how fast."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from settle.base.amounts import count
from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files import write_atomic
from settle.base.files.dated_file import age
from settle.base.words.amounts import gigabytes, three_digits
from settle.evaluate.report.figure_style import GREY, INK, STYLE
from settle.library.catalogue import catalogue_file
from settle.machine import Machine, machine_or_this
from settle.machine.measurement_cache import others_are_busy
from settle.plan.fit.here import law_here, measure_some, recalled_runs
from settle.plan.fit.model_shapes import NamedShape, every_known_shape, named_shape
from settle.plan.fit.speed import (
    ACCEPTED,
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
from settle.plan.memory_model import Fit, Sizing, fit, longest_context, need, room

# --- rows ---

GIB = 2**30
SLOW = 1.0  # tokens per second: a model that writes fewer is of no use to a user who waits
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
        """Return whether it fits, or could run with layers in the processor's memory."""
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
    of_draft = need(draft.shape, draft.type or DRAFT_TYPE, machine, context, texts) if draft else Sizing()
    beside = of_draft.weights + of_draft.cache
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


def type_rows(
    model: NamedShape, machine: Machine, context: int, texts: int = 1, law: Law | None = None,
    draft: NamedShape | None = None,
) -> list[FitRow]:  # fmt: skip
    """Return one model at every type in use, or at its own where it is a file."""
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


COLUMNS = [
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
]


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


# --- the command ---

SHOWN = 40  # lines of the list of every model
MOST_TEXTS = 4096
VOCABULARIES_DIFFER = 128  # tokens at most between a model and its draft, as llama.cpp allows


def fit_models(
    models: list[str], machine_words: str | None, context_words: str, texts: int, every: bool, picture: str | None,
    measure: bool, draft_name: str | None, events: Events,
) -> int:  # fmt: skip
    """List what fits; return 0, or 3 when no model that was named fits. Raises UsageError."""
    context = count(context_words)
    if context < 16 or not 0 < texts <= MOST_TEXTS:
        raise UsageError(
            f"a context of {context} tokens for {texts} texts", "ask for 16 tokens or more, one text or more"
        )
    if draft_name and not models:
        raise UsageError("a draft is for a model, and none is named", "`settle models fit MODEL --draft SMALL`")
    if measure and machine_words:
        raise UsageError("another machine cannot be measured from here", "leave --machine or --measure out")
    machine = machine_or_this(machine_words)
    law = _law(machine, measure, events)
    events.emit(Say(text=_about(machine)))
    for note in machine.notes:
        events.emit(Say(text=note))
    named = [named_shape(name) for name in models]
    if named:
        for one in named:
            if context > one.shape.context:
                events.emit(
                    Warn(text=f"{one.name} was trained for {one.shape.context:,} tokens; the table is for those")
                )
        draft = named_shape(draft_name) if draft_name else None
        if draft:
            for one in named:
                _require_draft(draft, one)
            share = f"{ACCEPTED.low:.0%} to {ACCEPTED.high:.0%} of its tokens are taken to be right"
            events.emit(Say(text=f"{draft.name} proposes tokens as a draft: {share}"))
        rows = [row for one in named for row in type_rows(one, machine, context, texts, law, draft)]
    else:
        _warn_of_age(events)
        rows = best_rows(every_known_shape(), machine, context, texts, law)
    shown = rows if models or every else rows[:SHOWN]
    note = f"{len(rows) - len(shown)} smaller ones fit too; --all lists them" if len(shown) < len(rows) else ""
    title = f"{machine.label}, {context:,} tokens of context" + (f", {texts} texts at once" if texts > 1 else "")
    title += f", {draft_name} as a draft" if draft_name else ""
    events.emit(Listing(title=title, columns=COLUMNS, rows=[cells(row) for row in shown], note=note))
    for line in published_lines(named):
        events.emit(Say(text=line))
    if picture:
        events.emit(Say(text=f"picture: {_picture(rows, machine, context, texts, law, title, Path(picture))}"))
    events.emit(ResultReady(result={"machine": _machine_json(machine), "context": context, "texts": texts,
                                    "rows": [as_json(row) for row in rows],
                                    "published": published_json(named)}))  # fmt: skip
    return 0 if any(row.is_whole for row in rows) else 3


def _require_draft(draft: NamedShape, model: NamedShape) -> None:
    """Raise UsageError for a draft that cannot propose tokens of this model, or is not smaller."""
    ours, theirs = draft.shape, model.shape
    if ours.parameters >= theirs.parameters or abs(ours.vocab - theirs.vocab) > VOCABULARIES_DIFFER:
        raise UsageError(f"{draft.name} is no draft for {model.name}", "name a smaller model of the same vocabulary")


def _law(machine: Machine, measure: bool, events: Events) -> Law | None:
    """Return the law of this machine's processor, as runs here corrected it; None is the law that ships."""
    if not machine.measured or machine.kind != "cpu":
        return None
    runs = measure_some() if measure else recalled_runs()
    if measure and others_are_busy():
        events.emit(
            Warn(text="other programs keep this machine busy: these speeds are too low, and are not remembered")
        )
    for run in runs:
        events.emit(
            Say(text=f"measured: {run.model.name} {run.decode:.3g} tokens/s, prompt {run.prefill:,.0f} tokens/s")
        )
    if not runs:
        events.emit(Say(text="no run corrects these speeds yet; --measure makes a few short ones"))
    return law_here(runs, machine)


def _picture(
    rows: list[FitRow], machine: Machine, context: int, texts: int, law: Law | None, title: str, path: Path
) -> Path:
    models = list({row.model.name: row.model for row in rows}.values())
    types = CHOICES if len(models) > 1 else tuple(dict.fromkeys(row.type for row in rows))
    return heat_map(
        [fit_row(model, name, machine, context, texts, law) for model in models for name in types], title, path
    )


def _about(machine: Machine) -> str:
    whose = machine.source if machine.measured else f"{machine.source} ({machine.date})"
    there = f"{room(machine) / GIB:.1f} of {machine.memory * machine.count / GIB:.0f} GiB for a model"
    rates = f"{gigabytes(machine.bandwidth, 0)}/s, {machine.matrix_flops / 1e12:,.3g} TFLOP/s"
    return f"{machine.label}: {rates}, {there}; {whose}"


def _warn_of_age(events: Events) -> None:
    file = catalogue_file()
    text = f"{len(file.known)} models of the catalogue of {file.known_date}, {age(file.known_date)}"
    events.emit(Warn(text=text) if "out of date" in text else Say(text=text))


def _machine_json(machine: Machine) -> dict[str, object]:
    return {
        "name": machine.name, "kind": machine.kind, "count": machine.count, "memory": machine.memory,
        "bandwidth": machine.bandwidth, "flops": dict(machine.flops), "watts": machine.watts, "room": room(machine),
        "source": machine.source, "date": str(machine.date), "measured": machine.measured, "notes": list(machine.notes),
    }  # fmt: skip


MOST_MODELS, DPI = 40, 150


def heat_map(rows: Sequence[FitRow], title: str, path: Path) -> Path:
    """Draw tokens per second of models by type as a PNG; white where a model does not fit.

    rows: of any models and types; a pair that is missing does not fit.
    """
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row.model.name for row in rows))[:MOST_MODELS]
    types = list(dict.fromkeys(row.type for row in rows))
    speed = np.full((len(models), len(types)), np.nan)
    for row in rows:
        if row.model.name in models and row.fit.fits:
            speed[models.index(row.model.name), types.index(row.type)] = row.decode.value
    with rc_context(STYLE):
        figure = Figure(figsize=(3.2 + 1.1 * len(types), 1.6 + 0.26 * len(models)), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        norm = LogNorm(vmin=1, vmax=max(100.0, float(np.nanmax(speed)) if np.isfinite(speed).any() else 100.0))
        image = axes.imshow(np.ma.masked_invalid(speed), cmap="viridis", norm=norm, aspect="auto")
        for (line, column), value in np.ndenumerate(speed):
            text = three_digits(value) if np.isfinite(value) else "–"
            dark = np.isfinite(value) and norm(value) < 0.6
            axes.text(column, line, text, ha="center", va="center", fontsize=8,
                      color="white" if dark else INK if np.isfinite(value) else GREY)  # fmt: skip
        axes.set_xticks(range(len(types)), types)
        axes.set_yticks(range(len(models)), models, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(f"{title}\ntokens per second; – does not fit", fontsize=10, loc="left")
        figure.colorbar(image, ax=axes, label="tokens/s", shrink=0.6)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
        write_atomic(path, buffer.getvalue())
    return path


ORIGIN = attrgetter("kind", "date", "is_old", "source")  # of a number
CAVEAT = "numbers of different sources do not compare; `settle pick` measures models on your own prompts"


def published_lines(models: Sequence[NamedShape]) -> list[str]:
    """One line for each source of each model, then what they are worth; none where nothing is known."""
    lines = [
        f"{model.name}, published: {'; '.join(f'{n.task} {n.value:g}' for n in numbers)} "
        f"({kind}, {date}{', old' if is_old else ''}: {source})"
        for model in models
        for (kind, date, is_old, source), numbers in groupby(model.published, ORIGIN)
    ]
    return [*lines, CAVEAT] if lines else []


def published_json(models: Sequence[NamedShape]) -> list[dict[str, object]]:
    """Every number as a row, with the model's name and whether it is old."""
    return [
        {"model": model.name, **number.model_dump(mode="json"), "old": number.is_old}
        for model in models
        for number in model.published
    ]
