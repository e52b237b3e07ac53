"""Builds each way and asks it the test questions."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.run import Run
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, plain
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import Documents, Found, change_fact, passages_of
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.report import duration, quoted
from settle.jobs.choose.settings import ChooseSettings
from settle.jobs.choose.setup import NO_PASSAGES, ModelInTurns, Passages, Setup, answers
from settle.jobs.choose.ways import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    WITH_DOCUMENTS,
    ZERO_SHOT,
    Built,
)
from settle.jobs.choose.ways.decide_way import DecisionModel, write_decisions
from settle.jobs.choose.ways.prompts import score_of, search_prompt
from settle.jobs.choose.ways.tune_ways import PASSAGE_EPOCHS, Recipe, tuned, write_rows
from settle.jobs.trials.arm import Arm, Reply
from settle.library.reference import ModelRef

MOST_SHOTS = 4  # before a question that has passages too
READING_ROWS = 8  # training examples by which the prompt beside passages is chosen
READING = "Answer with what the passages say."


@dataclass
class Work:
    """What all parts of a choice share. model: as it is. found_train, found_test: what the documents have for each
    question, by its number. index_seconds: that the first indexing took."""

    settings: ChooseSettings
    events: Events
    folder: Path
    model: ModelInTurns
    examples: ExampleSet
    task: Task
    documents: Documents | None = None
    found_train: dict[int, Found] = field(default_factory=dict)
    found_test: dict[int, Found] = field(default_factory=dict)
    index_seconds: float = 0.0

    @property
    def search_seconds(self) -> float:
        """Of finding the passages for a question, in the mean."""
        return sum(found.seconds for found in self.found_test.values()) / max(1, len(self.found_test))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Adds the time within to what a part took, which is kept over all sessions."""
        began = time.monotonic()
        try:
            yield
        finally:
            known = self.spent()
            choice_folder.note(self.folder, spent=known | {part: known.get(part, 0.0) + time.monotonic() - began})

    def spent(self) -> dict[str, float]:
        """Seconds by part so far."""
        known = choice_folder.noted(self.folder).get("spent")
        return dict(known) if isinstance(known, dict) else {}

    def ask(self, what: str, arm: Arm, cases: Sequence[Case]) -> list[Reply]:
        """Answers to some cases, with their progress."""
        return answers(arm, cases, _Progress(self.events, what, len(cases)))

    def arm(self, setup: Setup, passages: Passages = NO_PASSAGES, model: Arm | None = None) -> Arm:
        """The model in some setup; the one that was asked for unless another is given."""
        return setup.over(model or self.model, "", passages)

    def tuned_model(self, ref: ModelRef) -> ModelInTurns:
        """A model that was tuned, in a process of its own."""
        return ModelInTurns(ref, self.model.max_tokens, self.settings.threads)


@dataclass(frozen=True)
class _Progress:
    events: Events
    what: str
    total: int

    def __call__(self, done: int) -> None:
        self.events.emit(Progress(what=f"{self.what}: answers", done=done, total=self.total))


def built(name: str, work: Work) -> Built:
    """A way, ready to be asked. Raises SettleError."""
    way = _BUILD[name](work)
    collection = work.documents.name if work.documents and name in WITH_DOCUMENTS else ""
    record = {**way.setup.to_json(), "collection": collection, "max_tokens": work.model.max_tokens}
    record["labels"] = list(work.examples.labels) if name == DECIDE else []
    choice_folder.keep_way(work.folder, name, way.model.ref, record)
    return way


def _zero_shot(work: Work) -> Built:
    return Built(ZERO_SHOT, work.model, Setup(), quoted("settle", "chat", str(work.settings.model)))


def _prompt(work: Work) -> Built:
    setup, seconds, about = best_prompt(work)
    return Built(PROMPT, work.model, setup, _ready(work), seconds, about=about)


def _documents(work: Work) -> Built:
    setup, seconds, about = reading_prompt(work)
    seconds += work.index_seconds
    way = Built(DOCUMENTS, work.model, setup, _ready(work), seconds, work.search_seconds, about=about)
    return _with_changed_fact(work, way)


def _decide(work: Work) -> Built:
    recipe = tuning_recipe(work, DECIDE)
    made = tuned(recipe, work.events)
    return Built(
        name=DECIDE,
        model=DecisionModel(made.ref, work.examples.labels, work.settings.threads),
        setup=Setup(),
        command=quoted("settle", "decide", made.run, "a question"),
        build_seconds=made.seconds,
        change_seconds=made.seconds,
        change_note=f"{duration(made.seconds)}, tuned again",
        about=f"`{recipe.command}` made it",
    )


def _tune(work: Work) -> Built:
    recipe = tuning_recipe(work, TUNE)
    made = tuned(recipe, work.events)
    return Built(
        name=TUNE,
        model=work.tuned_model(made.ref),
        setup=Setup(),
        command=quoted("settle", "chat", made.run),
        build_seconds=made.seconds,
        change_seconds=made.seconds,
        change_note=f"{duration(made.seconds)}, tuned again",
        about=f"`{recipe.command}` made it",
    )


