"""What a changed fact costs a way: one is really changed, in a document or in a training example, and asked for."""

from dataclasses import replace

from settle.data.layouts import Example
from settle.evaluate.tasks import plain
from settle.jobs.choose import choice_folder
from settle.jobs.choose.documents import change_fact
from settle.jobs.choose.report import duration
from settle.jobs.choose.setup import answers
from settle.jobs.choose.ways import Built
from settle.jobs.choose.ways.prompts import score_of
from settle.jobs.choose.ways.tune_ways import tuned
from settle.jobs.choose.ways.work import Work, tuned_model, tuning_recipe


def with_fact_tuned_again(work: Work, way: Built) -> Built:
    """With what a changed fact costs weights: the answer of one training example is changed, the same tuning is run on
    them again, and the question is asked. Raises SettleError."""
    known = choice_folder.noted(work.folder).get(f"changed {way.name}")
    if isinstance(known, dict):
        return replace(way, **known)
    examples, cases = work.examples, work.examples.train_cases
    place = next((i for i, case in enumerate(cases) if case.prompt is not None), 0)
    old = plain(cases[place].reference)
    new = next((case.reference for case in cases if plain(case.reference) != old), None)
    if new is None:
        return way
    rows = [*examples.train[:place], _answering(examples.train[place], new), *examples.train[place + 1 :]]
    changed = replace(work, examples=replace(examples, train=rows))
    made = tuned(tuning_recipe(changed, way.name, "-changed"), work.events)
    model, asked = tuned_model(work, way.name, made.ref), replace(cases[place], reference=new)
    try:
        (reply,) = answers(way.setup.over(model, way.name), [asked])
    finally:
        model.close()
    note = f"{duration(made.seconds)}, tuned again"
    if score_of(work.task, reply, asked) <= score_of(work.task, reply, cases[place]):
        note += "; the new answer was not learned"
    choice_folder.note(work.folder, **{f"changed {way.name}": {"change_seconds": made.seconds, "change_note": note}})
    return replace(way, change_seconds=made.seconds, change_note=note)


def _answering(row: Example, answer: str) -> Example:
    return replace(row, messages=[*row.messages[:-1], {**row.messages[-1], "content": answer}])


def with_fact_indexed_again(work: Work, way: Built) -> Built:
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
