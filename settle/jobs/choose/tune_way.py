"""The ways that change weights: a model tuned on the training examples, as they are or with passages before them."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from settle.base.errors import RunError, SettleError
from settle.base.event_log import Events
from settle.base.events import Event, PlanReady, Progress, ResultReady, Step
from settle.base.files import write_atomic
from settle.base.run import Run
from settle.data.layouts import Example
from settle.jobs.choose.answerer import AnsweringModel, DecisionModel, ModelInTurns, with_passages, write_decisions
from settle.jobs.choose.documents import PASSAGES, Found
from settle.jobs.choose.way import DECIDE, TUNE_DOCUMENTS
from settle.jobs.choose.work import Work
from settle.jobs.job import INTERRUPTED, find_job, start
from settle.jobs.resume import resume
from settle.jobs.settings import TuneSettings
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf

WITH_GOLD = 0.8  # share of the rows whose passages hold the answer (Zhang et al. 2024, RAFT)
PASSAGE_EPOCHS = 0.5  # passes of rows with passages, as a share of those without: each is several times as long
# of the rows, that choose the best weights; nothing judges here, since the choice has a test of its own
HELD_OUT = 0.1


@dataclass(frozen=True)
class Tuned:
    """A tuned model and the seconds that it took, over all sessions."""

    ref: ModelRef
    run: str
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """How a model is tuned."""

    run: str  # its name
    rows: Path
    epochs: float  # passes over the rows
    model: str
    seed: int
    threads: int | None
    judged: Path | None = None  # rows that judge it, where it learns decisions, not answers

    @property
    def job(self) -> str:
        return "tune_decision" if self.judged else "tune"

    @property
    def settings(self) -> TuneSettings:
        by_kind = (
            {"objective": "decision", "rows": {"held_out_from": self.judged}}
            if self.judged
            else {"compare": False, "rows": {"held_out": HELD_OUT, "repeats": True}}
        )
        threads = {} if self.threads is None else {"threads": self.threads}
        named = {"model": self.model, "inputs": [str(self.rows)], "name": self.run}
        return TuneSettings.model_validate({**named, "epochs": self.epochs, "seed": self.seed, **by_kind, **threads})

    @property
    def command(self) -> str:
        objective = f" --objective decision --rows.held-out-from {self.judged}" if self.judged else ""
        return f"settle tune {self.model} {self.rows}{objective} --epochs {self.epochs:g} --name {self.run}"


def write_rows(path: Path, rows: Sequence[Example], found: Mapping[int, Found] | None, seed: int) -> None:
    """Write training rows as messages.

    found: what the documents have for each row, by its number from 1. The passages then come before the question, the
    one with the answer among them in four rows of five where it is known, and always some that do not answer.
    """
    random = np.random.default_rng(seed)
    lines = []
    for number, row in enumerate(rows, 1):
        messages = [dict(message) for message in row.messages]
        if found is not None:
            passages = _mixed(found[number], random)
            messages[-2]["content"] = with_passages(str(messages[-2]["content"]), passages)
        lines.append(json.dumps({"messages": messages, **({"tools": row.tools} if row.tools else {})}) + "\n")
    write_atomic(path, "".join(lines))


def _mixed(found: Found, random: np.random.Generator) -> list[str]:
    others = [p for p in found.passages if p != found.gold]
    if not found.gold:
        return others[:PASSAGES]
    if random.random() >= WITH_GOLD:
        return others[:PASSAGES]
    passages = others[: PASSAGES - 1]
    passages.insert(int(random.integers(len(passages) + 1)), found.gold)
    return passages


def tuned(recipe: Recipe, events: Events) -> Tuned:
    """Make the tuned model, resume it where it was stopped, or take it as it is where it is finished.

    Raises SettleError, and KeyboardInterrupt where the user stopped it.
    """
    run = Run.named(recipe.run)
    quiet = Events(listeners=[_progress(events, recipe.run)])
    if run is None:
        code = start(find_job(recipe.job), recipe.settings, quiet).exit_code
    elif run.result() is None:
        code = resume(recipe.run, quiet)
    else:
        code = 0
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    run = Run.find(recipe.run)
    result = run.result()
    try:
        # a run that seems to have learned nothing has a model where some weights were better than the first ones
        ref = resolve_gguf(f"run:{run.path.name}")
    except SettleError:
        why = result.why if result else "it ended early"
        raise RunError(f"tuning made nothing usable: {why}", f"see `settle runs show {run.name}`") from None
    took = result.actual.get("time") if result else None
    return Tuned(ref, recipe.run, float(took) if isinstance(took, int | float) else 0.0)


def forecast_seconds(recipe: Recipe, events: Events) -> tuple[float, float]:
    """Forecast the seconds that tuning takes, and its steps among them, by a few of its own steps."""
    result: dict[str, object] = {}

    def listen(event: Event) -> None:
        if isinstance(event, ResultReady):
            result.update(event.result)
        _progress(events, recipe.run)(event)

    start(
        find_job(recipe.job),
        recipe.settings.model_copy(update={"dry": True, "name": f"{recipe.run}-dry"}),
        Events(listeners=[listen]),
    )
    expected = result.get("forecast")
    if not isinstance(expected, dict):
        raise SettleError("tuning could not be forecast", "see `settle tune --dry`")
    return float(expected["time"]["value"]), float(dict(expected["phases"]).get("loop", 0.0))


def _progress(events: Events, name: str) -> Callable[[Event], None]:
    """Return a listener that passes on how far a run is, and nothing else of its talk."""
    steps: float | None = None

    def listen(event: Event) -> None:
        nonlocal steps
        if isinstance(event, PlanReady):
            planned = event.values.get("steps")
            steps = float(planned) if isinstance(planned, int | float) else None
        elif isinstance(event, Progress):
            events.emit(event.model_copy(update={"what": f"{name}: {event.what}"}))
        elif isinstance(event, Step):
            events.emit(Progress(what=f"{name}: training", done=event.step, total=steps, unit="steps"))

    return listen


def tuning_recipe(work: Work, way: str, suffix: str = "") -> Recipe:
    """Write the rows of a way, and return how it is tuned.

    suffix: of the names, for other examples than the choice's.
    """
    settings, reads, folder = work.settings, way == TUNE_DOCUMENTS, work.folder
    path = folder.path / f"{way.replace(' + ', '-')}{suffix}.jsonl"
    judged = folder.path / f"{path.stem}-test.jsonl" if way == DECIDE else None
    if judged is not None and not judged.exists():
        write_decisions(judged, work.examples.test, work.examples.labels)
    if not path.exists():  # an earlier session's run was made of it
        if judged is not None:
            write_decisions(path, work.examples.train_cases, work.examples.labels)
        else:
            if reads:
                work.found_train.complete(work.events)
            write_rows(path, work.examples.train, work.found_train if reads else None, settings.seed)
    name = folder.own_name(f"run {way}{suffix}", f"{folder.name}-{path.stem}", [run.name for run in Run.all()])
    epochs = settings.epochs * (PASSAGE_EPOCHS if reads else 1.0)
    return Recipe(name, path, epochs, str(settings.model), settings.seed, settings.threads, judged)


def tuned_model(work: Work, way: str, ref: ModelRef) -> AnsweringModel:
    """Return what answers for a way whose weights were tuned, in a process of its own."""
    if way == DECIDE:
        return DecisionModel(ref, work.examples.labels, work.settings.threads)
    return ModelInTurns(ref, work.model.max_tokens, work.settings.threads)
