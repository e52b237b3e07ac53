"""settle tune: teach a model that others trained from your own examples."""

from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.stop_signals import Stopping
from settle.commands._session import Spending, Spent, judged, write_result
from settle.commands._tuning import TuningCommand, begin, handed_over
from settle.library.resolve import portable_name

if TYPE_CHECKING:
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.compare.compare import Comparison
    from settle.model.pretrained import Pretrained
    from settle.plan.training_job import TrainingJob
    from settle.train.state import Outcome


class Tune(TuningCommand):
    """Teach a model your own examples until it has settled, and see whether it became better than it was.

    MODEL is a run, one of the store (`settle pull`), a folder in Hugging Face's layout or a .gguf file. INPUTS are
    files of examples: messages, prompt and completion, Alpaca, ShareGPT, pairs of a chosen and a rejected answer, or
    plain text; as jsonl, json, csv or parquet. `--dry` shows the plan, the forecast and some rows as they will be
    learned.

    The exit code is 3 when the tuned model is not better than its base on the held-out rows.
    """

    positional: ClassVar[tuple[str, ...]] = ("model", "inputs")

    model: str = Field(description="a run, a model of the store, a folder in Hugging Face's layout, or a .gguf file")
    inputs: list[str] = Field([], description="files or folders of examples, or - for stdin")

    def check(self) -> None:
        from settle.evaluate.tasks import named

        super().check()
        if self.score:
            named(self.score)  # a score that is none is refused before anything is loaded

    def _asked(self) -> dict[str, Any]:
        return super()._asked() | {"model": portable_name(self.model)}

    def corpus(self, events: Events) -> "RowCorpus":
        return self._corpus(self._base(), events)

    def _base(self) -> "Pretrained":
        from settle.library.pretrained import open_pretrained

        return open_pretrained(self.model)

    def _corpus(self, base: "Pretrained", events: Events) -> "RowCorpus":
        from settle.data.rows.prepare import prepare_rows

        part: Any = base.part
        longest = min(self.rows.max_tokens or part.max_position_embeddings, part.max_position_embeddings)
        rows = self.rows.model_copy(update={"max_tokens": longest})
        return prepare_rows(self.inputs, base.tokenizer, rows, events)

    def start(self, run: Run, origin: dict[str, str], stopping: Stopping, events: Events) -> int:
        spending = Spending()
        base = self._base()
        corpus = self._corpus(base, events)
        return begin(self, run, origin, base, corpus, spending, stopping, events)

    @classmethod
    def finish(cls, run: Run, job: "TrainingJob", outcome: "Outcome", spent: Spent, events: Events) -> dict[str, Any]:
        record, result = judged(run, job, outcome, spent, events)
        assert job.plan.tuning is not None
        lines: list[str] = []
        result["base"] = {"name": job.plan.tuning.base_name, "sha256": job.plan.tuning.base_sha256}
        if result["verdict"] not in ("diverged", "broken"):
            files, gate = handed_over(run, job, outcome, result, events)
            result |= {"files": files | result["files"], "gate": gate}
            asked = record["asked"]
            if asked["compare"]:
                comparison = _compared(run, job, asked["score"], asked["compare_rows"], events)
                result["comparison"], lines = comparison.to_json(), comparison.card_lines()
        write_result(run, job, record, result, lines)
        return result


def _compared(run: Run, job: "TrainingJob", score: str | None, limit: int, events: Events) -> "Comparison":
    """The tuned model and its base on the held-out rows."""
    from settle.data.rows.prepare import RowCorpus
    from settle.evaluate.compare.candidate_pair import both_in_llamacpp, readers
    from settle.evaluate.compare.compare import CompareOptions, compare, report
    from settle.library.convert import as_gguf
    from settle.library.resolve import resolve

    assert isinstance(job.corpus, RowCorpus) and job.base is not None
    tuned = resolve(f"run:{run.path.name}")
    examples = job.corpus.examples()
    with as_gguf(job.base, run.out, job.tokenizer) as base, both_in_llamacpp(base, tuned) as (ours, theirs):
        options = CompareOptions(score=score, limit=limit)
        comparison = compare(ours, theirs, examples, events, options, readers(base, tuned))
    report(comparison, events)
    return comparison
