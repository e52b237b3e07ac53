"""settle tune: fine-tune a pretrained model on a person's examples, and compare it with its base."""

from dataclasses import dataclass, replace
from typing import ClassVar

from settle.base.events import Say, Warn
from settle.base.run import Run
from settle.base.run.result import Result
from settle.data.decisions.rows import are_labels
from settle.data.rows.prepare import prepare_rows, prepared_rows
from settle.evaluate.compare.candidate import both_in_llamacpp, readers
from settle.evaluate.compare.compare import ACCURACY, CompareOptions, Comparison, compare_preferences, report
from settle.evaluate.compare.compare import compare as compare_models
from settle.evaluate.compare.sample_size import judgement
from settle.evaluate.tasks import named
from settle.jobs.job import RunJob
from settle.jobs.proof_stages import proof, scores
from settle.jobs.settings import TuneSettings
from settle.jobs.training_stages import build, earlier_session, judge, loop, restored_data, result
from settle.jobs.tuning_stages import TuningContext, again, export, forecast, plan, probe
from settle.library.catalogue import transformers_name
from settle.library.convert import as_gguf
from settle.library.facts import PLAIN_TEXT_KEY
from settle.library.pretrained import open_pretrained
from settle.library.resolve import resolve
from settle.machine import bandwidth
from settle.plan.phases import comparison_seconds
from settle.train.live_run import blocks, open_base


@dataclass
class TuneContext(TuningContext):
    can_skip_comparison: ClassVar[bool] = True

    settings: TuneSettings

    def made(self) -> Result:
        base = {
            "name": self.tuning.base_name,
            "sha256": self.tuning.base_sha256,
            "transformers": transformers_name(self.base.source),
        }
        system_prompt = self.corpus.ledger["rows"].get("system_prompt")
        return super().made().model_copy(update={"base": base, "system_prompt": system_prompt})

    def comparison_estimate(self, seconds_per_token: float) -> float:
        if not self.settings.compare:
            return 0.0
        held_out = self.corpus.held_out
        rows = max(1, held_out.num_rows)
        answer = held_out.num_supervised / rows
        return comparison_seconds(
            min(self.settings.compare_rows, held_out.num_rows),
            held_out.num_inputs / rows - answer,
            answer,
            seconds_per_token,
            self.base.part.num_parameters,
            bandwidth(),
        )


def base(c: TuneContext) -> None:
    """Open the model that is tuned; an unknown metric is refused before anything is loaded."""
    if c.settings.score:
        named(c.settings.score)
    c.base = open_base(c.tuning) if c.record is not None else open_pretrained(c.settings.model, c.events)


def data(c: TuneContext) -> None:
    """Examples, rendered by the model's own chat template and tokenized."""
    if c.record is not None and restored_data(c, prepared_rows(str(c.record["corpus"]))):
        return
    context = c.base.part.max_position_embeddings
    c.corpus = prepare_rows(c.settings.inputs, c.base.tokenizer, c.settings.rows, c.events, context)
    if c.corpus.kind != "text" and c.base.metadata.get(PLAIN_TEXT_KEY):
        text = (
            f"{c.base.name} was trained on plain text alone and cannot hold a conversation: it learns how the answers "
            "look, and little of what they say; for answers that make sense tune a chat model, such as smollm2"
        )
        c.events.emit(Warn(text=text))
    answers = [example.messages[-1]["content"] for example in c.corpus.examples("train") if example.messages]
    if are_labels(answers):
        text = (
            f"the {len(answers):,} answers are {len(set(answers))} different ones: `--objective decision` learns them"
        )
        c.events.emit(Say(text=f"{text} as labels, in less time, and says how sure each answer is"))


def judging(c: TuneContext) -> None:
    """Report what the held-out rows can show at all, before the run."""
    settings = c.settings
    found = judgement(c.corpus.examples(), settings.score, settings.compare_rows) if settings.compare else None
    if found is None or c.record is not None:
        return
    if c.corpus.kind == "preference" and not settings.score:
        found = replace(found, measure=ACCURACY)
    c.judgement = found
    c.events.emit((Warn if found.visible is None else Say)(text=found.sentence))


def compare(c: TuneContext) -> None:
    """Compare the tuned model and its base on the held-out rows: better, worse, no different, or too few rows."""
    if not c.is_usable or not c.settings.compare:
        return
    if c.budget is not None and not c.plan.loop.seconds_comparing:
        c.events.emit(Say(text=f"no time was left for the comparison: `settle eval {c.run.name}` makes it"))
        return
    tuned = resolve(f"run:{c.run.path.name}")
    examples, settings = c.corpus.examples(), c.settings
    with as_gguf(c.base, c.run.out, c.tokenizer) as model, both_in_llamacpp(model, tuned) as (ours, theirs):
        options = CompareOptions(score=settings.score, limit=settings.compare_rows, seconds=c.seconds_to_compare)
        judged = None if settings.score else _preferences(c, (ours.name, theirs.name))
        comparison = compare_models(ours, theirs, examples, c.events, options, readers(model, tuned), judged)
    comparison = replace(comparison, judged_before=_judged_before(c))
    report(comparison, c.events, c.run.name)
    if comparison.shortened:
        c.leave_out_pace()
    c.comparison, c.compared = comparison.to_json(), comparison.card_lines()
    if kept := comparison.keep(c.run.out, c.base.source, tuned.source):
        c.add_files({"verdict": str(kept)})


def _judged_before(c: TuneContext) -> int:
    """How many other finished runs were compared with their base on the rows that judge this one."""
    others = (run for run in Run.all() if run.path != c.run.path)
    same = (run for run in others if (run.read("plan.json") or {}).get("corpus") == c.corpus.fingerprint)
    return sum(bool((run.read("result.json") or {}).get("comparison")) for run in same)


def _preferences(c: TuneContext, names: tuple[str, str]) -> Comparison | None:
    """On rows of preferences, how both models rank the held-out pairs; None for other rows."""
    live, limit = c.live, c.settings.compare_rows
    if c.corpus.kind != "preference" or not live.objective.compares_with_base:
        return None
    live.model.load_trainable(c.outcome.best)
    store = c.corpus.held_out
    tokens = store.num_inputs * min(limit, store.num_rows) // store.num_rows
    batches = blocks(c.plan, store, tokens)
    families = [family for b in batches if b.families is not None for family in b.families[::2].tolist()]
    return compare_preferences(live.model, live.objective, batches, names, c.events, families)


JOB = RunJob(
    "tune",
    (
        earlier_session, base, data, judging, plan, build, scores, probe, forecast, proof(again),
        loop, judge, export, compare, result,
    ),
    TuneSettings,
    TuneContext,
    is_shared=True,
)  # fmt: skip
