"""Builds each way and asks it the test questions."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, plain
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import Documents, Found, change_fact, passages_of
from settle.jobs.choose.examples import ExampleSet
from settle.jobs.choose.prompts import score_of, search_prompt
from settle.jobs.choose.report import duration, quoted
from settle.jobs.choose.settings import ChooseSettings
from settle.jobs.choose.setup import NO_PASSAGES, Answerer, LoadedModel, Passages, Reply, Setup
from settle.jobs.choose.tune_ways import PASSAGE_EPOCHS, Recipe, tuned, write_rows
from settle.jobs.choose.ways import (
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    WITH_DOCUMENTS,
    ZERO_SHOT,
    Measured,
)

MOST_SHOTS = 4  # before a question that has passages too
READING_ROWS = 8  # training examples by which the prompt beside passages is chosen
READING = "Answer with what the passages say."


@dataclass
class Work:
    """What all parts of a choice share. found_train, found_test: what the documents have for each question, by its
    number."""

    settings: ChooseSettings
    events: Events
    folder: Path
    model: LoadedModel
    examples: ExampleSet
    task: Task
    max_tokens: int
    documents: Documents | None = None
    found_train: dict[int, Found] = field(default_factory=dict)
    found_test: dict[int, Found] = field(default_factory=dict)

    def answerer(self, setup: Setup, model: LoadedModel | None = None) -> Answerer:
        """A model in some setup; the one that was asked for unless another is given."""
        return Answerer(model or self.model, setup, self.max_tokens, self.folder / "answers")

    def ask(self, what: str, setup: Setup, cases: Sequence[Case], passages: Passages = NO_PASSAGES) -> list[Reply]:
        """Answers of the model to some cases, with their progress."""
        return self.answerer(setup).answers(cases, passages, self.on_progress(what, len(cases)))

    def on_progress(self, what: str, total: int) -> "_Progress":
        return _Progress(self.events, what, total)


@dataclass(frozen=True)
class _Progress:
    events: Events
    what: str
    total: int

    def __call__(self, done: int) -> None:
        self.events.emit(Progress(what=f"{self.what}: answers", done=done, total=self.total))


def built(way: str, work: Work) -> Measured:
    """A way, built and asked the test questions. Raises SettleError."""
    return _BUILD[way](work)


def _zero_shot(work: Work) -> Measured:
    return _asked(work, ZERO_SHOT, Setup(), work.model, 0.0, quoted("settle", "chat", str(work.settings.model)))


def _prompt(work: Work) -> Measured:
    setup, seconds, about = best_prompt(work)
    return _asked(work, PROMPT, setup, work.model, seconds, _ready(work), about)


def _documents(work: Work) -> Measured:
    assert work.documents is not None
    setup, seconds, about = reading_prompt(work)
    measured = _asked(work, DOCUMENTS, setup, work.model, work.documents.build_seconds + seconds, _ready(work), about)
    return _with_changed_fact(work, measured, setup)


def _tune(work: Work) -> Measured:
    recipe = tuning_recipe(work, TUNE)
    made = tuned(recipe, work.events)
    about = f"`{recipe.command}` made it"
    with LoadedModel(made.ref, work.settings.threads) as model:
        measured = _asked(work, TUNE, Setup(), model, made.seconds, quoted("settle", "chat", made.run), about)
    return replace(measured, change_seconds=made.seconds, change_note=f"{duration(made.seconds)}, tuned again")


def _tune_documents(work: Work) -> Measured:
    assert work.documents is not None
    recipe = tuning_recipe(work, TUNE_DOCUMENTS)
    made = tuned(recipe, work.events)
    seconds = work.documents.build_seconds + made.seconds
    with LoadedModel(made.ref, work.settings.threads) as model:
        measured = _asked(work, TUNE_DOCUMENTS, Setup(), model, seconds, _ready(work), f"`{recipe.command}` made it")
        return _with_changed_fact(work, measured, Setup(), model)


_BUILD = {
    ZERO_SHOT: _zero_shot,
    PROMPT: _prompt,
    DOCUMENTS: _documents,
    TUNE: _tune,
    TUNE_DOCUMENTS: _tune_documents,
}


def _asked(
    work: Work, way: str, setup: Setup, model: LoadedModel, seconds: float, command: str, about: str = ""
) -> Measured:
    """The test questions, asked. seconds: that building took."""
    reads = way in WITH_DOCUMENTS
    passages = passages_of(work.found_test) if reads else {}
    answerer = work.answerer(setup, model)
    test = work.examples.test
    replies = answerer.answers(test, passages, work.on_progress(way, len(test)))
    choice_folder.keep_way(
        work.folder,
        way,
        model.ref,
        _plain(setup)
        | {
            "collection": work.documents.name if work.documents and reads else "",
            "max_tokens": work.max_tokens,
        },
    )
    searched = [found.seconds for found in work.found_test.values()] if reads else []
    return Measured(
        name=way,
        scores=[score_of(work.task, reply, case) for reply, case in zip(replies, test, strict=True)],
        replies=replies,
        build_seconds=seconds,
        peak=answerer.peak,
        command=command,
        search_seconds=sum(searched) / max(1, len(searched)),
        about=about,
    )


def best_prompt(work: Work) -> tuple[Setup, float, str]:
    """The best prompt of a small search on training examples, the seconds that it took, and what it is, for people."""
    known = choice_folder.noted(work.folder).get("prompt")
    if isinstance(known, dict):
        return _setup(known), float(known["seconds"]), str(known["about"])
    began, examples = time.monotonic(), work.examples

    def ask(setup: Setup, cases: Sequence[Case]) -> list[Reply]:
        return work.ask("prompt", setup, cases)

    tried = search_prompt(examples.train_cases, examples.labels, work.task, ask, work.settings.seed)
    best, seconds = tried[0], time.monotonic() - began
    parts = [f"{len(best.setup.shots)} examples"] if best.setup.shots else []
    parts += [f"the instruction “{best.setup.system}”"] if best.setup.system else []
    about = f"{' and '.join(parts) or 'nothing'} before every question, the best of {len(tried)} prompts"
    choice_folder.note(work.folder, prompt={**_plain(best.setup), "seconds": seconds, "about": about})
    return best.setup, seconds, about


def reading_prompt(work: Work) -> tuple[Setup, float, str]:
    """What is put before a question with passages: nothing, or the best prompt, whichever answers more of a few
    training examples; with the seconds that it took to see, and what it is."""
    known = choice_folder.noted(work.folder).get("reading")
    if isinstance(known, dict):
        return _setup(known), float(known["seconds"]), str(known["about"])
    prompt, seconds, about = best_prompt(work)
    prompt = replace(prompt, shots=prompt.shots[:MOST_SHOTS])
    began, shots = time.monotonic(), {question for question, _ in prompt.shots}
    cases = [c for c in work.examples.train_cases if c.question not in shots][:READING_ROWS]
    passages = passages_of(work.found_train)
    setups = list(dict.fromkeys((Setup(system=READING), replace(prompt, system=f"{READING} {prompt.system}".strip()))))
    scores = {}
    for setup in setups:
        replies = work.ask("documents", setup, cases, passages)
        scores[setup] = sum(score_of(work.task, r, c) for r, c in zip(replies, cases, strict=True))
    best = max(setups, key=lambda setup: scores[setup])
    seconds += time.monotonic() - began
    about = f"passages, with {about}" if best.shots else "passages before every question"
    choice_folder.note(work.folder, reading={**_plain(best), "seconds": seconds, "about": about})
    return best, seconds, about


def tuning_recipe(work: Work, way: str) -> Recipe:
    """How a way is tuned; its rows are written."""
    settings, reads = work.settings, way == TUNE_DOCUMENTS
    run = f"{work.folder.name}-{way.replace(' + ', '-')}"
    path = work.folder / f"{way.replace(' + ', '-')}.jsonl"
    if not path.exists():  # an earlier session's run was made of it
        write_rows(path, work.examples.train, work.found_train if reads else None, settings.seed)
    epochs = settings.epochs * (PASSAGE_EPOCHS if reads else 1.0)
    return Recipe(run, path, epochs, str(settings.model), settings.seed, settings.threads)


def _with_changed_fact(work: Work, measured: Measured, setup: Setup, model: LoadedModel | None = None) -> Measured:
    """With what a changed fact costs, measured by changing one in a copy of its document and asking for it."""
    assert work.documents is not None
    answers = [case.reference for case in work.examples.train_cases]
    for case in work.examples.train_cases:
        found = work.found_train[case.number]
        others = [answer for answer in answers if plain(answer) != plain(case.reference)]
        document = work.documents.place(found.gold) if found.gold and others else None
        changed = change_fact(document, case, others[0], work.events) if document else None
        if changed is None:
            continue
        asked = replace(case, reference=others[0])
        reply = work.answerer(setup, model).answers([asked], {case.number: changed.passages})[0]
        if score_of(work.task, reply, asked) > 0:
            note = f"{duration(changed.seconds)}, indexed again"
        elif changed.is_found:
            note = f"{duration(changed.seconds)}; found, but not answered"
        else:
            note = f"{duration(changed.seconds)}; not found"
        return replace(measured, change_seconds=changed.seconds, change_note=note)
    return measured


def _ready(work: Work) -> str:
    return quoted("settle", "choose", work.folder.name, "--ask", "a question")


def _plain(setup: Setup) -> dict[str, object]:
    return {"system": setup.system, "shots": [list(shot) for shot in setup.shots]}


def _setup(record: Mapping[str, object]) -> Setup:
    shots = record["shots"]
    assert isinstance(shots, list)
    return Setup(str(record["system"]), tuple((str(question), str(answer)) for question, answer in shots))
