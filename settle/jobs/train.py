"""settle train: from text to a settled model that answers."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.amounts import seconds
from settle.base.errors import RunError, UsageError
from settle.base.event_log import read_records
from settle.base.events import ForecastReady, PlanReady, Say
from settle.base.files import write_json
from settle.base.run import NAME, Run
from settle.base.run.launcher import launched
from settle.base.run.result import Evaluated, Result
from settle.base.statistics import paired_test
from settle.base.words.amounts import duration, number
from settle.data.corpus import workspace
from settle.data.prepare import Corpus, prepare, prepared
from settle.data.store import StoreWriter, TokenStore
from settle.evaluate.compare.verdict_file import Files, write_read_verdict
from settle.evaluate.gate.export import ExportedModel, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.job import RunJob, asked_settings, end_dry, job_of, require_same_data
from settle.jobs.proof_stages import proof
from settle.jobs.ranks.crew import ranks
from settle.jobs.settings import STUDENT_PASSES, UNJUDGED, FollowerSettings, TrainSettings, student_steps
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
    warn_of_room,
    warn_of_time,
)
from settle.library.pretrained import open_pretrained
from settle.library.resolve import resolve
from settle.library.run_models import record_made
from settle.plan.forecast import look_ahead
from settle.plan.forecast_figures import gains_words
from settle.plan.phases import EXPORT
from settle.plan.probe import ProbeResult, probe_new
from settle.plan.training_plan import plan_training
from settle.train.evaluation import evaluate
from settle.train.objectives import Objective
from settle.train.training_plan import TrainingPlan
from settle.train.verdict import LoopVerdict

FOLLOWER_SECONDS = 3.0  # of a run that follows the judged one, before its first step


@dataclass
class TrainContext(TrainingContext):
    settings: TrainSettings
    corpus: Corpus = field(init=False)
    probed: ProbeResult = field(init=False)


def data(c: TrainContext) -> None:
    """Text, cleaned, split and tokenized."""
    if c.record is None:
        _require_followers(c.settings, c.run.name)
    if c.record is not None and restored_data(c, prepared(str(c.record["corpus"]))):
        return
    known = None if c.record is None else str(c.record["corpus"])
    c.corpus = prepare(c.settings.inputs, c.settings.data, c.events, known)


def _require_followers(settings: TrainSettings, name: str) -> None:
    """Raise UsageError where the runs that are to follow the run of that name could not."""
    names, flag = settings.followers(name), "--members" if settings.members else "--refit"
    if names and (launch := launched()) and launch.size > 1:
        raise UsageError(f"{flag} trains in one process", f"start it without torchrun, or leave {flag} out")
    for later in names:
        if not NAME.fullmatch(later):
            raise UsageError(f"{later!r}, the name of a run that follows, is too long", "choose a shorter --name")
        if Run.named(later) is not None:
            fix = f"choose another --name, or `settle runs remove {later}`"
            raise UsageError(f"a run named {later!r} exists already", fix)


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
    """Return the settings with the budgets of the judged model: its share of what is left, where others follow."""
    asked, spent = c.settings, c.spending.seconds
    others = len(asked.followers(c.run.name))
    if not others:
        return asked
    left = asked.time and max(1.0, seconds(asked.time) - spent - others * FOLLOWER_SECONDS)
    time = asked.time and f"{spent + (left or 0.0) / asked.work:.1f}s"
    return asked.model_copy(update={"time": time, "max_cost": asked.max_cost and asked.max_cost / asked.work})


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
    c.events.emit(Say(text=gains_words(c.expected.gains), is_detail=not c.settings.dry))
    warn_of_time(c)
    of_ranks = rank_memory_figures(c)
    of_others = _followers_forecast(c)
    if c.settings.dry:
        end_dry(c, {"plan": c.plan.to_json(), "forecast": c.expected.to_json(), **of_ranks, **of_others})


def _followers_forecast(c: TrainContext) -> dict[str, dict[str, float]]:
    """Report and return what the runs that follow add: so many times the steps, and an export for each."""
    settings, whole, phases = c.settings, c.expected.time.value, c.expected.phases
    names = settings.followers(c.run.name)
    if not names:
        return {}
    exports = FOLLOWER_SECONDS + phases.get(EXPORT, 0.0)
    time = (settings.work - 1) * phases.get("loop", 0.0) + len(names) * exports
    of_work = time / max(whole - phases.get("before", 0.0), 1e-9)
    joules, money = c.expected.energy.value * of_work, c.expected.cost.value * time / max(whole, 1e-9)
    price = f", {money:.2f} {c.expected.currency}" if money >= 0.01 else ""
    if settings.members:
        more = "another model" if settings.members == 2 else f"{settings.members - 1} further models"
        text = f"members: after the verdict, {more} and the one distilled from all take"
        note = f"; about {duration(whole + time)} in all"
    else:
        text = "refit: after the verdict, the same steps on all of the text take"
        kept = "; your held-out text stays out of it" if settings.data.held_out_from else ""
        note = f"{kept}; nothing judges that model"
    c.events.emit(Say(text=f"{text} about {duration(time)} more, {joules / 3600:.2g} Wh{price}{note}"))
    return {"members" if settings.members else "refit": {"time": time, "energy": joules, "cost": money}}


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
    if c.record is None:
        warn_of_room(c)
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


# --- the runs that follow the judged one ---


@dataclass
class FollowerContext(TrainContext):
    settings: FollowerSettings

    @property
    def judged(self) -> Run:
        """The run that was judged. Raises UsageError when it was removed."""
        return Run.find(self.settings.of)

    @property
    def judged_name(self) -> str:
        return Run(Path(self.settings.of)).name


def follower_data(c: FollowerContext) -> None:
    """Take the judged run's data."""
    c.safe = f"{c.judged_name} and its model are safe"
    known = str((c.record or c.judged.read("plan.json"))["corpus"])
    if not restored_data(c, prepared(known)):
        c.corpus = prepare(c.settings.inputs, c.settings.data, c.events, known)
    require_same_data(c, c.corpus.fingerprint)


