"""A model by name against its base, or against another one: which rows are asked, and what it is compared with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError, GateError, UsageError
from settle.base.event_log import Events
from settle.base.events import ResultReady, Say
from settle.base.files import read_bounded
from settle.base.run.result import NOT_BETTER
from settle.data.corpus import Ledger, find_files, workspace
from settle.data.layouts import Example
from settle.data.rows.collect import ExampleReader
from settle.data.rows.prepare import prepared_rows
from settle.data.settings import ColumnSettings
from settle.evaluate.compare.candidate import both_in_llamacpp, readers
from settle.evaluate.compare.compare import CompareOptions, compare, report
from settle.evaluate.compare.sample_size import judgement
from settle.evaluate.compare.verdict_file import NAME as VERDICT
from settle.evaluate.compare.verdict_file import READ, VerdictFile
from settle.evaluate.tasks import named
from settle.library.reference import ModelRef
from settle.library.resolve import find_run, resolve, resolve_gguf
from settle.model.source import Source

MOST_CHARACTERS = 64 << 20  # of the text that both models are asked for the loss on
SAME = 1e-3  # bits per byte by which one text may differ when it is read again


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
    return 0 if comparison.verdict == "better" else NOT_BETTER


def verify(name: str, questions: Questions, events: Events, against: str | None = None) -> int:
    """Check the verdict.json beside a model: its files, its figures, and the answers to its rows, asked again.

    The exit code is 0 when all of it holds and the model is what it has to be (better; a shrunk one not worse), and 3
    when it holds and the model is not. Raises GateError for what does not hold, FormatError for a file that is none,
    UsageError where there are no rows to ask.
    """
    tuned = resolve_gguf(name)
    recorded = VerdictFile.read(tuned.path.parent / VERDICT)
    if recorded.method == READ:
        base_sha256 = resolve(against).source.sha256 if against else _base_sha256(name)
    else:
        base = resolve_gguf(against) if against else _base_of(name, tuned)
        base_sha256 = base.source.sha256
    judged = ("candidate", recorded.candidate, tuned.source.sha256), ("base", recorded.base, base_sha256)
    for role, files, sha256 in judged:
        if sha256 != files.sha256:
            raise GateError(
                f"the {role} is another file than the one that was judged: {files.name} has the hash "
                f"{sha256[:16]}…, verdict.json says {files.sha256[:16]}…",
                f"`settle eval {name}` compares anew",
            )
    if wrong := recorded.unfounded():
        fix = f"`settle eval {name}` compares anew"
        raise GateError(f"verdict.json was changed: its rows do not give its {', '.join(wrong)}", fix)
    rows = recorded.rows
    if not recorded.can_be_asked:
        events.emit(Say(text="its rows were read while training, not asked: the figures follow from their scores"))
        return _held(recorded, events)
    examples = rows_of(questions.rows, events) if questions.rows else held_out(name)
    options = CompareOptions(rows.score, len(rows.numbers), rows.max_tokens, only_rows=True, numbers=rows.numbers)
    with both_in_llamacpp(base, tuned) as (ours, theirs):
        again = compare(ours, theirs, examples, events, options, readers(base, tuned))
    if again.scored is None or again.scored.sha256 != rows.sha256:
        raise GateError("these are other rows than the ones that were asked", "give those: --rows FILE")
    if again.verdict != recorded.verdict:
        fix = "the engine or the machine answers otherwise: judge it on more rows"
        raise GateError(f"asked again, the verdict is {again.headline}; verdict.json says {recorded.verdict}", fix)
    pairs = [(rows.base, again.scored.base), (rows.tuned, again.scored.tuned)]
    other = sum(not math.isclose(a, b, abs_tol=SAME) for before, now in pairs for a, b in zip(before, now, strict=True))
    events.emit(
        Say(text=f"asked again, {2 * len(rows.numbers) - other} of {2 * len(rows.numbers)} scores are the same")
    )
    return _held(recorded, events)


def _held(recorded: VerdictFile, events: Events) -> int:
    result = {"verdict": recorded.verdict, "why": f"verdict.json holds: {recorded.headline}"}
    events.emit(ResultReady(result=result))
    return 0 if recorded.passes else NOT_BETTER


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
    plan = (run.read("plan.json") or {}) if run else {}
    if judged := plan.get("ensemble_of"):  # the student of several runs is compared with the first
        return resolve_gguf(f"run:{judged}")
    tuning = plan.get("tuning")
    if tuning and Path(tuning["base"]).exists():
        base = resolve_gguf(Path(tuning["base"]))
        return ModelRef(tuning["base_name"], "model", base.source)
    raise UsageError(f"the base of {tuned.name} is not known", "say what to compare it with: --against NAME")


def _base_sha256(name: str) -> str:
    """Return the hash of what a run was made from, which it recorded. Raises UsageError when it has none.

    A student that was made for a distillation is deleted once that is finished, so its file need not be there.
    """
    run = find_run(name)
    plan = (run.read("plan.json") or {}) if run else {}
    if judged := plan.get("ensemble_of"):
        return resolve(f"run:{judged}").source.sha256
    if tuning := plan.get("tuning"):
        return str(tuning["base_sha256"])
    raise UsageError(f"the base of {name} is not known", "say what it was compared with: --against NAME")


def _text(path: Path) -> str:
    try:
        return read_bounded(path.expanduser(), MOST_CHARACTERS)
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read: {e}", "give a file of plain text") from None
