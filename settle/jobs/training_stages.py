"""Stages of every job that trains weights: what `train`, `tune` and `distill` do alike."""

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from settle.audit.session import network_record
from settle.base.amounts import seconds
from settle.base.errors import RunError, UsageError
from settle.base.event_log import read_events, read_records
from settle.base.events import Eval, ForecastReady, ResultReady, Say, Warn
from settle.base.files import write_json
from settle.base.python_command import shell_line
from settle.base.run import Run
from settle.base.run.launcher import launched
from settle.base.run.result import Evaluated, Result
from settle.base.statistics import Interval
from settle.base.version import refuse_newer
from settle.base.words.amounts import disk_size, number
from settle.data.prepare import Corpus
from settle.data.rows.prepare import RowCorpus
from settle.evaluate.compare.candidate import Samples
from settle.evaluate.report.card import write_card
from settle.evaluate.report.curves import draw_curves, load_drawing
from settle.jobs.job import RunContext, edited, interrupt, require_same_data, version_before
from settle.jobs.ranks.crew import gather
from settle.jobs.settings import DistillSettings, TrainSettings, TuneSettings
from settle.library.deletion import prune
from settle.machine import accelerator, commanded, disk_free
from settle.model.pretrained import Pretrained
from settle.plan.forecast import cost
from settle.plan.forecast_figures import Forecast
from settle.plan.memory import rank_memory
from settle.plan.outlook import CurveStart, Outlook, TuningStart
from settle.plan.phases import EXPORT, beside_others, remember, too_short
from settle.plan.training_plan import require_dtype
from settle.train.checkpoint import newest_state
from settle.train.evaluation import EvaluationFigures
from settle.train.live_run import IDENTITY, LiveRun
from settle.train.loop import Loop
from settle.train.optimizers import Optimizer
from settle.train.state import Outcome
from settle.train.training_plan import PLAN_VERSION, TrainingPlan
from settle.train.verdict import LoopVerdict, verdict

HOUR = 3600.0
RESULT_SECONDS = 1.5  # the card, the picture and the end of the process, on a machine with nothing else to do
LONGEST_PAUSE = 60.0  # seconds from one event to the next that count as work: a computer may have slept
UNUSABLE = ("diverged", "broken")  # verdicts after which nothing is exported


@dataclass
class LoopContext(RunContext):
    """What the stages of every job with a loop make, in the order in which they make it."""

    settings: TrainSettings | TuneSettings | DistillSettings

    loop: Loop = field(init=False)
    outcome: Outcome = field(init=False)
    verdict: LoopVerdict = field(init=False)
    best: Evaluated = field(init=False)  # the best weights on held-out data that chose nothing
    actual: dict[str, float | None] = field(default_factory=dict)  # figures beside those of the forecast
    files: dict[str, str] = field(default_factory=dict)  # by kind
    compared: list[str] = field(default_factory=list)  # lines for the model card on that comparison

    @property
    def is_usable(self) -> bool:
        """Return whether the weights are worth exporting.

        Those of a run that the loop stopped as *broken* are, when they are better than the first ones: a slow starter
        cannot be told from a run that never starts.
        """
        state = self.outcome.state
        return self.verdict.verdict not in UNUSABLE or (state.stop == "broken" and state.best_step > 0)

    def add_files(self, files: Mapping[str, str]) -> None:
        """Add files that were made, by kind; they come before the card and the picture."""
        self.files = {**files, **self.files}

    def next_steps(self) -> str:
        """Commands that use what was made; empty when nothing was."""
        return ""

    def made(self) -> Result:
        """Return what becomes result.json, but for what left this machine."""
        return Result(
            name=self.run.name,
            **vars(self.verdict),
            best=self.best,
            actual=self.actual,
            proof=(self.record or {}).get("proof"),
            gate=self.gate,
            comparison=self.comparison,
            files=self.files,
        )


