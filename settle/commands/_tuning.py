"""What every command shares that trains on a model that others made: plan, forecast, proof, loop, and hand-over."""

import dataclasses
from typing import TYPE_CHECKING, Any

from settle.base.event_log import Events
from settle.base.events import ForecastReady, PlanReady, ResultReady, RowPreviews, Warn
from settle.base.run import Run, write_json
from settle.base.stop_signals import Stopping
from settle.commands._session import RunCommand, Spending, go_on, record_of
from settle.plan.settings import TuningSettings

if TYPE_CHECKING:
    from settle.data.rows.prepare import RowCorpus
    from settle.model.pretrained import Pretrained
    from settle.plan.training_job import TrainingJob
    from settle.plan.training_plan import TrainingPlan
    from settle.train.state import Outcome


class TuningCommand(TuningSettings, RunCommand):
    """A command whose run goes on with a model that is there already."""

    @classmethod
    def stored_corpus(cls, record: dict[str, Any]) -> "RowCorpus | None":
        from settle.data.rows.prepare import prepared_rows

        return prepared_rows(str(record["corpus"]))


def begin(
    settings: TuningCommand,
    run: Run,
    origin: dict[str, str],
    base: "Pretrained",
    corpus: "RowCorpus",
    spending: Spending,
    stopping: Stopping,
    events: Events,
) -> int:
    """From rows and a model to the end of the run, as `RunCommand.start`."""
    from settle.plan.training_job import TrainingJob
    from settle.plan.tuning_forecast import look_ahead
    from settle.plan.tuning_plan import plan_tuning
    from settle.train.proof import prove

    if settings.dry:
        events.emit(RowPreviews(rows=[preview.to_json() for preview in corpus.previews]))
    plan = plan_tuning(settings, origin, corpus, base, spending.seconds)
    events.emit(PlanReady(values=_told(plan, settings), origin=plan.origin, why=plan.why, full=settings.dry))
    job = TrainingJob.build(plan, corpus, base)
    before = spending.seconds
    expected = look_ahead(job, settings, lambda: spending.seconds, events)
    plan = job.plan = _without(plan, spending.seconds - before)
    events.emit(ForecastReady(forecast=expected.to_json()))
    _warn_of_memory(expected.peak_memory.value, plan.device, events)
    if settings.dry:
        events.emit(ResultReady(result={"plan": plan.to_json(), "forecast": expected.to_json()}))
        return 0
    spending.start(plan.device, settings.watts)
    write_json(run.path / "forecast.json", expected.to_json())
    events.move_to(run.events)
    rows = [corpus.train.origin(document) for document, _, _ in job.batches.rows_of(0)]
    first = job.batches.at(0)
    vocab_size = job.model.options.vocab_size
    proof = prove(job.model, job.objective, first, vocab_size, rows, events, plan.loop.seed, tuned=True)
    write_json(run.path / "plan.json", record_of(plan, settings, corpus) | {"proof": proof})
    return go_on(type(settings), run, job, spending, stopping, events)


def _warn_of_memory(expected: float, device: str, events: Events) -> None:
    """The plan counts what a step needs; what a whole run comes to hold is known after the probe."""
    from settle.machine import memory, resident

    there = memory().available + resident()
    if device == "cpu" and expected > there:
        events.emit(
            Warn(
                text=f"{expected / 1e9:.1f} GB of memory are expected, {there / 1e9:.1f} GB are there: the system may "
                "end the run; --recompute, a smaller --batch-rows or --rows.max-tokens needs less",
            )
        )


def _without(plan: "TrainingPlan", seconds: float) -> "TrainingPlan":
    """The plan with what the probe took missing from its time."""
    if not plan.loop.seconds:
        return plan
    left = max(plan.loop.seconds / 2, plan.loop.seconds - seconds)
    return dataclasses.replace(plan, loop=plan.loop.model_copy(update={"seconds": left}))


def handed_over(
    run: Run, job: "TrainingJob", outcome: "Outcome", result: dict[str, Any], events: Events
) -> tuple[dict[str, str], dict[str, Any]]:
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.gate.export import ExportedAdapter, ExportedModel, export_run_adapter, export_run_model
    from settle.evaluate.gate.held_out import held_out_texts
    from settle.library.run_models import record_made
    from settle.model.load_adapter import TrainedAdapter
    from settle.plan.training_job import adapter_of

    corpus, base, tuning = job.corpus, job.base, job.plan.tuning
    assert base is not None and tuning is not None and isinstance(corpus, RowCorpus)
    texts = held_out_texts(corpus.held_out, job.tokenizer)
    best = {key: value for key, value in result["best"].items() if value is not None}
    took_turns = bool(base.tokenizer.chat_template) and not base.metadata.get("settle.base")
    learned_turns = bool(corpus.template) and corpus.kind != "text"
    card = {"verdict": result["verdict"], **best, **({} if took_turns or learned_turns else {"base": True})}
    if job.whole:
        whole = ExportedModel(run.name, job.model, job.architecture, outcome.best, job.tokenizer, texts, card)
        files, gate = export_run_model(whole, run.out, events)
        record_made(run, files)
        return files, gate
    job.model.load_trainable(outcome.best)
    adapter = TrainedAdapter.of_model(job.model, adapter_of(tuning), base.name, base.source.sha256)
    if learned_turns and not (took_turns and job.tokenizer is base.tokenizer):
        card["template"] = job.tokenizer.chat_template
    exported = ExportedAdapter(run.name, base, adapter, job.tokenizer, texts, card)
    files, gate = export_run_adapter(exported, run.out, events)
    record_made(run, files, base.source)
    return files, gate


def _told(plan: "TrainingPlan", settings: TuningCommand) -> dict[str, Any]:
    """What the plan's table shows."""
    loop, tuning = plan.loop, plan.tuning
    assert tuning is not None
    kept = settings.model_dump(mode="json", exclude={"dry", "recipe", "adapter", "objective", "recompute"})
    return {
        **kept,
        "model": tuning.base_name,
        "adapter": {"name": tuning.adapter_name, **tuning.adapter},
        "objective": {"name": plan.objective, **plan.objective_settings},
        "device": plan.device,
        "dtype": plan.dtype,
        "steps": loop.max_steps,
        "batch_tokens": loop.tokens_per_step,
        "micro_rows": tuning.rows,
        "recompute": bool(tuning.recompute),
        "threads": loop.threads,
        "warmup_steps": loop.warmup_steps,
        "held_out_tokens": plan.held_out_tokens,
        "optimizer": {"name": plan.optimizer_name, **plan.optimizer},
    }
