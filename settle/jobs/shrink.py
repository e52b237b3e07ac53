"""settle shrink: make a model smaller or faster within a budget, and measure what that loses."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from settle.audit.session import declared, network_record
from settle.base.errors import UsageError
from settle.base.events import Listing, ResultReady, Say, Warn
from settle.base.files import write_json
from settle.base.run.result import Result
from settle.base.version import __version__, refuse_newer
from settle.evaluate.compare.candidate import both_in_llamacpp, readers
from settle.evaluate.compare.compare import CompareOptions
from settle.evaluate.compare.compare import compare as compare_models
from settle.evaluate.compare.compare import report as report_comparison
from settle.evaluate.divergence import TextLoss
from settle.evaluate.footprint import footprints
from settle.evaluate.gate.export import emit_gate_checks
from settle.evaluate.gate.gate import held_out_text
from settle.formats.gguf import read_gguf
from settle.jobs.job import RunContext, RunJob, edited, end_dry, require_same_data
from settle.jobs.settings import ShrinkSettings
from settle.library.convert import to_gguf, unquantized_type
from settle.library.pretrained import open_pretrained
from settle.library.reference import ModelRef
from settle.library.resolve import find_run
from settle.library.run_models import record_made
from settle.machine import describe, num_threads
from settle.model.pretrained import Pretrained
from settle.model.source import Source
from settle.shrink.calibration import calibration_data
from settle.shrink.candidates import Candidates, ShrinkCandidate, ThroughputModel
from settle.shrink.card import CardFacts, write_card
from settle.shrink.pareto import COLUMNS, draw_pareto, pareto_rows
from settle.shrink.quantizers import Quantizer
from settle.shrink.search import best_at_speed, best_within_size, predicted_speeds, routes, smallest_within_loss
from settle.shrink.session import MeasuredModel, Session, require_room
from settle.shrink.types.quantize_file import find_fallback, quantized_already
from settle.shrink.types.w4a16 import packable, packed_through_gate

WORK_PREFIX = ".work-"  # of the folder inside the run's where candidates are written
WORK_SPACE = 2.5  # times the unquantized file: the candidates beside it, and what is measured
KNOWN_TEXT_TOKENS = 60_000  # of a run's held-out text
PLAN_VERSION = 1


class ShrinkResult(Result):
    """What result.json has of a run that made a model smaller, or measured how small it could be."""

    candidates: Sequence[Mapping[str, object]]  # that were measured and not chosen
    base: Mapping[str, str] | None = None
    chosen: Mapping[str, object] | None = None
    reference: Mapping[str, object] | None = None
    kinds: Mapping[str, str] | None = None  # the type of each tensor
    vocabulary: Mapping[str, object] | None = None  # what was cut of it


@dataclass
class ShrinkContext(RunContext):
    """What the stages make, in the order in which they make it. expected: tokens per second by a candidate's name."""

    settings: ShrinkSettings
    source: Pretrained = field(init=False)
    work: Path = field(init=False)
    fingerprint: str = ""
    session: Session = field(init=False)
    candidates: Candidates = field(init=False)
    reference: ShrinkCandidate = field(init=False)
    routes: list[ShrinkCandidate] = field(default_factory=list)
    expected: dict[str, float] = field(default_factory=dict)
    chosen: ShrinkCandidate | None = None
    exported: Path | None = None
    packed: Path | None = None  # the folder of compressed-tensors
    judged: Path | None = None  # verdict.json
    loss_on_text: TextLoss | None = None
    made: ShrinkResult = field(init=False)


