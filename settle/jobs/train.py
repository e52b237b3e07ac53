"""settle train: from text to a settled model that answers."""

from dataclasses import dataclass, field, replace

from settle.base.events import ForecastReady, PlanReady
from settle.base.files import write_json
from settle.data.prepare import Corpus, prepare, prepared
from settle.evaluate.gate.export import ExportedModel, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.job import RunJob, end_dry
from settle.jobs.proof_stages import proof
from settle.jobs.ranks.crew import ranks
from settle.jobs.settings import TrainSettings
from settle.jobs.training_stages import (
    TrainingContext,
    begin,
    build,
    earlier_session,
    judge,
    loop,
    rank_memory_figures,
    restored_data,
    result,
    warn_of_time,
)
from settle.library.run_models import record_made
from settle.plan.forecast import look_ahead
from settle.plan.phases import EXPORT
from settle.plan.probe import ProbeResult, probe_new
from settle.plan.training_plan import plan_training


@dataclass
class TrainContext(TrainingContext):
    settings: TrainSettings
    corpus: Corpus = field(init=False)
    probed: ProbeResult = field(init=False)


def data(c: TrainContext) -> None:
    """Text, cleaned, split and tokenized."""
    if c.record is not None and restored_data(c, prepared(str(c.record["corpus"]))):
        return
    known = None if c.record is None else str(c.record["corpus"])
    c.corpus = prepare(c.settings.inputs, c.settings.data, c.events, known)


def plan(c: TrainContext) -> None:
    """Every number of the run, each with its origin."""
    if c.record is None:
        c.plan = plan_training(c.settings, dict(c.origin), c.corpus, c.spending.seconds)
        shown = {
            **c.settings.model_dump(mode="json", exclude={"dry", "recipe"}),
            "parameters": c.plan.num_parameters,
            "device": c.plan.device,
            "dtype": c.plan.dtype,
            "context": c.plan.loop.sequence_length,
            "batch_tokens": c.plan.loop.tokens_per_step,
            "threads": c.plan.loop.threads,
            "warmup_steps": c.plan.loop.warmup_steps,
            "held_out_tokens": c.plan.held_out_tokens,
            "model": {k: v for k, v in c.plan.architecture.items() if not k.endswith("_token_id")},
            "objective": {"name": c.plan.objective, **c.plan.objective_settings},
            "optimizer": {"name": c.plan.optimizer_name, **c.plan.optimizer},
        }
        c.events.emit(PlanReady(values=shown, origin=c.plan.origin, why=c.plan.why, full=c.settings.dry))


def probe(c: TrainContext) -> None:
    """Measure a new run by a short run of the planned model."""
    if c.record is None:
        c.plan, c.probed = probe_new(c.plan, c.corpus, c.settings.watts, c.events, ranks(c.run))


def forecast(c: TrainContext) -> None:
    """Forecast what a new run will need and reach."""
    if c.record is not None:
        return
    spent, hosts = c.spending.seconds, ranks(c.run).hosts
    c.plan, c.expected = look_ahead(c.plan, c.corpus, c.probed, c.settings, spent, hosts)
    c.phases, c.estimates = c.expected.phases, {EXPORT: c.expected.phases[EXPORT]}
    c.events.emit(ForecastReady(forecast=c.expected.to_json(), phases=c.phases))
    warn_of_time(c)
    of_ranks = rank_memory_figures(c)
    if c.settings.dry:
        end_dry(c, {"plan": c.plan.to_json(), "forecast": c.expected.to_json(), **of_ranks})


def again(c: TrainContext, dtype: str, why: str) -> None:
    """Plan, forecast and build the run anew in another type."""
    reasons, origin = {**c.plan.why, "dtype": why}, {**c.plan.origin, "dtype": "derived"}
    c.plan = replace(c.plan, dtype=dtype, why=reasons, origin=origin)
    probe(c)
    forecast(c)
    build(c)
    write_json(c.run.path / "forecast.json", c.expected.to_json())


def start(c: TrainContext) -> None:
    """Build the planned model, ready for its first step."""
    build(c)
    begin(c)


def export(c: TrainContext) -> None:
    """Export the best weights through the gate."""
    if not c.is_usable:
        return
    live = c.live
    card = {"base": True, "verdict": c.verdict.verdict, **c.best.model_dump(exclude_none=True)}
    texts = held_out_texts(c.corpus.held_out, live.tokenizer)
    whole = ExportedModel(c.run.name, live.model, live.architecture, c.outcome.best, live.tokenizer, texts, card)
    files, c.gate = export_run_model(whole, c.run.out, c.events)
    record_made(c.run, files)
    c.add_files(files)


JOB = RunJob(
    "train",
    (earlier_session, data, plan, probe, forecast, start, proof(again), loop, judge, export, result),
    TrainSettings,
    TrainContext,
    is_shared=True,
)