@dataclass
class TrainingContext(LoopContext):
    """What the stages of training make, in the order in which they make it.

    base: the pretrained model, when one is trained further. phases: planned seconds by the name of the stage;
    estimates: seconds that a stage would take as a whole, of those that the machine remembers. further: what an hour
    more would have taken off the final loss, as a share of it; None without a forecast. outlook: the last forecast
    that was made by half of the run.
    """

    settings: TrainSettings | TuneSettings | DistillSettings
    corpus: Corpus | RowCorpus = field(init=False)
    base: Pretrained | None = None
    plan: TrainingPlan = field(init=False)
    live: LiveRun = field(init=False)
    expected: Forecast = field(init=False)
    further: Interval | None = None
    outlook: Mapping[str, object] | None = None
    phases: Mapping[str, float] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)

    @property
    def budget(self) -> float | None:
        """Seconds that were asked for, of everything; None without a time budget."""
        if hasattr(self, "plan"):
            return self.plan.loop.seconds
        return seconds(self.settings.time) if self.settings.time else None

    def seconds_left(self, stage: str) -> float | None:
        names, planned = list(self.phases), None
        if stage in names:
            planned = sum(self.phases[name] for name in names[names.index(stage) :])
        if self.budget is None:
            return planned
        left = max(0.0, self.budget - self.spending.total)
        if planned is None or not hasattr(self, "outcome"):
            return left
        return min(
            left, planned * self.loop.watch.time.slowdown + self.result_seconds
        )  # the loop may end before its time

    def finished(self, stage: str, seconds: float) -> None:
        if stage in self.estimates and self.is_usable:
            planned = self.estimates[stage] * self.loop.watch.time.slowdown
            remember(self.pace_name(stage), self.plan.loop.threads, planned, seconds)

    def pace_name(self, stage: str) -> str:
        """Return the name that the machine remembers the pace of a stage by."""
        return EXPORT if stage == EXPORT else f"{stage} {type(self.settings).__name__}"

    def needs_less(self) -> str:
        if self.run.has_begun:
            return f"`settle doctor {self.run.name} --prove 2 --fix` finds how much at once fits"
        return "take less at once: --micro-rows, --recompute" if self.base else "take less at once: --micro-tokens"

    def sample(self, step: int, moment: str) -> None:
        """Complete the user's prompt with the model as it is now, where one was given."""
        prompt, live = self.settings.sample, self.live
        if prompt:
            Samples(live.model, live.tokenizer, live.plan.loop.sequence_length, prompt, self.events).take(step, moment)

    @property
    def seconds_to_compare(self) -> float | None:
        """What a time budget leaves for a comparison, now; None without one."""
        if self.budget is None:
            return None
        return max(0.0, self.budget - self.spending.total - self.result_seconds)

    @property
    def result_seconds(self) -> float:
        """Seconds of the last stage, at the pace of the loop's end."""
        return beside_others(RESULT_SECONDS, self.plan.loop.waiting) * self.loop.watch.time.slowdown

    def next_steps(self) -> str:
        """Commands that use what was made; empty when nothing was."""
        if not self.is_usable:
            return ""
        name = self.run.name
        chats = self.base is not None and self.live.tokenizer.chat_template
        prompt = "" if chats else " " + shell_line(self.settings.sample or "Once")
        return f"`settle chat {name}{prompt}` · `settle serve` · `settle runs show {name}`"

    def made(self) -> Result:
        more = {"budget": _budget_used(self), "forecast": self.run.read("forecast.json") or {}}
        if self.outlook is not None:
            more["outlook"] = self.outlook
        return super().made().model_copy(update=more)


