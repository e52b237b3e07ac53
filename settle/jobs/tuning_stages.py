"""Stages of the jobs that train a pretrained model further: what `tune` and `distill` do alike."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from settle.base.errors import FormatError, UsageError
from settle.base.events import ForecastReady, PlanReady, RowPreviews, Say, Warn
from settle.base.files import write_json
from settle.base.words.amounts import duration, gigabytes
from settle.data.rows.prepare import RowCorpus
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.evaluate.compare.sample_size import Judgement
from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_run_adapter, export_run_model
from settle.evaluate.gate.gate import held_out_texts
from settle.jobs.job import end_dry
from settle.jobs.ranks.crew import ranks
from settle.jobs.settings import DistillSettings, TuneSettings
from settle.jobs.training_stages import TrainingContext, begin, build, rank_memory_figures, warn_of_room, warn_of_time
from settle.library.catalogue import sampling_keys, transformers_name
from settle.library.run_models import record_made
from settle.machine import memory, resident
from settle.model.load_adapter import TrainedAdapter
from settle.model.pretrained import Pretrained
from settle.plan.forecast import TuningFacts, look_ahead_tuning
from settle.plan.phases import EXPORT, correction
from settle.plan.probe import ProbeResult, probe_tuning
from settle.plan.tuning_plan import plan_tuning
from settle.train.live_run import adapter_of
from settle.train.training_plan import TrainingPlan, Tuning


@dataclass
class TuningContext(TrainingContext):
    """can_skip_comparison: whether `--no-compare` leaves the comparison out."""

    can_skip_comparison: ClassVar[bool] = False

    settings: TuneSettings | DistillSettings
    corpus: RowCorpus = field(init=False)
    base: Pretrained = field(init=False)
    measured: ProbeResult = field(init=False)
    judgement: Judgement | None = None  # what the rows that judge can show

    @property
    def tuning(self) -> Tuning:
        """What the run does with its base."""
        assert self.plan.tuning is not None
        return self.plan.tuning

    @property
    def tokenizer(self) -> PretrainedTokenizer:
        """The base's tokenizer, with the template that the rows were rendered with."""
        assert isinstance(self.live.tokenizer, PretrainedTokenizer)
        return self.live.tokenizer

    def comparing(self, seconds_per_token: float) -> float:
        """Seconds of the comparison at the end, where a forward pass takes so long per token."""
        estimate = self.comparison_estimate(seconds_per_token)
        self.estimates["compare"] = estimate * correction(self.pace_name("compare"), self.live.plan.loop.threads)
        return self.estimates["compare"]

    def comparison_estimate(self, seconds_per_token: float) -> float:
        """Return the seconds of the comparison by its constants alone."""
        return 0.0

    def leave_out_pace(self) -> None:
        """Forget the estimate: a shortened comparison says nothing of the time of a whole one."""
        self.estimates.pop("compare", None)


def plan(c: TuningContext) -> None:
    """Every number of the run, each with its origin."""
    if c.record is not None:
        return
    require_exportable(c.base)
    if c.settings.dry:
        c.events.emit(RowPreviews.model_validate({"rows": [preview.to_json() for preview in c.corpus.previews]}))
    c.plan = _planned(c, c.settings)
    loop, tuning = c.plan.loop, c.tuning
    settings = c.settings.model_dump(mode="json", exclude={"dry", "recipe", "adapter", "objective", "recompute"})
    shown = {
        **settings,
        "model": tuning.base_name,
        "adapter": {"name": tuning.adapter_name, **tuning.adapter},
        "objective": {"name": c.plan.objective, **c.plan.objective_settings},
        "device": c.plan.device,
        "dtype": c.plan.dtype,
        "steps": loop.max_steps,
        "batch_tokens": loop.tokens_per_step,
        "micro_rows": tuning.rows,
        "recompute": bool(tuning.recompute),
        "threads": loop.threads,
        "warmup_steps": loop.warmup_steps,
        "held_out_tokens": c.plan.held_out_tokens,
        "optimizer": {"name": c.plan.optimizer_name, **c.plan.optimizer},
    }
    c.events.emit(PlanReady(values=shown, origin=c.plan.origin, why=c.plan.why, full=c.settings.dry))


def require_exportable(base: Pretrained) -> None:
    """Raise UsageError where the result could not pass the gate, before anything is learned."""
    try:
        base.part.gguf_metadata()
    except FormatError as e:
        what = f"{base.name}, tuned, could not be exported through llama.cpp: {e.what}"
        raise UsageError(what, "tune the model's GGUF file instead, if there is one") from None