def judged_plan(c: FollowerContext) -> tuple[TrainingPlan, Result]:
    """Return the plan and the result of the judged run. Raises RunError."""
    record, done = c.judged.read("plan.json"), c.judged.result()
    if record is None or done is None:
        raise RunError(f"{c.judged_name} is not finished", f"`settle resume {c.judged_name}`")
    return TrainingPlan.from_json(record), done


def schedule(run: Run, plan: TrainingPlan, done: Result) -> tuple[int, int]:
    """Return the last step of a run, and the step after which the learning rate fell; the last one where it did not."""
    end = max(1, round((number(done.actual.get("tokens")) or 0.0) / plan.loop.tokens_per_step))
    records = [record for record in read_records(run.events) if record["kind"] == "decay"]
    return end, min(end, int(records[-1]["step"])) if records else end


def note_plan(c: FollowerContext, plan: TrainingPlan) -> None:
    """Write the plan of a run that follows to its plan.json."""
    c.plan, judged = plan, c.judged.read("plan.json")
    proof = judged.get("proof") if plan.objective == judged["objective"] else None
    more = {"asked": c.settings.model_dump(mode="json"), "proof": proof, f"{c.run.command}_of": c.settings.of}
    c.record = {**judged, **plan.to_json(), **more}
    write_json(c.run.path / "plan.json", c.record)


def follower_start(c: FollowerContext) -> None:
    """Build the planned model, ready for its first step."""
    build(c)
    c.spending.start(c.plan.device, c.settings.watts)


# --- the run that follows with --refit: on all of the text, and nothing judges it ---

NOT_JUDGED = "not judged"  # its verdict
ALL = "all"  # folder of the whole text in that of a corpus


def refit_after(run: Run) -> FollowerSettings | None:
    """Return the settings of the refit of a finished run of `settle train`; None where none was asked for."""
    done = run.result()
    if done is None or done.exit_code:
        return None
    asked = asked_settings(job_of(run), run, run.read("plan.json")).value
    if not getattr(asked, "refit", False):
        return None
    changes = {"refit": False, "name": f"{run.name}{UNJUDGED}", "of": run.path.name, "seeds": 1, "dry": False}
    return FollowerSettings.model_validate(asked.model_dump(exclude_unset=True) | changes)


def whole_data(c: FollowerContext) -> None:
    """Take all of the judged run's text, also what selected and judged, but for a held-out file of the user's."""
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


def refit_plan(c: FollowerContext) -> None:
    """Take the judged run's plan, with its steps; then write plan.json."""
    if c.record is not None:
        return
    before, done = judged_plan(c)
    best = done.best or Evaluated()
    steps, decay = _refit_schedule(c.judged, before, done, best)
    changes = {"max_steps": steps, "decay_fraction": decay, "seconds": None, "until_settled": False, "is_refit": True}
    changes["average"] = before.loop.average if best.averaged else 0.0
    note_plan(c, before.with_loop(**changes))
    c.events.emit(Say(text=f"refit of {c.judged_name}: {steps:,} steps on all of the text, which nothing judges"))


