"""settle train: from text to a settled model that answers."""

from dataclasses import dataclass, field, replace

from settle.base.amounts import seconds
from settle.base.errors import RunError, UsageError
from settle.base.event_log import read_records
from settle.base.events import ForecastReady, PlanReady, Say
from settle.base.files import write_json
from settle.base.run import NAME, Run
from settle.base.run.launcher import launched
from settle.base.run.result import Evaluated
from settle.base.words.amounts import duration, number
from settle.data.corpus import workspace
from settle.data.prepare import Corpus, prepare, prepared
from settle.data.store import StoreWriter, TokenStore
from settle.evaluate.gate.export import ExportedModel, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.job import RunJob, asked_settings, end_dry, job_of, require_same_data
from settle.jobs.proof_stages import proof
from settle.jobs.ranks.crew import ranks
from settle.jobs.settings import UNJUDGED, RefitSettings, TrainSettings
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
from settle.train.training_plan import TrainingPlan
from settle.train.verdict import LoopVerdict

REFIT_SECONDS = 3.0  # of a refit before its first step


@dataclass
class TrainContext(TrainingContext):
    settings: TrainSettings
    corpus: Corpus = field(init=False)
    probed: ProbeResult = field(init=False)


def data(c: TrainContext) -> None:
    """Text, cleaned, split and tokenized."""
    if c.record is None and c.settings.refit:
        _require_refit(c.run.name)
    if c.record is not None and restored_data(c, prepared(str(c.record["corpus"]))):
        return
    known = None if c.record is None else str(c.record["corpus"])
    c.corpus = prepare(c.settings.inputs, c.settings.data, c.events, known)


def _require_refit(name: str) -> None:
    """Raise UsageError where a refit could not follow the run of that name."""
    if (launch := launched()) and launch.size > 1:
        raise UsageError("--refit trains in one process", "start it without torchrun, or leave --refit out")
    if not NAME.fullmatch(name + UNJUDGED):
        raise UsageError(f"{name + UNJUDGED!r}, the name of the refit, is too long", "choose a shorter --name")
    if Run.named(name + UNJUDGED) is not None:
        fix = f"choose another --name, or `settle runs remove {name + UNJUDGED}`"
        raise UsageError(f"a run named {name + UNJUDGED!r} exists already", fix)


def plan(c: TrainContext) -> None:
    """Every number of the run, each with its origin."""
    if c.record is None:
        c.plan = plan_training(_share_of_budget(c), dict(c.origin), c.corpus, c.spending.seconds)
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


def _share_of_budget(c: TrainContext) -> TrainSettings:
    """Return the settings with the budgets of the judged model: where a refit follows, half of what is left."""
    asked, spent = c.settings, c.spending.seconds
    if not asked.refit:
        return asked
    time = asked.time and f"{spent + max(0.0, seconds(asked.time) - spent - REFIT_SECONDS) / 2:.1f}s"
    return asked.model_copy(update={"time": time, "max_cost": asked.max_cost and asked.max_cost / 2})


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
    of_refit = {"refit": _refit_forecast(c)} if c.settings.refit else {}
    if c.settings.dry:
        end_dry(c, {"plan": c.plan.to_json(), "forecast": c.expected.to_json(), **of_ranks, **of_refit})


def _refit_forecast(c: TrainContext) -> dict[str, float]:
    """Report and return what the refit adds: it takes as many steps, evaluates next to nothing and exports again."""
    whole, phases = c.expected.time.value, c.expected.phases
    time = REFIT_SECONDS + phases.get("loop", 0.0) + phases.get(EXPORT, 0.0)
    of_work = time / max(whole - phases.get("before", 0.0), 1e-9)
    joules, money = c.expected.energy.value * of_work, c.expected.cost.value * time / max(whole, 1e-9)
    price = f", {money:.2f} {c.expected.currency}" if money >= 0.01 else ""
    text = f"refit: after the verdict, the same steps on all of the text take about {duration(time)} more"
    kept = "; your held-out text stays out of it" if c.settings.data.held_out_from else ""
    c.events.emit(Say(text=f"{text}, {joules / 3600:.2g} Wh{price}{kept}; nothing judges that model"))
    return {"time": time, "energy": joules, "cost": money}


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


# --- the run that follows with --refit: on all of the text, and nothing judges it ---

NOT_JUDGED = "not judged"  # its verdict
ALL = "all"  # folder of the whole text in that of a corpus


@dataclass
class RefitContext(TrainContext):
    settings: RefitSettings

    @property
    def judged(self) -> Run:
        """The run that was judged. Raises UsageError when it was removed."""
        return Run.find(self.settings.of)

    @property
    def judged_name(self) -> str:
        return self.run.name.removesuffix(UNJUDGED)