def source(c: ShrinkContext) -> None:
    """Open the model as a GGUF file that is not quantized; one in Hugging Face's layout is converted first."""
    if c.record is not None:
        refuse_newer(c.record, PLAN_VERSION, f"plan.json of {c.run.name}")
    folder = Path(c.resources.enter_context(tempfile.TemporaryDirectory(dir=c.run.path, prefix=WORK_PREFIX)))
    c.events.emit(Say(text=f"reading {c.settings.model} …"))
    model = open_pretrained(c.settings.model, c.events)
    if model.source.kind != "gguf":
        dtype = unquantized_type(model)
        c.events.emit(Say(text=f"writing {model.name} as GGUF, in {dtype}, to start from …"))
        model = open_pretrained(to_gguf(model, folder / f"{model.name}-{dtype}.gguf", dtype))
    quantized = quantized_already(read_gguf(model.source.path))
    if quantized and not (c.settings.requantize or c.settings.budget().goal == "unchanged"):
        kinds = ", ".join(f"{number} tensors {kind}" for kind, number in quantized.items())
        raise UsageError(
            f"{model.name} is quantized already ({kinds}): rounding again adds to what the first rounding lost",
            f"start from the model in F16 or BF16, or take it as it is: `{_requantizing(c.settings)}` measures "
            "against it, and forecasts what rounding twice costs",
        )
    require_room(WORK_SPACE * model.source.path.stat().st_size, folder)
    if c.settings.is_packed:
        packable(model.part, read_gguf(model.source.path))  # a model that cannot be is refused before it is measured
    c.source, c.work = model, folder


def data(c: ShrinkContext) -> None:
    """Prepare the text that types are fitted to, and the text that judges the files."""
    settings, run = c.settings, find_run(c.settings.model)
    known = (
        [] if settings.inputs or run is None else held_out_text(run, c.source.tokenizer, c.events, KNOWN_TEXT_TOKENS)
    )
    context = c.source.part.max_position_embeddings
    texts = calibration_data(settings.inputs, settings.calibration, c.source.tokenizer, context, c.events, known)
    for warning in texts.warnings:
        c.events.emit(Warn(text=warning))
    c.fingerprint = texts.fingerprint
    require_same_data(c, c.fingerprint)
    threads = num_threads(settings.threads)
    model = MeasuredModel(c.source, texts, threads, c.events, settings.imatrix)
    session = Session(model, c.work, short_scales=settings.is_packed)
    c.session = session.with_cut_vocabulary() if settings.vocabulary else session
    c.candidates = Candidates(c.session, Quantizer.make(settings.quantizer.name or "auto", settings.quantizer.settings))
    c.spending.start("cpu", None)
    c.events.move_to(c.run.events)


def forecast(c: ShrinkContext) -> None:
    """With --plan, what every route is expected to cost."""
    if c.settings.budget().goal != "plan":
        return
    (measured,) = footprints([c.session.model.path], threads=c.session.model.threads)
    c.reference = c.candidates.reference(measured)
    throughput = ThroughputModel.fit([(c.candidates.bytes_read(c.reference), measured.speed.median)])
    c.routes = routes(c.candidates)
    c.expected = predicted_speeds(c.candidates, c.routes, throughput)
    points = [c.reference.point(), *(r.point(c.expected[r.name]) for r in c.routes)]
    c.events.emit(Listing(title="expected", columns=COLUMNS, rows=pareto_rows(points)))
    if c.settings.dry:
        end_dry(c, {"candidates": [{**r.to_json(), "expected_speed": c.expected[r.name]} for r in c.routes]})


def search(c: ShrinkContext) -> None:
    """Search for the best file within the budget, as measured; with --plan, measure all of them."""
    budget, candidates = c.settings.budget(), c.candidates
    try:
        if budget.goal == "plan":
            for route in c.routes:
                candidates.time(candidates.measure(route))
        elif c.record is not None:
            c.chosen = candidates.measure(_planned(c, c.record["chosen"]))
        elif budget.goal == "unchanged":
            c.chosen = candidates.measure(candidates.unchanged())
        elif budget.goal == "packed":
            c.chosen = candidates.measure(candidates.packed())
        elif budget.goal == "mix":
            fallback = find_fallback(c.session.model.file, budget.mix, has_importance=True)
            if fallback is not None:
                better = f"--to {fallback.num_bytes / 1e6:.1f}MB spends as many bytes better"
                c.events.emit(Warn(text=f"{fallback}; {better}"))
            c.chosen = candidates.measure(candidates.of_mix(budget.mix))
            if c.settings.requantize:  # another file shows what rounding twice costs here
                candidates.measure(candidates.of_size(max(c.chosen.num_bytes, candidates.smallest)))
        elif budget.goal == "size":
            c.chosen = best_within_size(candidates, int(budget.amount))
        elif budget.goal == "loss":
            c.chosen = smallest_within_loss(candidates, budget.amount)
        else:
            c.chosen = best_at_speed(candidates, budget.amount)
    except KeyboardInterrupt:
        c.events.emit(Say(text="stopped; what was measured is kept, and the same command continues from there"))
        raise


