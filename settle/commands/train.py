"""settle train: from text to a settled model that answers."""

from typing import TYPE_CHECKING, Any, ClassVar

from settle.base.event_log import Events
from settle.base.events import ForecastReady, PlanReady, ResultReady
from settle.base.run import Run, write_json
from settle.base.stop_signals import Stopping
from settle.commands._session import RunCommand, Spending, Spent, go_on, judged, record_of, write_result
from settle.plan.settings import TrainingSettings

if TYPE_CHECKING:
    from settle.data.prepare import Corpus
    from settle.plan.training_job import TrainingJob
    from settle.plan.training_plan import TrainingPlan
    from settle.train.state import Outcome


class Train(TrainingSettings, RunCommand):
    """Train a model from your own text until it has settled.

    INPUTS are files or folders of text (md, txt, rst, html, code, jsonl, json, csv, parquet, also .gz and .zst), `-`
    for stdin, or `stdlib` for Python's own standard library. `--dry` shows the plan and the forecast, and stops.
    """

    positional: ClassVar[tuple[str, ...]] = ("inputs",)

    def corpus(self, events: Events) -> "Corpus":
        from settle.data.prepare import prepare

        return prepare(self.inputs, self.data, events)

    @classmethod
    def stored_corpus(cls, record: dict[str, Any]) -> "Corpus | None":
        from settle.data.prepare import prepared

        return prepared(str(record["corpus"]))

    def start(self, run: Run, origin: dict[str, str], stopping: Stopping, events: Events) -> int:
        spending = Spending()
        corpus = self.corpus(events)
        from settle.plan.forecast import look_ahead
        from settle.plan.training_job import TrainingJob
        from settle.plan.training_plan import plan_training
        from settle.train.proof import prove

        plan = plan_training(self, origin, corpus, spending.seconds)
        events.emit(PlanReady(values=_told(plan, self), origin=plan.origin, why=plan.why, full=self.dry))
        plan, expected = look_ahead(plan, corpus, self, lambda: spending.seconds, events)
        events.emit(ForecastReady(forecast=expected.to_json()))
        if self.dry:
            events.emit(ResultReady(result={"plan": plan.to_json(), "forecast": expected.to_json()}))
            return 0
        job = TrainingJob.build(plan, corpus)
        spending.start(plan.device, self.watts)
        write_json(run.path / "forecast.json", expected.to_json())
        events.move_to(run.events)
        first, vocab_size = job.batches.at(0), corpus.tokenizer.vocab_size
        rows = [f"{corpus.train.origin(d)}, tokens {a} to {b}" for d, a, b in job.batches.rows_of(0)]
        proof = prove(job.model, job.objective, first, vocab_size, rows, events, plan.loop.seed)
        write_json(run.path / "plan.json", record_of(plan, self, corpus) | {"proof": proof})
        return go_on(Train, run, job, spending, stopping, events)

    @classmethod
    def finish(cls, run: Run, job: "TrainingJob", outcome: "Outcome", spent: Spent, events: Events) -> dict[str, Any]:
        from settle.evaluate.gate.export import ExportedModel, export_run_model
        from settle.evaluate.gate.held_out import held_out_texts
        from settle.library.run_models import record_made

        record, result = judged(run, job, outcome, spent, events)
        if result["verdict"] not in ("diverged", "broken"):
            exported = ExportedModel(
                run.name,
                job.model,
                job.architecture,
                outcome.best,
                job.tokenizer,
                held_out_texts(job.corpus.held_out, job.tokenizer),
                {"base": True, "verdict": result["verdict"], **result["best"]},
            )
            files, gate = export_run_model(exported, run.out, events)
            record_made(run, files)
            result |= {"files": files | result["files"], "gate": gate}
        write_result(run, job, record, result)
        return result


def _told(plan: "TrainingPlan", settings: "Train") -> dict[str, Any]:
    """What the plan's table shows."""
    loop = plan.loop
    architecture = {k: v for k, v in plan.architecture.items() if not k.endswith("_token_id")}
    return {
        **settings.model_dump(mode="json", exclude={"dry", "recipe"}),
        "parameters": plan.num_parameters,
        "device": plan.device,
        "dtype": plan.dtype,
        "context": loop.sequence_length,
        "batch_tokens": loop.tokens_per_step,
        "threads": loop.threads,
        "warmup_steps": loop.warmup_steps,
        "held_out_tokens": plan.held_out_tokens,
        "model": architecture,
        "objective": {"name": plan.objective, **plan.objective_settings},
        "optimizer": {"name": plan.optimizer_name, **plan.optimizer},
    }