def _refit_schedule(run: Run, plan: TrainingPlan, done: Result, best: Evaluated) -> tuple[int, float]:
    """Return the steps that led to the run's best weights, and the share of them in which the learning rate fell.

    Weights that are best from before the decay are as old, but decay, unless they are averaged.
    """
    end, start = schedule(run, plan, done)
    if best.step and best.step <= start < end:
        return best.step, 0.0 if best.averaged else plan.loop.decay_fraction
    return end, (end - start) / end if start < end else plan.loop.decay_fraction


def unjudged(c: FollowerContext) -> None:
    """Say what the weights are, in place of a verdict."""
    state = c.outcome.state
    why = f"trained on all of the text, with the recipe and steps of {c.judged_name}; its figures are not this model's"
    is_good = state.stop not in ("diverged", "broken")
    c.verdict = LoopVerdict(NOT_JUDGED if is_good else state.stop, why)
    c.best = Evaluated()
    tokens = state.step * c.plan.loop.tokens_per_step
    c.actual = {"peak_memory": c.loop.spent()["peak_memory"], "tokens": tokens}
    c.add_files({"card": str(c.run.out / "card.md")})


# --- the runs that follow with --members: other seeds, and a student of all ---

# Several models of one small text that differ in their seed predict better together than each alone, and a student of
# the same shape keeps most of that: Kim et al. 2025, arXiv 2509.14786.
SEEDS_APART = 1000  # of two members: runs with neighbouring seeds share none
# measured by bench/members.py: the true next token's share in what the student learns, and the mean's temperature
TEXT_SHARE, TEMPERATURE = 0.3, 2.0
LEAST_SHARE = 0.5  # of its share of a time budget, that the student gets however long the members took


def member_after(run: Run) -> FollowerSettings | None:
    """Return the settings of the member that follows the judged run, or a member; None after the last."""
    settings = _after(run)
    return settings if settings and settings.place <= (settings.members or 0) else None


def ensemble_after(run: Run) -> FollowerSettings | None:
    """Return the settings of the student, which follows the last member; None after any other run."""
    settings = _after(run)
    return settings if settings and settings.place > (settings.members or 0) else None


def _after(run: Run) -> FollowerSettings | None:
    """Return the settings of the run that follows a finished one; a member may have failed, the judged one not."""
    asked, done = asked_settings(job_of(run), run, run.read("plan.json")).value, run.result()
    known = FollowerSettings.model_validate({"of": run.path.name} | asked.model_dump(exclude_unset=True))
    if done is None or not known.members or (known.place == 1 and done.exit_code):
        return None
    name = known.followers(Run.find(known.of).name)[known.place - 1]
    changes = {"name": name, "place": known.place + 1, "seed": known.seed + SEEDS_APART, "seeds": 1, "dry": False}
    return known.model_copy(update={**changes, "of": known.of})


def member_plan(c: FollowerContext) -> None:
    """Take the judged run's plan and steps with another seed; then write plan.json."""
    if c.record is not None:
        return
    before, done = judged_plan(c)
    note_plan(c, _repeated(c, before, done))
    c.events.emit(Say(text=f"member {c.settings.place} of {c.settings.members}: {c.run.name}"))


def _repeated(c: FollowerContext, before: TrainingPlan, done: Result) -> TrainingPlan:
    """Return the plan of a run with as many steps and as long a decay, whatever ended the judged one."""
    end, start = schedule(c.judged, before, done)
    decay = (end - start) / end if start < end else before.loop.decay_fraction
    changes = {"max_steps": end, "decay_fraction": decay, "seconds": None, "until_settled": False}
    return before.with_loop(**changes, seed=c.settings.seed)