def plan(c: ShrinkContext) -> None:
    """plan.json: what is about to be exported. A run that is stopped later exports the same."""
    if c.record is not None:
        return
    record = {
        "version": PLAN_VERSION,
        "asked": c.settings.model_dump(mode="json"),
        "base": _base(c),
        "corpus": c.fingerprint,
        "chosen": c.chosen and {**c.chosen.to_json(), "kinds": dict(c.chosen.kinds)},
        "versions": {"settle": __version__},
        "machine": describe(),
        "reaches": declared(),
    }
    if c.settings.dry:
        end_dry(c, record)
        return
    if c.chosen is not None:
        write_json(c.run.path / "forecast.json", {"kl": c.candidates.expected_kl(c.chosen)})
    write_json(c.run.path / "plan.json", record)


def export(c: ShrinkContext) -> None:
    """Export the chosen file through the gate."""
    if c.chosen is None:
        return
    chosen = c.chosen
    sized = f"{c.candidates.quantizer.part_name()}-{chosen.num_bytes / 1e6:.3g}MB"
    label = chosen.name if c.settings.is_packed else chosen.mix or sized
    c.exported = c.run.out / f"{c.run.name}-{label if chosen.kinds else 'vocabulary'}.gguf"
    gate = c.session.export(chosen.kinds, c.exported, chosen.mix)
    record_made(c.run, {"gguf": str(c.exported)})
    emit_gate_checks(gate, c.events)
    c.gate = gate
    if c.settings.is_packed:
        dtype = unquantized_type(c.session.model.source)
        folder, texts = c.exported.with_suffix(""), c.session.model.data.texts
        c.packed = packed_through_gate(open_pretrained(c.exported), folder, dtype, texts, c.events)


def compare(c: ShrinkContext) -> None:
    """Compare the model and the smaller one on the user's held-out examples."""
    examples = c.session.model.data.examples
    if c.exported is None or not (c.settings.compare and examples):
        return
    whole = ModelRef(c.session.whole.name, "model", c.session.whole.source)
    small = ModelRef(c.exported.stem, "model", Source(c.exported, "gguf", c.exported.stem))
    options = CompareOptions(score=c.settings.score, only_rows=True)
    with both_in_llamacpp(whole, small) as (ours, theirs):
        comparison = compare_models(ours, theirs, examples, c.events, options, readers(whole, small))
    report_comparison(comparison, c.events, c.run.name)
    c.comparison = comparison.to_json()
    c.judged = comparison.keep(c.run.out, whole.source, small.source, "not worse")


def report(c: ShrinkContext) -> None:
    """Size, speed and memory of both, and what the smaller one loses; table and picture."""
    if c.chosen is None or c.exported is None:
        points = [c.reference.point(), *(m.point() for m in _measured(c))]
        title, why = "measured", f"{len(points) - 1} routes"
        rows = [{**r.to_json(), "expected_speed": c.expected.get(r.name)} for r in [c.reference, *_measured(c)]]
        made = ShrinkResult(name=c.run.name, verdict="planned", why=why, candidates=rows)
    else:
        before, after = footprints([c.session.whole.source.path, c.exported], threads=c.session.model.threads)
        c.reference, chosen = c.candidates.reference(before), c.chosen
        judged = c.session.model.judge(c.exported)
        c.chosen = replace(chosen, footprint=after, divergence=judged, selection=chosen.divergence)
        _warn_of_loss(c, c.chosen)
        others = [m for m in _measured(c) if m.name != c.chosen.name]
        measured = [m.point() for m in others if m.divergence]
        title, points = "", [c.reference.point(), c.chosen.point(chosen=True), *measured]
        made = _losses(c, c.chosen, others)
    c.events.emit(Listing(title=title, columns=COLUMNS, rows=pareto_rows(points)))
    picture = draw_pareto(points, c.run.out / "pareto.png", f"{c.session.model.source.name}: size, speed and loss")
    files = {} if c.exported is None else {"gguf": str(c.exported), "card": str(c.run.out / "card.md")}
    files |= {"verdict": str(c.judged)} if c.judged else {}
    files |= {"compressed_tensors": str(c.packed)} if c.packed else {}
    c.made = made.model_copy(update={"files": files | {"picture": str(picture)}})