def _tune_documents(work: Work) -> Built:
    recipe = tuning_recipe(work, TUNE_DOCUMENTS)
    made = tuned(recipe, work.events)
    seconds, about = work.index_seconds + made.seconds, f"`{recipe.command}` made it"
    model = work.tuned_model(made.ref)
    way = Built(TUNE_DOCUMENTS, model, Setup(), _ready(work), seconds, work.search_seconds, about=about)
    return _with_changed_fact(work, way)


_BUILD = {
    ZERO_SHOT: _zero_shot,
    PROMPT: _prompt,
    DOCUMENTS: _documents,
    DECIDE: _decide,
    TUNE: _tune,
    TUNE_DOCUMENTS: _tune_documents,
}


def best_prompt(work: Work) -> tuple[Setup, float, str]:
    """The best prompt of a small search on training examples, the seconds that it took, and what it is, for people."""
    known = choice_folder.noted(work.folder).get("prompt")
    if isinstance(known, dict):
        return Setup.from_json(known), float(known["seconds"]), str(known["about"])
    began, examples = time.monotonic(), work.examples

    def ask(setup: Setup, cases: Sequence[Case]) -> list[Reply]:
        return work.ask("prompt", work.arm(setup), cases)

    tried = search_prompt(examples.train_cases, examples.labels, work.task, ask, work.settings.seed)
    best, seconds = tried[0], time.monotonic() - began
    parts = [f"{len(best.setup.shots)} examples"] if best.setup.shots else []
    parts += [f"the instruction “{best.setup.system}”"] if best.setup.system else []
    about = f"{' and '.join(parts) or 'nothing'} before every question, the best of {len(tried)} prompts"
    choice_folder.note(work.folder, prompt={**best.setup.to_json(), "seconds": seconds, "about": about})
    return best.setup, seconds, about


def reading_prompt(work: Work) -> tuple[Setup, float, str]:
    """What is put before a question with passages: nothing, or the best prompt, whichever answers more of a few
    training examples; with the seconds that it took to see, and what it is."""
    known = choice_folder.noted(work.folder).get("reading")
    if isinstance(known, dict):
        return Setup.from_json(known), float(known["seconds"]), str(known["about"])
    prompt, seconds, about = best_prompt(work)
    prompt = replace(prompt, shots=prompt.shots[:MOST_SHOTS])
    began, shots = time.monotonic(), {question for question, _ in prompt.shots}
    cases = [c for c in work.examples.train_cases if c.question not in shots][:READING_ROWS]
    passages = passages_of(work.found_train)
    setups = list(dict.fromkeys((Setup(system=READING), replace(prompt, system=f"{READING} {prompt.system}".strip()))))
    scores = {}
    for setup in setups:
        replies = work.ask("documents", work.arm(setup, passages), cases)
        scores[setup] = sum(score_of(work.task, r, c) for r, c in zip(replies, cases, strict=True))
    best = max(setups, key=lambda setup: scores[setup])
    seconds += time.monotonic() - began
    about = f"passages, with {about}" if best.shots else "passages before every question"
    choice_folder.note(work.folder, reading={**best.to_json(), "seconds": seconds, "about": about})
    return best, seconds, about


def tuning_recipe(work: Work, way: str) -> Recipe:
    """How a way is tuned; its rows are written."""
    settings, reads = work.settings, way == TUNE_DOCUMENTS
    path = work.folder / f"{way.replace(' + ', '-')}.jsonl"
    if not path.exists():  # an earlier session's run was made of it
        if way == DECIDE:
            write_decisions(path, work.examples)
        else:
            write_rows(path, work.examples.train, work.found_train if reads else None, settings.seed)
    taken = [run.name for run in Run.all()]
    name = choice_folder.own_name(work.folder, f"run {way}", f"{work.folder.name}-{path.stem}", taken)
    epochs = settings.epochs * (PASSAGE_EPOCHS if reads else 1.0)
    return Recipe(name, path, epochs, str(settings.model), settings.seed, settings.threads, way == DECIDE)


def _with_changed_fact(work: Work, way: Built) -> Built:
    """With what a changed fact costs, measured by changing one in a copy of its document and asking for it."""
    assert work.documents is not None
    known = choice_folder.noted(work.folder).get(f"changed {way.name}")
    if isinstance(known, dict):
        return replace(way, **known)
    train = work.examples.train_cases
    for case in (case for case in train if work.found_train[case.number].gold):
        new = next((c.reference for c in train if plain(c.reference) != plain(case.reference)), "")
        document = work.documents.place(work.found_train[case.number].gold)
        changed = change_fact(document, case, new, work.events) if document else None
        if changed is None:
            continue
        asked = replace(case, reference=new)
        reply = work.ask(way.name, work.arm(way.setup, {case.number: changed.passages}, way.model), [asked])[0]
        took = duration(changed.seconds)
        if score_of(work.task, reply, asked) > 0:
            note = f"{took}, indexed again"
        else:
            note = f"{took}; found, but not answered" if changed.is_found else f"{took}; not found"
        choice_folder.note(
            work.folder, **{f"changed {way.name}": {"change_seconds": changed.seconds, "change_note": note}}
        )
        return replace(way, change_seconds=changed.seconds, change_note=note)
    return way


def _ready(work: Work) -> str:
    return quoted("settle", "choose", work.folder.name, "--ask", "a question")