def earlier_session(c: TrainingContext) -> None:
    """Restore the plan of an earlier session, unless it was edited. Raises RunError naming what has changed.

    In a new run, raises UsageError for a device or a type that is not for this machine, before anything is read.
    """
    if c.budget is not None:
        load_drawing()  # now, while the time of the run is not planned yet
    if c.record is None:
        require_dtype(c.settings.dtype, accelerator(c.settings.device))
        return
    refuse_newer(c.record, PLAN_VERSION, f"plan.json of {c.run.name}")
    for key in (*TrainingPlan.__dataclass_fields__, "corpus"):
        if key not in c.record:
            raise edited(c.run, f"{key} is missing")
    saved = newest_state(c.run.checkpoints)
    identity = saved["identity"] if saved is not None else None
    c.spending.earlier = max(seconds_of(saved), seconds_noted(c.run))
    c.phases = dict((c.run.read("forecast.json") or {}).get("phases") or ())
    if isinstance(identity, dict):
        _refuse_changes(c.run, {key: c.record[key] for key in IDENTITY}, identity)
    _warn_of_versions(c)
    try:
        c.plan = TrainingPlan.from_json(c.record)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise edited(c.run, str(e).replace("\n", " ")) from None
    accelerator(c.plan.device)
    _warn_of_threads(c)


def restored_data(c: TrainingContext, corpus: Corpus | RowCorpus | None) -> bool:
    """Take the data of an earlier session; False when they were deleted and must be made again.

    corpus: what the store has under the fingerprint in plan.json.
    """
    if corpus is not None:
        c.corpus = corpus
        return True
    if "-" in c.settings.inputs:
        raise RunError("the tokens of this run were deleted, and they came from stdin", "start a new run")
    c.events.emit(Say(text="the tokens of this run were deleted: they are made again"))
    return False


def build(c: TrainingContext) -> None:
    """Build the model, data and optimizer that the plan names."""
    if c.record is not None:
        require_same_data(c, c.corpus.fingerprint)
    try:
        c.live = LiveRun.build(c.plan, c.corpus, c.base)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        if c.record is None:
            raise
        raise edited(c.run, str(e).replace("\n", " ")) from None


def begin(c: TrainingContext) -> None:
    """Count energy from here on, and keep the forecast; that of an earlier session is emitted again."""
    c.spending.start(c.plan.device, c.settings.watts)
    if c.record is None:
        write_json(c.run.path / "forecast.json", c.expected.to_json())
    elif known := c.run.read("forecast.json"):
        c.events.emit(ForecastReady(forecast=known, phases=c.phases))


def rank_memory_figures(c: TrainingContext) -> dict[str, dict[str, float]]:
    """Report what each rank will hold, and return it for `--dry`; nothing where each holds the whole model."""
    launch, settings, loop = launched(), c.settings, c.plan.loop
    size, host_size = (1, 1) if launch is None else (launch.size, launch.local_size)
    if size == 1 and isinstance(settings, TrainSettings | TuneSettings):
        host_size = settings.gpus or 1
        size = settings.hosts * host_size
    if size == 1 or not loop.is_sharded:
        return {}
    needed = rank_memory(c.plan, size, host_size)
    c.events.emit(Say(text=f"{needed.words(size)}; rank 0 all of it at the ends"))
    if loop.is_hybrid and host_size == size:
        c.events.emit(Say(text="all ranks are on one host: --sharding hybrid shares out the weights as full does"))
    return {"rank_memory": {"ranks": size, "value": needed.device, "host": needed.host}}


def warn_of_time(c: TrainingContext) -> None:
    """Say so when a time budget leaves little for learning. Raises UsageError when it leaves next to nothing."""
    try:
        beside = sum(seconds for phase, seconds in c.phases.items() if phase != "loop")
        # steps, tokens or passes may end the loop before the time does
        models, before = getattr(c.settings, "work", 1.0), c.phases.get("before", 0.0)
        warning = too_short(
            c.plan, max(c.phases.get("loop", 0.0), (c.plan.loop.seconds or 0.0) - beside), models, before
        )
    except UsageError as e:
        if not c.settings.dry:
            raise
        warning = f"{e.what}: {e.fix}"
    if warning:
        c.events.emit(Warn(text=warning))


