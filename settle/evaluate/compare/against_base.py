"""A model by name against its base, or against another one: which rows are asked, and what it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.files import read_bounded
from settle.data.corpus import Ledger, find_files, workspace
from settle.data.layouts import Example
from settle.data.rows.collect import ExampleReader
from settle.data.rows.prepare import prepared_rows
from settle.data.settings import ColumnSettings
from settle.evaluate.compare.candidate import both_in_llamacpp, readers
from settle.evaluate.compare.compare import CompareOptions, compare, report
from settle.evaluate.compare.sample_size import judgement
from settle.evaluate.tasks import named
from settle.library.reference import ModelRef
from settle.library.resolve import find_run, resolve_gguf
from settle.model.source import Source

MOST_CHARACTERS = 64 << 20  # of the text that both models are asked for the loss on


@dataclass(frozen=True)
class Questions:
    """What both models are asked."""

    rows: Path | None = None  # a file or folder; the run's held-out rows if not given
    score: str | None = None  # by name; the one that fits the data if not given
    limit: int = 200
    max_tokens: int | None = None  # of an answer
    familiar: Path | None = None  # text that the base knew
    only_rows: bool = False  # leave out what was forgotten, and the instructions


def compare_with_base(
    name: str, questions: Questions, events: Events, against: str | None = None, adapter: Path | None = None
) -> int:
    """Compare a tuned model with its base; the exit code is 0 when it is better and 3 when it is not.

    against: what to compare it with instead. adapter: a LoRA in a .gguf file, to be served over the model. Raises
    SettleError.
    """
    if questions.score:
        named(questions.score)  # an unknown score is refused before anything is loaded
    tuned = resolve_gguf(name)
    if adapter:
        tuned = ModelRef(adapter.stem, "adapter", Source(adapter, "gguf", adapter.stem), base=tuned)
    base = resolve_gguf(against) if against else _base_of(name, tuned)
    examples = rows_of(questions.rows, events) if questions.rows else held_out(name)
    if ahead := judgement(examples, questions.score, questions.limit):
        events.emit(Say(text=ahead.sentence))
    familiar = [_text(questions.familiar)] if questions.familiar else None
    with both_in_llamacpp(base, tuned) as (ours, theirs):
        options = CompareOptions(questions.score, questions.limit, questions.max_tokens, familiar, questions.only_rows)
        comparison = compare(ours, theirs, examples, events, options, readers(base, tuned))
    report(comparison, events)
    events.emit(ResultReady(result={**comparison.to_json(), "why": comparison.headline}))
    return 0 if comparison.verdict == "better" else 3


def held_out(name: str) -> Sequence[Example]:
    """Return the rows that a run kept from its training. Raises UsageError when there are none."""
    run = find_run(name)
    record = (run.read("plan.json") if run else None) or {}
    corpus = prepared_rows(str(record.get("corpus"))) if record.get("tuning") else None
    if corpus is None:
        raise UsageError(f"there are no rows that {name} was not trained on", "give some: --rows FILE")
    return list(corpus.examples())


def rows_of(path: Path, events: Events) -> Sequence[Example]:
    """Read the examples of a file or folder, as `settle tune` does. Raises DataError for rows that cannot be used."""
    ledger = Ledger()
    with workspace() as work:
        reading = ExampleReader(
            find_files([str(path)], work, ledger), ColumnSettings.model_validate({}), ledger, events
        )
        examples = [example for _, _, example in reading.examples()]
    if reading.refused.count:
        raise DataError(f"{reading.refused.count} of the rows cannot be used: {reading.refused}", "fix or remove them")
    return examples


def _base_of(name: str, tuned: ModelRef) -> ModelRef:
    """Return what a tuned model was made from. Raises UsageError when that is not known."""
    if tuned.kind == "adapter" and tuned.base:
        return tuned.base
    run = find_run(name)
    tuning = (run.read("plan.json") or {}).get("tuning") if run else None
    if tuning and Path(tuning["base"]).exists():
        base = resolve_gguf(Path(tuning["base"]))
        return ModelRef(tuning["base_name"], "model", base.source)
    raise UsageError(f"the base of {tuned.name} is not known", "say what to compare it with: --against NAME")


def _text(path: Path) -> str:
    try:
        return read_bounded(path.expanduser(), MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}", "give a file of plain text") from None
