"""Builds each way and asks it the test questions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from settle.evaluate.compare.cases import Case
from settle.experiment.arm import Reply
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import PassagesFound
from settle.jobs.choose.report import duration, quoted
from settle.jobs.choose.setup import Setup
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
from settle.jobs.choose.ways.changed_fact import with_fact_indexed_again
from settle.jobs.choose.ways.prompts import score_of, search_prompt
from settle.jobs.choose.ways.tune_ways import Recipe, tuned
from settle.jobs.choose.ways.work import Work, tuned_model, tuning_recipe

MOST_SHOTS = 4  # before a question that has passages too
READING_ROWS = 8  # training examples by which the prompt beside passages is chosen
READING = "Answer with what the passages say."


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
    return with_fact_indexed_again(work, way)


def _decide(work: Work) -> Built:
    recipe = tuning_recipe(work, DECIDE)
    return _of_weights(work, DECIDE, recipe, lambda run: quoted("settle", "decide", run, "a question"))


def _tune(work: Work) -> Built:
    return _of_weights(work, TUNE, tuning_recipe(work, TUNE), lambda run: quoted("settle", "chat", run))


def _of_weights(work: Work, name: str, recipe: Recipe, command: Callable[[str], str]) -> Built:
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
    about += "; answers are held to their form" if best.setup.grammar else ""
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
    passages = PassagesFound(work.found_train)
    setups = list(
        dict.fromkeys(
            (
                Setup(system=READING, grammar=prompt.grammar),
                replace(prompt, system=f"{READING} {prompt.system}".strip()),
            )
        )
    )
    scores = {}
    for setup in setups:
        replies = work.ask("documents", work.arm(setup, passages), cases)
        scores[setup] = sum(score_of(work.task, r, c) for r, c in zip(replies, cases, strict=True))
    best = max(setups, key=lambda setup: scores[setup])
    seconds += time.monotonic() - began
    about = f"passages, with {about}" if best.shots else "passages before every question"
    choice_folder.note(work.folder, reading={**best.to_json(), "seconds": seconds, "about": about})
    return best, seconds, about


def _ready(work: Work) -> str:
    return quoted("settle", "choose", work.folder.name, "--ask", "a question")