def warn_of_room(c: TrainingContext) -> None:
    """Say so when the disk has no room for two checkpoints: the newest, and the one that takes its place."""
    state = Optimizer.make(c.plan.optimizer_name, c.plan.optimizer).bytes_per_parameter()
    copies = 3 if c.plan.loop.average else 2  # of the weights: the last, the best, their average
    needed = 2 * sum(copies * t.nbytes + state * t.numel() for t in c.live.model.trainable().values())
    if (free := disk_free(c.run.path)) < needed:
        room = f"{disk_size(free)} are free in {c.run.path}, and checkpoints take up to {disk_size(needed)}"
        c.events.emit(
            Warn(text=f"{room}: the run will pause until there is room; `settle doctor` shows what takes up space")
        )


def loop(c: TrainingContext) -> None:
    """Train until the model has settled, or the budget is spent, or something stops the run."""
    c.live.join(gather(c.live, c.run))
    outlook = _outlook(c)
    c.loop = c.live.loop(c.run, c.events, c.stopping, c.spending, lambda: c.spending.total, c.sample)
    train_loop(c)
    if outlook is not None:
        c.events.listeners.remove(outlook)
        c.outlook = outlook.figures()
        state = c.outcome.state
        pace = state.step * c.plan.loop.tokens_per_step / max(state.seconds, 1e-9)
        c.further = outlook.further(state.best_loss, HOUR * pace)
    c.outcome = c.live.leave(c.outcome)
    c.safe = "the trained weights are safe"


def train_loop(c: LoopContext) -> None:
    """Take the steps of the loop; where it is stopped on the way, the session ends with it."""
    with c.stopping.patiently():
        c.outcome = c.loop.train()
    if c.outcome.interrupted or c.stopping():
        if c.loop.saved_step >= 0:
            interrupt(c, f"saved at step {c.loop.saved_step:,}")
        else:
            interrupt(c, "stopped before the first checkpoint", "begins it again")


def _outlook(c: TrainingContext) -> Outlook | None:
    """Make a listener that forecasts the loop's loss anew, and knows what an earlier session evaluated."""
    expected = c.run.read("forecast.json") or {}
    curve, tokens = expected.get("curve"), expected.get("tokens")
    start = CurveStart.from_json(curve) or TuningStart.from_json(curve)
    if start is None or not isinstance(tokens, dict):
        return None
    outlook = Outlook(start, float(tokens["value"]), c.plan.loop.tokens_per_step, c.events)
    outlook.resume(read_events(c.run.events))
    c.events.listeners.append(outlook)
    return outlook


def judge(c: TrainingContext) -> None:
    """Judge the loop: the verdict, and the evaluation of the best weights that is quoted."""
    state = c.outcome.state
    tokens = state.step * c.plan.loop.tokens_per_step
    usual = c.live.judged_tokens(state.step)
    best = c.live.judge(c.outcome.best, state, c.loop.watch.time.judged_tokens(state, usual, c.spending.total))
    c.sample(state.best_step, "end")
    c.verdict = verdict(state, c.plan.loop, tokens / max(state.seconds, 1e-9), c.further)
    c.add_files({"card": str(c.run.out / "card.md")})
    note_judged(c, best, tokens)


def note_judged(c: LoopContext, best: EvaluationFigures, tokens: int) -> None:
    """Keep and emit the evaluation of the best weights. tokens: that the loop has trained on."""
    c.best = Evaluated.model_validate({**best, "averaged": c.outcome.state.averaged is not None})
    c.events.emit(Eval.model_validate({"whole": True, **best}))
    c.actual = {"peak_memory": c.loop.spent()["peak_memory"], "tokens": tokens, "loss": best["loss"]}
    c.files["curves"] = str(c.run.out / "curves.png")


def result(c: TrainingContext) -> None:
    """Card, picture, and result.json last: its presence means that the run is finished, and needs no checkpoints."""
    c.actual = {**_used(c), **c.actual, "others_share": others_share(c.run)}
    made = with_network(c)
    record = {**(c.record or {}), "num_parameters": c.live.architecture.num_parameters}
    write_card(c.run.out / "card.md", c.run.name, record, made.to_json(), c.corpus.ledger, c.compared)
    finish(c, made)