def result(c: ShrinkContext) -> None:
    """Card, and result.json last: its presence means that the run is finished."""
    made = c.made.model_copy(update={"audit": network_record(c.run.path, c.events)})
    if c.chosen is not None:
        facts = CardFacts(
            c.run.name,
            made.why,
            c.reference,
            c.chosen,
            made.gate or {},
            c.loss_on_text,
            made.headline,
            str(made.audit.get("sentence", "")),
        )
        write_card(c.run.out / "card.md", facts, c.session)
    c.run.finish(made)
    c.events.emit(ResultReady(result=made.to_json()))
    c.exit_code = 0


def _warn_of_loss(c: ShrinkContext, chosen: ShrinkCandidate) -> None:
    """Say so when the file loses more on text that chose nothing than was asked for."""
    budget = c.settings.budget()
    if budget.goal == "loss" and chosen.loss_share > budget.amount:
        c.events.emit(
            Warn(
                text=f"on text that chose nothing the file loses up to {chosen.loss_share:.2%}, more than the "
                f"{budget.amount:.2%} asked for; a smaller --lose leaves room for that, and more text narrows it"
            )
        )


def _requantizing(settings: ShrinkSettings) -> str:
    """Return the command that shrinks a model that is quantized already."""
    given = {"--to": settings.to, "--lose": settings.lose, "--speed": settings.speed}
    budget = [f"{option} {value}" for option, value in given.items() if value is not None]
    return " ".join(["settle shrink", str(settings.model), *settings.inputs, *budget, "--requantize"])


def _planned(c: ShrinkContext, values: object) -> ShrinkCandidate:
    """Return the choice of an earlier session. Raises RunError when plan.json was edited."""
    try:
        return ShrinkCandidate.from_json(values)
    except ValidationError as e:
        raise edited(c.run, f"chosen: {e.errors()[0]['msg']}") from None


def _measured(c: ShrinkContext) -> list[ShrinkCandidate]:
    return sorted(c.candidates.known.values(), key=lambda known: -known.num_bytes)


def _base(c: ShrinkContext) -> dict[str, str]:
    return {"name": c.session.whole.name, "sha256": c.session.whole.source.sha256}


def _losses(c: ShrinkContext, chosen: ShrinkCandidate, others: Sequence[ShrinkCandidate]) -> ShrinkResult:
    """Return the result: the chosen file compared with the model. others: that were measured."""
    assert c.exported is not None and chosen.divergence is not None
    assert chosen.footprint is not None and c.reference.footprint is not None
    c.loss_on_text = c.session.text_loss(c.exported)
    rise = (c.loss_on_text or chosen.divergence).rise.value
    used = c.spending()
    faster = chosen.footprint.speed.median / c.reference.footprint.speed.median
    before, after = (f"{f.peak_bytes / 1e6:,.0f}" for f in (c.reference.footprint, chosen.footprint))
    rises = chosen.footprint.peak_bytes > c.reference.footprint.peak_bytes
    memory = f"{'rises' if rises else 'falls'} from {before} to {after} MB" if before != after else f"stays {after} MB"
    vocabulary = None
    if c.loss_on_text and c.session.cut_report:
        vocabulary = {**c.session.cut_report.to_json(), "text": c.loss_on_text.to_json()}
    return ShrinkResult(
        name=c.run.name,
        verdict="within budget",
        why=f"{c.exported.stat().st_size / c.reference.num_bytes:.0%} of the size, {faster:.2f} times as fast, "
        f"memory {memory}, and the loss on {c.session.model.data.name} changes by {rise:+.2%}",
        candidates=[other.to_json() for other in others],
        base=_base(c),
        chosen=chosen.to_json(),
        reference=c.reference.to_json(),
        kinds=dict(chosen.kinds),
        vocabulary=vocabulary,
        forecast={"kl": c.candidates.expected_kl(chosen)},
        actual={
            "kl": chosen.divergence.kl.value,
            "time": used["seconds"],
            "peak_memory": used["peak_memory"],
            "energy": used["joules"],
        },
        gate=c.gate,
        comparison=c.comparison,
    )


JOB = RunJob(
    "shrink",
    (source, data, forecast, search, plan, export, compare, report, result),
    ShrinkSettings,
    ShrinkContext,
)
