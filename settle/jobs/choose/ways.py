"""How each way is built, and what a changed fact costs it."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from settle.base.words.amounts import duration
from settle.data.layouts import Example
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import plain
from settle.experiment.arm import Reply
from settle.jobs.choose.answerer import Setup, answers
from settle.jobs.choose.documents import change_fact
from settle.jobs.choose.folder import KeptWay
from settle.jobs.choose.prompts import score_of, search_prompt
from settle.jobs.choose.tune_way import tuned, tuned_model, tuning_recipe
from settle.jobs.choose.way import (
    DECIDE,
    DOCUMENTS,
    PROMPT,
    TUNE,
    TUNE_DOCUMENTS,
    WITH_DOCUMENTS,
    ZERO_SHOT,
    Built,
)
from settle.jobs.choose.work import Work

MOST_SHOTS = 4  # before a question that has passages too
READING_ROWS = 8  # training examples by which the prompt beside passages is chosen
READING = "Answer with what the passages say."


@dataclass(frozen=True)
class FoundPrompt(Setup):
    """A prompt that was searched for: the seconds that it took, and what it is, for the user."""

    seconds: float = 0.0
    about: str = ""

    @property
    def setup(self) -> Setup:
        return Setup(self.system, self.shots, self.grammar)

    @classmethod
    def of(cls, setup: Setup, seconds: float, about: str) -> "FoundPrompt":
        return cls(setup.system, setup.shots, setup.grammar, seconds, about)


@dataclass(frozen=True)
class ChangeCost:
    """What a changed fact costs a way, see `Built`."""

    change_seconds: float
    change_note: str


def built(name: str, work: Work) -> Built:
    """Build a way, ready to be asked. Raises SettleError."""
    way = _BUILD[name](work)
    ref = way.model.ref
    kept = KeptWay(
        system=way.setup.system,
        shots=way.setup.shots,
        grammar=way.setup.grammar,
        collection=work.documents.name if work.documents and name in WITH_DOCUMENTS else "",
        max_tokens=work.model.max_tokens,
        labels=list(work.examples.labels) if name == DECIDE else [],
        weights=ref.weights,
        adapter=ref.adapter,
        model=ref.name,
    )
    work.folder.keep_way(name, kept)
    return way


def _zero_shot(work: Work) -> Built:
    return Built(ZERO_SHOT, work.model, Setup(), quoted("settle", "chat", str(work.settings.model)))


def _prompt(work: Work) -> Built:
    found = best_prompt(work)
    return Built(PROMPT, work.model, found.setup, _ready(work), found.seconds, about=found.about)


def _documents(work: Work) -> Built:
    found = reading_prompt(work)
    seconds = found.seconds + work.index_seconds
    way = Built(DOCUMENTS, work.model, found.setup, _ready(work), seconds, work.search_seconds, about=found.about)
    return with_fact_indexed_again(work, way)


def _decide(work: Work) -> Built:
    return _of_weights(work, DECIDE, lambda run: quoted("settle", "decide", run, "a question"))


def _tune(work: Work) -> Built:
    return _of_weights(work, TUNE, lambda run: quoted("settle", "chat", run))


def _of_weights(work: Work, name: str, command: Callable[[str], str]) -> Built:
    recipe = tuning_recipe(work, name)
    made = tuned(recipe, work.events)
    return Built(
        name=name,
        model=tuned_model(work, name, made.ref),
        setup=Setup(),
        command=command(made.run),
        build_seconds=made.seconds,
        change_seconds=made.seconds,
        change_note=f"as long as building it, {duration(made.seconds)}",
        about=f"`{recipe.command}` made it",
    )


def _tune_documents(work: Work) -> Built:
    recipe = tuning_recipe(work, TUNE_DOCUMENTS)
    made = tuned(recipe, work.events)
    seconds, about = work.index_seconds + made.seconds, f"`{recipe.command}` made it"
    model = tuned_model(work, TUNE_DOCUMENTS, made.ref)
    way = Built(TUNE_DOCUMENTS, model, Setup(), _ready(work), seconds, work.search_seconds, about=about)
    return with_fact_indexed_again(work, way)


_BUILD = {
    ZERO_SHOT: _zero_shot,
    PROMPT: _prompt,
    DOCUMENTS: _documents,
    DECIDE: _decide,
    TUNE: _tune,
    TUNE_DOCUMENTS: _tune_documents,
}


def best_prompt(work: Work) -> FoundPrompt:
    """Return the best prompt of a small search on training examples."""
    return work.folder.once("prompt", FoundPrompt, lambda: _best_prompt(work))


def _best_prompt(work: Work) -> FoundPrompt:
    began = time.monotonic()

    def ask(setup: Setup, cases: Sequence[Case]) -> list[Reply]:
        return work.ask("prompt", work.arm(setup), cases)

    tried = search_prompt(work.examples, work.task, ask, work.settings.seed)
    best = tried[0].setup
    parts = [f"{len(best.shots)} examples"] if best.shots else []
    parts += [f"the instruction “{best.system}”"] if best.system else []
    about = f"{' and '.join(parts) or 'nothing'} before every question, the best of {len(tried)} prompts"
    about += "; answers are held to their form" if best.grammar else ""
    return FoundPrompt.of(best, time.monotonic() - began, about)


def reading_prompt(work: Work) -> FoundPrompt:
    """Return what is put before a question with passages: nothing, or the best prompt.

    Whichever answers more of a few training examples.
    """
    return work.folder.once("reading", FoundPrompt, lambda: _reading_prompt(work))


def _reading_prompt(work: Work) -> FoundPrompt:
    known = best_prompt(work)
    prompt = replace(known.setup, shots=known.shots[:MOST_SHOTS])
    began, shots = time.monotonic(), {question for question, _ in prompt.shots}
    cases = [c for c in work.examples.train_cases if c.question not in shots][:READING_ROWS]
    with_it = replace(prompt, system=f"{READING} {prompt.system}".strip())
    setups = list(dict.fromkeys((Setup(system=READING, grammar=prompt.grammar), with_it)))
    scores = {}
    for setup in setups:
        replies = work.ask("documents", work.arm(setup, work.found_train), cases)
        scores[setup] = sum(score_of(work.task, r, c) for r, c in zip(replies, cases, strict=True))
    best = max(setups, key=lambda setup: scores[setup])
    about = f"passages, with {known.about}" if best.shots else "passages before every question"
    return FoundPrompt.of(best, known.seconds + time.monotonic() - began, about)


def quoted(*words: str) -> str:
    """Return a command line."""
    return shlex.join(words)


def _ready(work: Work) -> str:
    return quoted("settle", "choose", work.folder.name, "--ask", "a question")


# --- what a changed fact costs ---


def with_fact_tuned_again(work: Work, way: Built) -> Built:
    """Return a way of tuned weights with what a changed fact costs it.

    The answer of one training example is changed, the same tuning is run on them again, and the question is asked.
    Raises SettleError.
    """
    cases = work.examples.train_cases
    place = next((i for i, case in enumerate(cases) if case.prompt is not None), 0)
    new = _other_answer(cases, cases[place])
    if new is None:
        return way
    cost = work.folder.once(f"changed {way.name}", ChangeCost, lambda: _tuned_again(work, way, place, new))
    return replace(way, **vars(cost))


def _tuned_again(work: Work, way: Built, place: int, new: str) -> ChangeCost:
    examples, case = work.examples, work.examples.train_cases[place]
    rows = [*examples.train[:place], _answering(examples.train[place], new), *examples.train[place + 1 :]]
    changed = replace(work, examples=replace(examples, train=rows))
    made = tuned(tuning_recipe(changed, way.name, "-changed"), work.events)
    model, asked = tuned_model(work, way.name, made.ref), replace(case, reference=new)
    try:
        (reply,) = answers(way.setup.over(model, way.name), [asked])
    finally:
        model.close()
    note = f"{duration(made.seconds)}, tuned again"
    if score_of(work.task, reply, asked) <= score_of(work.task, reply, case):
        note += "; the new answer was not learned"
    return ChangeCost(made.seconds, note)


def _other_answer(cases: Sequence[Case], case: Case) -> str | None:
    """Return an answer that some other case wants."""
    return next((c.reference for c in cases if plain(c.reference) != plain(case.reference)), None)


def _answering(row: Example, answer: str) -> Example:
    return replace(row, messages=[*row.messages[:-1], {**row.messages[-1], "content": answer}])


def with_fact_indexed_again(work: Work, way: Built) -> Built:
    """Return a way with what a changed fact costs it.

    One is changed in a copy of its document, and asked for.
    """
    known = work.folder.kept(f"changed {way.name}", ChangeCost) or _indexed_again(work, way)
    if known is None:
        return way
    work.folder.keep(f"changed {way.name}", known)
    return replace(way, **vars(known))


def _indexed_again(work: Work, way: Built) -> ChangeCost | None:
    """Measure the cost of the first fact that can be changed; None where there is none."""
    assert work.documents is not None
    train = work.examples.train_cases
    for case in (case for case in train if work.found_train[case.number].gold):
        document = work.documents.place(work.found_train[case.number].gold)
        new = _other_answer(train, case) or ""
        changed = change_fact(document, case, new, work.events) if document else None
        if changed is None:
            continue
        asked = replace(case, reference=new)
        reply = work.ask(way.name, work.arm(way.setup, {case.number: changed.found}, way.model), [asked])[0]
        took = duration(changed.seconds)
        if score_of(work.task, reply, asked) > 0:
            return ChangeCost(changed.seconds, f"{took}, indexed again")
        if changed.found.is_found:
            return ChangeCost(changed.seconds, f"{took}; found, but not answered")
        return ChangeCost(changed.seconds, f"{took}; not found")
    return None