def ensemble_plan(c: FollowerContext) -> None:
    """Take the judged run's plan with another objective: the true next token, and the mean of what the members say."""
    if c.record is not None:
        return
    before, done = judged_plan(c)
    members = [run for run in map(Run.named, c.settings.followers(c.judged_name)[:-1]) if run is not None]
    results = [done, *(made for run in members if (made := run.result()))]
    paths = [run.out / "hf" for run in (c.judged, *members) if (run.out / "hf").is_dir()]
    sources = [open_pretrained(path).source for path in paths]
    objective = {
        "teacher": str(sources[0].path),
        "others": [str(source.path) for source in sources[1:]],
        "teacher_sha256": ",".join(source.sha256 for source in sources),
        "text": TEXT_SHARE,
        "temperature": TEMPERATURE,
        "evaluate_text": True,
    }
    plan = _repeated(c, before, done)
    steps = round(STUDENT_PASSES * (plan.loop.max_steps or 1))
    plan = plan.with_loop(
        max_steps=steps, seconds=seconds_left(c.settings, results), step_seconds=_step(before, len(paths))
    )
    learned = Objective.make("distill", objective).model_dump()
    note_plan(c, replace(plan, objective="distill", objective_settings=learned))
    c.events.emit(Say(text=f"{c.run.name} learns from {len(paths)} models: {steps:,} steps"))


def _step(plan: TrainingPlan, members: int) -> float:
    """Return the seconds of a step in which so many members read the batch first."""
    return plan.loop.step_seconds * student_steps(members) / STUDENT_PASSES


def seconds_left(asked: FollowerSettings, results: list[Result]) -> float | None:
    """Return what the other runs have left of a time budget, or half of the student's share; None without one."""
    if not asked.time:
        return None
    whole, spent = seconds(asked.time), sum(number(made.actual.get("time")) or 0.0 for made in results)
    return max(whole - spent, LEAST_SHARE * whole * student_steps(asked.members or 1) / asked.work)


def compare(c: FollowerContext) -> None:
    """Compare the student with the judged run, block by block of the same held-out text."""
    if not c.is_usable:
        return
    live = c.live
    live.model.load_trainable(c.outcome.best)
    first = open_pretrained(str(c.plan.objective_settings["teacher"])).load(dtype=live.model.compute_dtype)
    models = (first.to(live.model.device), live.model)
    before, after = (evaluate(model, live.objective, live.judged_on, 0, 0) for model in models)
    scores = [-loss for loss in before.blocks], [-loss for loss in after.blocks]
    test = paired_test(*scores)
    change = after.loss / before.loss - 1  # of all targets alike, as both figures are
    low, high = (-end / before.loss for end in (test.difference.high, test.difference.low))
    text = f"{after.bits_per_byte:.4f} bits per byte against {before.bits_per_byte:.4f} of {c.judged_name}"
    headline = f"{text} on the same held-out text: {change:+.1%} ({low:+.1%} to {high:+.1%})"
    judged = {"name": c.judged_name, "bits_per_byte": before.bits_per_byte}
    figures = {"judged": judged, "bits_per_byte": after.bits_per_byte, "change": [low, high]}
    c.comparison = {"verdict": test.verdict, "headline": headline, **figures}
    c.compared = [f"{headline}.", ""]
    found = {"headline": headline, "measure": "held-out log-likelihood, nats per token"}
    read = [(batch.inputs.tolist(), batch.targets.tolist()) for batch in live.judged_on.batches]
    files = [Files.of(resolve(f"run:{run.path.name}").source) for run in (c.judged, c.run)]
    kept = write_read_verdict(c.run.out, found, scores, range(len(scores[0])), read, (files[0], files[1]))
    c.add_files({"verdict": str(kept)})
    c.events.emit(Say(text=f"{c.run.name}: {headline}"))


# runs of their own: the judged one is finished when they begin, and nothing of them can change that
REFIT = RunJob(
    "refit",
    (earlier_session, follower_data, whole_data, refit_plan, follower_start, loop, unjudged, export, result),
    FollowerSettings,
    FollowerContext,
    settings_after=refit_after,
    is_extra=True,
)
MEMBER = RunJob(
    "member",
    (earlier_session, follower_data, member_plan, follower_start, loop, judge, export, result),
    FollowerSettings,
    FollowerContext,
    followers=("member", "ensemble"),
    settings_after=member_after,
)
ENSEMBLE = RunJob(
    "ensemble",
    (earlier_session, follower_data, ensemble_plan, follower_start, loop, judge, export, compare, result),
    FollowerSettings,
    FollowerContext,
    settings_after=ensemble_after,
)
JOB = RunJob(
    "train",
    (earlier_session, data, plan, probe, forecast, start, proof(again), loop, judge, export, result),
    TrainSettings,
    TrainContext,
    is_shared=True,
    followers=("refit", "member"),
)