def settings_after(run: Run) -> RefitSettings | None:
    """Return the settings of the refit of a finished run of `settle train`; None where none was asked for."""
    done = run.result()
    if done is None or done.exit_code:
        return None
    asked = asked_settings(job_of(run), run, run.read("plan.json")).value
    if not getattr(asked, "refit", False):
        return None
    changes = {"refit": False, "name": f"{run.name}{UNJUDGED}", "of": run.path.name, "seeds": 1, "dry": False}
    return RefitSettings.model_validate(asked.model_dump(exclude_unset=True) | changes)


def refit_data(c: RefitContext) -> None:
    """Take all of the judged run's text, also what selected and judged, but for a held-out file of the user's."""
    c.safe = f"{c.judged_name} and its model are safe"
    known = str((c.record or c.judged.read("plan.json"))["corpus"])
    if not restored_data(c, prepared(known)):
        c.corpus = prepare(c.settings.inputs, c.settings.data, c.events, known)
    require_same_data(c, c.corpus.fingerprint)
    sides = [c.corpus.train, c.corpus.selection]
    names = ["train", "selection"]
    if not c.settings.data.held_out_from:
        sides.append(c.corpus.held_out)
        names.append("held_out")
    ledger = {key: value for key, value in c.corpus.ledger.items() if key not in names}
    store = whole_text(c.corpus, sides)
    ledger["train"] = {
        "documents": store.num_documents, "tokens": store.num_tokens, "bytes": store.num_bytes
    }  # fmt: skip
    c.corpus = replace(c.corpus, train=store, ledger=ledger)


def whole_text(corpus: Corpus, sides: list[TokenStore]) -> TokenStore:
    """Return the documents of all these stores as one, which is kept with the corpus."""
    folder = corpus.train.folder.parent / ALL
    if not folder.is_dir():
        with workspace() as work:
            with StoreWriter(work / ALL, corpus.tokenizer.eos_id, corpus.tokenizer.dtype) as writer:
                for side in sides:
                    writer.extend(side)
                writer.close()
            (work / ALL).rename(folder)
    return TokenStore(folder)


def refit_plan(c: RefitContext) -> None:
    """Take the judged run's plan, with its steps; then write plan.json."""
    if c.record is not None:
        return
    judged = c.judged
    record, done = judged.read("plan.json"), judged.result()
    if record is None or done is None:
        raise RunError(f"{judged.name} is not finished", f"`settle resume {judged.name}`")
    before = TrainingPlan.from_json(record)
    best = done.best or Evaluated()
    steps, decay = _schedule(judged, before, best, number(done.actual.get("tokens")))
    changes = {"max_steps": steps, "decay_fraction": decay, "seconds": None, "until_settled": False, "is_refit": True}
    changes["average"] = before.loop.average if best.averaged else 0.0
    c.plan = before.with_loop(**changes)
    c.record = {**record, **c.plan.to_json(), "refit_of": judged.path.name}
    write_json(c.run.path / "plan.json", c.record)
    c.events.emit(Say(text=f"refit of {judged.name}: {steps:,} steps on all of the text, which nothing judges"))


def _schedule(run: Run, plan: TrainingPlan, best: Evaluated, tokens: float | None) -> tuple[int, float]:
    """Return the steps that led to the run's best weights, and the share of them in which the learning rate fell.

    tokens: of the run. Weights that are best from before the decay are as old, but decay, unless they are averaged.
    """
    end = max(1, round((tokens or 0.0) / plan.loop.tokens_per_step))
    records = [record for record in read_records(run.events) if record["kind"] == "decay"]
    start = int(records[-1]["step"]) if records else end
    if best.step and best.step <= start < end:
        return best.step, 0.0 if best.averaged else plan.loop.decay_fraction
    return end, (end - start) / end if start < end else plan.loop.decay_fraction


def refit_start(c: RefitContext) -> None:
    """Build the planned model, ready for its first step."""
    build(c)
    c.spending.start(c.plan.device, c.settings.watts)


def unjudged(c: RefitContext) -> None:
    """Say what the weights are, in place of a verdict."""
    state = c.outcome.state
    why = f"trained on all of the text, with the recipe and steps of {c.judged_name}; its figures are not this model's"
    is_good = state.stop not in ("diverged", "broken")
    c.verdict = LoopVerdict(NOT_JUDGED if is_good else state.stop, why)
    c.best = Evaluated()
    tokens = state.step * c.plan.loop.tokens_per_step
    c.actual = {"peak_memory": c.loop.spent()["peak_memory"], "tokens": tokens}
    c.add_files({"card": str(c.run.out / "card.md")})


# a run of its own: the judged one is finished when it begins, and nothing of it can change that
REFIT = RunJob(
    "refit",
    (earlier_session, refit_data, refit_plan, refit_start, loop, unjudged, export, result),
    RefitSettings,
    RefitContext,
    settings_after=settings_after,
)
JOB = RunJob(
    "train",
    (earlier_session, data, plan, probe, forecast, start, proof(again), loop, judge, export, result),
    TrainSettings,
    TrainContext,
    is_shared=True,
    follower=REFIT,
)
