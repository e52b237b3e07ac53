"""settle tune: teach a model that others trained from your own examples."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.events import Events
from settle.base.run import Run, write_json
from settle.commands._session import RunCommand, Spending, go_on, judged, record_of, write_result
from settle.plan.settings import TuningSettings
from settle.train.stopping import Stopping

if TYPE_CHECKING:
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.compare import Comparison
    from settle.infer.served import Served
    from settle.model.pretrained import Pretrained
    from settle.plan.training import TrainingPlan
    from settle.plan.training_job import TrainingJob
    from settle.train.loop import Outcome


class Tune(TuningSettings, RunCommand):
    """Teach a model your own examples until it has settled, and see whether it became better than it was.

    MODEL is one of the store (`settle pull`), a folder in Hugging Face's layout or a .gguf file. INPUTS are files of
    examples: messages, prompt and completion, Alpaca, ShareGPT, pairs of a chosen and a rejected answer, or plain
    text; as jsonl, json, csv or parquet. `--dry` shows the plan, the forecast and some rows as they will be learned.

    The exit code is 3 when the tuned model is not better than its base on the held-out rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "inputs")

    model: str = Field(description="a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    inputs: list[str] = Field([], description="files or folders of examples, or - for stdin")

    def check(self) -> None:
        from settle.evaluate.tasks import named

        super().check()
        if self.score:
            named(self.score)  # a score that is none is refused before anything is loaded

    def _asked(self) -> dict[str, Any]:
        path = Path(self.model).expanduser()
        return super()._asked() | {"model": str(path.absolute()) if path.exists() else self.model}

    def corpus(self, events: Events) -> "RowCorpus":
        return self._corpus(self._base(), events)

    def _base(self) -> "Pretrained":
        from settle.model.pretrained import Pretrained

        return Pretrained.open(self.model)

    def _corpus(self, base: "Pretrained", events: Events) -> "RowCorpus":
        from settle.data.rows.prepare import prepare_rows

        part: Any = base.part
        longest = min(self.rows.max_tokens or part.max_position_embeddings, part.max_position_embeddings)
        rows = self.rows.model_copy(update={"max_tokens": longest})
        return prepare_rows(self.inputs, base.tokenizer, rows, events)

    @classmethod
    def stored_corpus(cls, record: dict[str, Any]) -> "RowCorpus | None":
        from settle.data.rows.prepare import prepared_rows

        return prepared_rows(str(record["corpus"]))

    def start(self, run: Run, origin: dict[str, str], stopping: Stopping, events: Events) -> int:
        spending = Spending()
        base = self._base()
        corpus = self._corpus(base, events)
        from settle.plan.training_job import TrainingJob
        from settle.plan.tuning import plan_tuning
        from settle.plan.tuning_forecast import look_ahead
        from settle.train.proof import prove

        if self.dry:
            events.emit("preview", rows=[preview.to_json() for preview in corpus.previews])
        plan = plan_tuning(self, origin, corpus, base, spending.seconds)
        events.emit("plan", values=_told(plan, self), origin=plan.origin, why=plan.why, full=self.dry)
        job = TrainingJob.build(plan, corpus, base)
        before = spending.seconds
        expected = look_ahead(job, self, lambda: spending.seconds, events)
        plan = job.plan = _without(plan, spending.seconds - before)
        events.emit("forecast", forecast=expected.to_json())
        if self.dry:
            events.emit("result", result={"plan": plan.to_json(), "forecast": expected.to_json()})
            return 0
        spending.start(plan.device, self.watts)
        write_json(run.path / "forecast.json", expected.to_json())
        events.move_to(run.events)
        rows = [corpus.train.origin(document) for document, _, _ in job.batches.rows_of(0)]
        first = job.batches.at(0)
        vocab_size = job.model.options.vocab_size
        proof = prove(job.model, job.objective, first, vocab_size, rows, events, plan.loop.seed, tuned=True)
        write_json(run.path / "plan.json", record_of(plan, self, corpus) | {"proof": proof})
        return go_on(Tune, run, job, spending, stopping, events)

    @classmethod
    def finish(
        cls, run: Run, job: "TrainingJob", outcome: "Outcome", spent: dict[str, float], events: Events
    ) -> dict[str, Any]:
        record, result = judged(run, job, outcome, spent, events)
        assert job.plan.tuning is not None
        lines: list[str] = []
        result["base"] = {"name": job.plan.tuning.base_name, "sha256": job.plan.tuning.base_sha256}
        if result["verdict"] not in ("diverged", "broken"):
            files, gate = _handed_over(run, job, outcome, result, events)
            result |= {"files": files | result["files"], "gate": gate}
            asked = record["asked"]
            if asked["compare"]:
                comparison = _compared(run, job, asked["score"], asked["compare_rows"], events)
                result["comparison"], lines = comparison.to_json(), comparison.card_lines()
        write_result(run, job, record, result, lines)
        return result


def _without(plan: "TrainingPlan", seconds: float) -> "TrainingPlan":
    """The plan with what the probe took missing from its time."""
    if not plan.loop.seconds:
        return plan
    left = max(plan.loop.seconds / 2, plan.loop.seconds - seconds)
    return dataclasses.replace(plan, loop=plan.loop.model_copy(update={"seconds": left}))


def _handed_over(
    run: Run, job: "TrainingJob", outcome: "Outcome", result: dict[str, Any], events: Events
) -> tuple[dict[str, str], dict[str, Any]]:
    from settle.evaluate.gate import held_out_texts
    from settle.evaluate.hand_over import hand_over, hand_over_adapter
    from settle.formats._adapter import Adapter
    from settle.model.adapters import state

    corpus, base, tuning = job.corpus, job.base, job.plan.tuning
    assert base is not None and tuning is not None
    texts = held_out_texts(corpus.held_out, job.tokenizer)
    best = {key: value for key, value in result["best"].items() if value is not None}
    card = {"verdict": result["verdict"], **best, **({} if job.tokenizer.chat_template else {"base": True})}
    if job.whole:
        return hand_over(
            job.model, job.architecture, outcome.best, job.tokenizer, run.out, run.name, texts, card, events
        )
    job.model.load_trainable(outcome.best)
    adapter = Adapter(
        state={name: tensor.detach().float().cpu() for name, tensor in state(job.model).items()},
        alpha=float(tuning.adapter["alpha"]),
        rslora=bool(tuning.adapter["rslora"]),
        dropout=float(tuning.adapter["dropout"]),
        base=base.name,
        base_sha256=base.source.sha256,
    )
    if job.tokenizer is not base.tokenizer:
        card["template"] = job.tokenizer.chat_template
    return hand_over_adapter(base, adapter, job.tokenizer, run.out, run.name, texts, card, events)


def _compared(run: Run, job: "TrainingJob", score: str | None, limit: int, events: Events) -> "Comparison":
    """The tuned model and its base on the held-out rows."""
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.compare import compare, tell
    from settle.evaluate.serving import contenders, readers
    from settle.infer.served import served

    assert isinstance(job.corpus, RowCorpus)
    tuned = served(run.path.name)._replace(name=run.name)
    examples = job.corpus.examples()
    with _base_file(run, job) as base, contenders(base, tuned) as (ours, theirs):
        both = readers(base, tuned)
        comparison = compare(ours, theirs, examples, events, score=score, limit=limit, readers=both)
    tell(comparison, events)
    return comparison


@contextlib.contextmanager
def _base_file(run: Run, job: "TrainingJob") -> Iterator["Served"]:
    """The base as llama.cpp serves it; one in Hugging Face's layout is written as GGUF for as long as this lasts."""
    from settle.formats.gguf import export_gguf
    from settle.infer.served import Served

    base = job.base
    assert base is not None
    if base.source.kind == "gguf":
        yield Served(base.name, base.source.path)
        return
    with tempfile.TemporaryDirectory(dir=run.out, prefix=".base-") as folder:
        path = Path(folder) / "base.gguf"
        export_gguf(base.part, base.lazy_weights(), job.tokenizer, path, "f16", {"name": base.name})
        yield Served(base.name, path)


def _told(plan: "TrainingPlan", settings: "Tune") -> dict[str, Any]:
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
        "rates": plan.optimizer,
    }