def with_network(c: LoopContext) -> Result:
    """Return what becomes result.json, and say what left this machine."""
    return c.made().model_copy(update={"audit": network_record(c.run.path, c.events)})


def finish(c: LoopContext, made: Result) -> None:
    """Draw the curves, and write result.json last."""
    draw_curves(c.run, made)
    c.run.finish(made)
    if not c.settings.keep_checkpoints:
        prune(c.run)
    c.events.emit(ResultReady(result=made.to_json()))
    if next_steps := c.next_steps():
        c.events.emit(Say(text=f"Next: {next_steps}"))
    c.exit_code = made.exit_code


def _budget_used(c: TrainingContext) -> str | None:
    """Return what the run has used up, where that is why it ended: time, tokens, steps, money or passes."""
    state, settings = c.outcome.state, c.settings
    if state.stop == "passes":
        return "passes"
    if state.stop != "budget":
        return None
    if state.last_step is None:
        return "time" if settings.time else "money"
    if getattr(settings, "epochs", None):
        return "passes"
    return "tokens" if settings.tokens else "steps"


def others_share(run: Run) -> float | None:
    """Return the mean share of the processor that other programs took while the run trained; None where unknown."""
    usage = (number(record.get("others")) for record in read_records(run.events) if record["kind"] == "usage")
    known = [share for share in usage if share is not None]
    return sum(known) / len(known) if known else None


def _used(c: TrainingContext) -> dict[str, float | None]:
    """Time, energy and cost of the whole run, export and comparison among them: the forecast counts them too."""
    used, settings, launch = c.loop.spent(), c.settings, launched()
    seconds, joules, hosts = used["seconds"], used["joules"], 1 if launch is None else launch.hosts
    price = cost(joules, seconds, settings.price_per_kwh, settings.price_per_hour * hosts)
    return {"time": seconds, "energy": joules, "cost": price}


def seconds_of(saved: Mapping[str, object] | None) -> float:
    """Seconds of work in the sessions before a checkpoint, by its state."""
    spent = (saved or {}).get("spent")
    return number(spent.get("seconds")) or 0.0 if isinstance(spent, dict) else 0.0


def seconds_noted(run: Run) -> float:
    """Return the seconds of work by the run's events: a killed session worked on after its newest checkpoint."""
    seconds, at = 0.0, math.inf
    for record in read_records(run.events):
        now = number(record["time"])
        if now is None:
            continue
        seconds += min(max(0.0, now - at), LONGEST_PAUSE)
        at = now
        if record["kind"] == "opened":
            at = math.inf  # another session: what lies between was no work
        elapsed = number(record.get("elapsed"))
        if record["kind"] == "phase" and elapsed is not None:
            seconds, at = elapsed, now
    return seconds


def _refuse_changes(run: Run, now: Mapping[str, object], before: Mapping[str, object]) -> None:
    """Raise RunError for the first key that is not as it was when the newest checkpoint was made."""
    now, before = _flat(now), _flat(before)
    for key in {**before, **now}:
        is_newer = not (key in now and key in before) and not (now.get(key) or before.get(key))  # and at its default
        if now.get(key) != before.get(key) and not is_newer:
            raise edited(run, f"{key} is {now.get(key)!r}, the checkpoints were made with {before.get(key)!r}")


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _warn_of_versions(c: TrainingContext) -> None:
    for package in ("torch", "numpy"):
        now = importlib.metadata.version(package)
        before = version_before(c, package, now)
        if before != now:
            text = f"{package} was {before} and is {now} now: the run continues, but not bit for bit the same"
            c.events.emit(Warn(text=text))


def _warn_of_threads(c: TrainingContext) -> None:
    before, now = c.plan.loop.threads, commanded()
    if now is not None and now != before and c.plan.dtype == "float32":
        text = f"the run had {before} threads and has {now} now: it continues, but not bit for bit the same"
        c.events.emit(Warn(text=text))