def probe(c: TuningContext) -> None:
    """Measure the steps of a new run on the model itself."""
    if c.record is None:
        c.measured = probe_tuning(c.live, c.settings.watts, c.events, ranks(c.run))
        c.plan = c.live.plan


def forecast(c: TuningContext) -> None:
    """Forecast what a new run will need and reach."""
    if c.record is not None:
        begin(c)
        return
    _look_ahead(c)
    of_ranks = rank_memory_figures(c)
    if c.settings.dry:
        previews = [preview.to_json() for preview in c.corpus.previews]
        judgement = vars(c.judgement) | {"sentence": c.judgement.sentence} if c.judgement else {}
        known = {"forecast": c.expected.to_json(), "judgement": judgement, "previews": previews}
        end_dry(c, {"plan": c.plan.to_json(), **known, **of_ranks})
    else:
        begin(c)


def again(c: TuningContext, dtype: str, why: str) -> None:
    """Plan, build and forecast the run anew in another type."""
    del c.live  # its memory is needed
    c.plan = _planned(c, c.settings.model_copy(update={"dtype": dtype}))
    reasons, origin = {**c.plan.why, "dtype": why}, {**c.plan.origin, "dtype": "derived"}
    c.plan = replace(c.plan, why=reasons, origin=origin)
    build(c)
    probe(c)
    _look_ahead(c)
    write_json(c.run.path / "forecast.json", c.expected.to_json())


def _planned(c: TuningContext, settings: TuneSettings | DistillSettings) -> TrainingPlan:
    return plan_tuning(settings, dict(c.origin), c.corpus, c.base)


def _look_ahead(c: TuningContext) -> None:
    """Forecast the run and emit it. Its plan gives up the time that was spent so far."""
    facts = TuningFacts.of(c.corpus, c.live.model, c.live.objective, c.live.whole)
    around = c.spending.seconds, c.comparing(c.measured.evaluation_seconds)
    hosts = ranks(c.run).hosts
    c.plan, expected = look_ahead_tuning(c.plan, facts, c.measured, c.settings, around, c.events, hosts)
    c.expected, c.live.plan, c.phases = expected, c.plan, expected.phases
    c.estimates[EXPORT] = expected.phases[EXPORT]
    c.events.emit(ForecastReady(forecast=expected.to_json(), phases=expected.phases))
    comparing = expected.phases.get("compare", 0.0)
    if c.can_skip_comparison and comparing >= 1:
        text = f"the comparison at the end takes about {duration(comparing)}; --no-compare leaves it out"
        c.events.emit(Say(text=text))
    warn_of_time(c)
    warn_of_room(c)
    _warn_of_memory(c, expected.peak_memory.value)


def export(c: TuningContext) -> None:
    """Export the adapter, or the whole model, through the gate."""
    if not c.is_usable:
        return
    live, base, corpus = c.live, c.base, c.corpus
    texts = held_out_texts(corpus.held_out, c.tokenizer)
    took_turns = bool(base.tokenizer.chat_template) and not base.metadata.get("settle.base")
    learned_turns = bool(corpus.template) and corpus.kind != "text"
    card = {"verdict": c.verdict.verdict, **c.best.model_dump(exclude_none=True)}
    if not took_turns and not learned_turns:
        card["base"] = True
    if live.whole:
        whole = ExportedModel(
            *(c.run.name, live.model, live.architecture, c.outcome.best, c.tokenizer, texts, card),
            gguf_keys=sampling_keys(base.source, base.metadata),
        )
        files, c.gate = export_run_model(whole, c.run.out, c.events)
        record_made(c.run, files)
    else:
        live.model.load_trainable(c.outcome.best)
        if learned_turns and not (took_turns and c.tokenizer is base.tokenizer):
            card["template"] = c.tokenizer.chat_template
        base_name = transformers_name(base.source) or base.name
        adapter = TrainedAdapter.of_model(live.model, adapter_of(c.tuning), base_name, base.source.sha256)
        exported = ExportedAdapter(c.run.name, base, adapter, c.tokenizer, texts, card)
        files, c.gate = export_run_adapter(exported, c.run.out, c.events)
        record_made(c.run, files, base.source)
    c.add_files(files)


def _warn_of_memory(c: TuningContext, expected: float) -> None:
    """Warn where the run is expected to need more memory than there is, as is known after the probe."""
    available = memory().available + resident()
    if c.plan.device == "cpu" and expected > available:
        c.events.emit(
            Warn(
                text=f"{gigabytes(expected)} of memory are expected, {gigabytes(available)} are there: the system "
                "may end the run; --recompute, a smaller --batch-rows or --rows.max-tokens needs less",
            )
        )
