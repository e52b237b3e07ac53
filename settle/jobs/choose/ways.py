"""How each way is built, by a prompt, an index or tuning on the training examples, and what a changed fact costs it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from settle.base.errors import RunError, SettleError
from settle.base.event_log import Events
from settle.base.events import Event, PlanReady, Progress, Step
from settle.base.files import write_atomic
from settle.base.python_command import shell_line
from settle.base.run import Run
from settle.base.words.amounts import duration, number
from settle.data.layouts import Example
from settle.evaluate.compare.cases import Case, cases
from settle.evaluate.tasks import plain
from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    WITH_DOCUMENTS,
    ZERO_SHOT,
    AnsweringModel,
    Built,
    DecisionModel,
    ModelInTurns,
    Setup,
    answers,
    with_passages,
    write_decisions,
)
from settle.jobs.choose.context import ChooseContext, KeptWay
from settle.jobs.choose.documents import PASSAGES, Found, change_fact
from settle.jobs.choose.forecast import PASSAGE_EPOCHS, READING_ROWS
from settle.jobs.choose.prompts import score_of, search_prompt
from settle.jobs.job import INTERRUPTED, find_job, resume, start
from settle.jobs.settings import TuneSettings
from settle.jobs.tuning_stages import TuningContext
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf

MOST_SHOTS = 4  # before a question that has passages too
READING = "Answer with what the passages say."
WITH_GOLD = 0.8  # share of the rows whose passages hold the answer (Zhang et al. 2024, RAFT)
# of the rows, that choose the best weights; nothing judges here, since the choice has a test of its own
HELD_OUT = 0.1


def built(name: str, c: ChooseContext) -> Built:
    """Build a way, ready to be asked. Raises SettleError."""
    way = _BUILD[name](c, name)
    ref = way.model.ref
    kept = KeptWay(
        system=way.setup.system,
        shots=way.setup.shots,
        grammar=way.setup.grammar,
        collection=c.documents.name if c.documents and name in WITH_DOCUMENTS else "",
        max_tokens=c.model.max_tokens,
        labels=list(c.examples.labels) if name == DECIDE else [],
        weights=ref.weights,
        adapter=ref.adapter,
        model=ref.name,
    )
    c.folder.keep_way(name, kept)
    return way


def _zero_shot(c: ChooseContext, name: str) -> Built:
    return Built(name, c.model, Setup(), shell_line("settle", "chat", str(c.settings.model)))


def _prompt(c: ChooseContext, name: str) -> Built:
    found = best_prompt(c)
    return Built(name, c.model, found, _ready(c), found.seconds, about=found.about)


def _documents(c: ChooseContext, name: str) -> Built:
    found = reading_prompt(c)
    seconds = found.seconds + c.index_seconds
    way = Built(name, c.model, found, _ready(c), seconds, c.search_seconds, about=found.about)
    return with_fact_indexed_again(c, way)


def _of_weights(c: ChooseContext, name: str) -> Built:
    recipe = tuning_recipe(c, name)
    made = tuned(recipe, c.events)
    way = Built(name, tuned_model(c, name, made.ref), Setup(), "", made.seconds, about=f"`{recipe.command}` made it")
    if name == TUNE_DOCUMENTS:
        seconds = c.index_seconds + made.seconds
        way = replace(way, command=_ready(c), build_seconds=seconds, search_seconds=c.search_seconds)
        return with_fact_indexed_again(c, way)
    command = ["decide", made.run, "a question"] if name == DECIDE else ["chat", made.run]
    note = f"as long as building it, {duration(made.seconds)}"
    return replace(way, command=shell_line("settle", *command), change_seconds=made.seconds, change_note=note)


_BUILD: Mapping[str, Callable[[ChooseContext, str], Built]] = {
    ZERO_SHOT: _zero_shot,
    PROMPT: _prompt,
    DOCUMENTS: _documents,
    **dict.fromkeys((DECIDE, TUNE, TUNE_DOCUMENTS), _of_weights),
}


def _ready(c: ChooseContext) -> str:
    return shell_line("settle", "choose", c.folder.name, "--ask", "a question")


# --- by a prompt ---


@dataclass(frozen=True)
class FoundPrompt(Setup):
    """A prompt that was searched for."""

    seconds: float = 0.0  # that it took
    about: str = ""  # what it is, for the user


def best_prompt(c: ChooseContext) -> FoundPrompt:
    """Return the best prompt of a small search on training examples."""
    return c.folder.once("prompt", FoundPrompt, lambda: _best_prompt(c))


def _best_prompt(c: ChooseContext) -> FoundPrompt:
    began = time.monotonic()

    def ask(setup: Setup, cases: Sequence[Case]) -> list[Reply]:
        return c.ask("prompt", c.arm(setup), cases)

    tried = search_prompt(c.examples, c.task, ask, c.settings.seed)
    best = tried[0].setup
    parts = [f"{len(best.shots)} examples"] if best.shots else []
    parts += [f"the instruction “{best.system}”"] if best.system else []
    about = f"{' and '.join(parts) or 'nothing'} before every question, the best of {len(tried)} prompts"
    about += "; answers are held to their form" if best.grammar else ""
    return FoundPrompt(**vars(best), seconds=time.monotonic() - began, about=about)


def reading_prompt(c: ChooseContext) -> FoundPrompt:
    """Return what is put before a question with passages: nothing, or the best prompt.

    Whichever answers more of a few training examples.
    """
    return c.folder.once("reading", FoundPrompt, lambda: _reading_prompt(c))


def _reading_prompt(c: ChooseContext) -> FoundPrompt:
    known = best_prompt(c)
    began, shots = time.monotonic(), known.shots[:MOST_SHOTS]
    shown = {question for question, _ in shots}
    asked = [case for case in c.examples.train_cases if case.question not in shown][:READING_ROWS]
    with_it = Setup(f"{READING} {known.system}".strip(), shots, known.grammar)
    scores = {}
    for setup in dict.fromkeys((Setup(READING, grammar=known.grammar), with_it)):
        replies = c.ask("documents", c.arm(setup, c.found_train), asked)
        scores[setup] = sum(score_of(c.task, reply, case) for reply, case in zip(replies, asked, strict=True))
    best = max(scores, key=lambda setup: scores[setup])
    about = f"passages, with {known.about}" if best.shots else "passages before every question"
    return FoundPrompt(**vars(best), seconds=known.seconds + time.monotonic() - began, about=about)


# --- by tuning ---


@dataclass(frozen=True)
class Tuned:
    """A tuned model."""

    ref: ModelRef
    run: str
    seconds: float  # that it took, over all sessions


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


def tuning_recipe(c: ChooseContext, way: str, changed: Sequence[Example] = ()) -> Recipe:
    """Write the rows of a way, and return how it is tuned. changed: rows in place of the training examples."""
    settings, reads, folder = c.settings, way == TUNE_DOCUMENTS, c.folder
    train = changed or c.examples.train
    path = folder.path / f"{way.replace(' + ', '-')}{'-changed' if changed else ''}.jsonl"
    judged = folder.path / f"{path.stem}-test.jsonl" if way == DECIDE else None
    if judged is not None and not judged.exists():
        write_decisions(judged, c.examples.test, c.examples.labels)
    if not path.exists():  # an earlier session's run was made of it
        if judged is not None:
            write_decisions(path, cases(train), c.examples.labels)
        else:
            if reads:
                c.found_train.complete(c.events)
            write_rows(path, train, c.found_train if reads else None, settings.seed)
    key = f"run {way}{'-changed' if changed else ''}"
    name = folder.own_name(key, f"{folder.name}-{path.stem}", [run.name for run in Run.all()])
    epochs = settings.epochs * (PASSAGE_EPOCHS if reads else 1.0)
    return Recipe(name, path, epochs, str(settings.model), settings.seed, settings.threads, judged)


def write_rows(path: Path, rows: Sequence[Example], found: Mapping[int, Found] | None, seed: int) -> None:
    """Write training rows as messages.

    found: what the documents have for each row, by its number from 1. The passages then come before the question, the
    one with the answer among them in four rows of five where it is known, and always some that do not answer.
    """
    random = np.random.default_rng(seed)
    lines = []
    for place, row in enumerate(rows, 1):
        messages = [dict(message) for message in row.messages]
        if found is not None:
            passages = _mixed(found[place], random)
            messages[-2]["content"] = with_passages(str(messages[-2]["content"]), passages)
        lines.append(json.dumps({"messages": messages, **({"tools": row.tools} if row.tools else {})}) + "\n")
    write_atomic(path, "".join(lines))


def _mixed(found: Found, random: np.random.Generator) -> list[str]:
    others = [p for p in found.passages if p != found.gold]
    if not found.gold or random.random() >= WITH_GOLD:
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
    return Tuned(ref, recipe.run, number(result.actual.get("time")) or 0.0 if result else 0.0)


def forecast_seconds(recipe: Recipe, events: Events) -> tuple[float, float]:
    """Forecast the seconds that tuning takes, and its steps among them, by a few of its own steps."""
    settings = recipe.settings.model_copy(update={"dry": True, "name": f"{recipe.run}-dry"})
    context = start(find_job(recipe.job), settings, Events(listeners=[_progress(events, recipe.run)]))
    if not isinstance(context, TuningContext):
        raise SettleError("tuning could not be forecast", "see `settle tune --dry`")
    return context.expected.time.value, context.expected.phases.get("loop", 0.0)


def _progress(events: Events, name: str) -> Callable[[Event], None]:
    """Return a listener that passes on how far a run is, and nothing else of its talk."""
    steps: float | None = None

    def listen(event: Event) -> None:
        nonlocal steps
        match event:
            case PlanReady():
                steps = number(event.values.get("steps"))
            case Progress():
                events.emit(event.model_copy(update={"what": f"{name}: {event.what}"}))
            case Step():
                events.emit(Progress(what=f"{name}: training", done=event.step, total=steps, unit="steps"))

    return listen


def tuned_model(c: ChooseContext, way: str, ref: ModelRef) -> AnsweringModel:
    """Return what answers for a way whose weights were tuned, in a process of its own."""
    if way == DECIDE:
        return DecisionModel(ref, c.examples.labels, c.settings.threads)
    return ModelInTurns(ref, c.model.max_tokens, c.settings.threads)


# --- what a changed fact costs ---


@dataclass(frozen=True)
class ChangeCost:
    """What a changed fact costs a way, see `Built`."""

    change_seconds: float
    change_note: str


def with_fact_tuned_again(c: ChooseContext, way: Built) -> Built:
    """Return a way of tuned weights with what a changed fact costs it.

    The answer of one training example is changed, the same tuning is run on them again, and the question is asked.
    Raises SettleError.
    """
    train = c.examples.train_cases
    place = next((i for i, case in enumerate(train) if case.prompt is not None), 0)
    new = _other_answer(train, train[place])
    if new is None:
        return way
    cost = c.folder.once(f"changed {way.name}", ChangeCost, lambda: _tuned_again(c, way, place, new))
    return replace(way, **vars(cost))


def _tuned_again(c: ChooseContext, way: Built, place: int, new: str) -> ChangeCost:
    train, case = c.examples.train, c.examples.train_cases[place]
    rows = [*train[:place], _answering(train[place], new), *train[place + 1 :]]
    made = tuned(tuning_recipe(c, way.name, rows), c.events)
    model, asked = tuned_model(c, way.name, made.ref), replace(case, reference=new)
    try:
        (reply,) = answers(way.setup.over(model, way.name), [asked])
    finally:
        model.close()
    note = f"{duration(made.seconds)}, tuned again"
    if score_of(c.task, reply, asked) <= score_of(c.task, reply, case):
        note += "; the new answer was not learned"
    return ChangeCost(made.seconds, note)


def _other_answer(cases: Sequence[Case], case: Case) -> str | None:
    """Return an answer that some other case wants."""
    return next((c.reference for c in cases if plain(c.reference) != plain(case.reference)), None)


def _answering(row: Example, answer: str) -> Example:
    return replace(row, messages=[*row.messages[:-1], {**row.messages[-1], "content": answer}])


def with_fact_indexed_again(c: ChooseContext, way: Built) -> Built:
    """Return a way with what a changed fact costs it: one is changed in a copy of its document, and asked for."""
    known = c.folder.kept(f"changed {way.name}", ChangeCost) or _indexed_again(c, way)
    if known is None:
        return way
    c.folder.keep(f"changed {way.name}", known)
    return replace(way, **vars(known))


def _indexed_again(c: ChooseContext, way: Built) -> ChangeCost | None:
    """Measure the cost of the first fact that can be changed; None where there is none."""
    train = c.examples.train_cases
    for case in train:
        gold = c.found_train[case.number].gold
        document = c.documents.place(gold) if gold and c.documents else None
        new = _other_answer(train, case) or ""
        changed = change_fact(document, case, new, c.events) if document else None
        if changed is None:
            continue
        asked = replace(case, reference=new)
        (reply,) = c.ask(way.name, c.arm(way.setup, {case.number: changed.found}, way.model), [asked])
        took = duration(changed.seconds)
        if score_of(c.task, reply, asked) > 0:
            return ChangeCost(changed.seconds, f"{took}, indexed again")
        if changed.found.is_found:
            return ChangeCost(changed.seconds, f"{took}; found, but not answered")
        return ChangeCost(changed.seconds, f"{took}; not found")
    return None
