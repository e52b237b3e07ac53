"""The choose job: examples · documents · triage · forecast · ways, the cheapest first · verdict · page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from settle.audit.session import ledger, network_record
from settle.base.errors import DataError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, ResultReady, Say, Warn, WorkStarted
from settle.base.files import read_json, write_atomic, write_json
from settle.base.stop_signals import Stopping
from settle.base.words.amounts import duration
from settle.evaluate.compare.cases import asking
from settle.evaluate.compare.compare import longest_answer
from settle.evaluate.compare.sample_size import smallest_visible
from settle.evaluate.tasks import Task, best_suited, named, plain
from settle.experiment.race import ERROR_OF_WAYS, Outcome, Race
from settle.experiment.run import run_race
from settle.jobs.choose import report
from settle.jobs.choose.answerer import AnsweringModel, DecisionModel, ModelInTurns, answers
from settle.jobs.choose.documents import PASSAGES, Documents, Findings, Found
from settle.jobs.choose.examples import ExampleSet, read_examples
from settle.jobs.choose.folder import RESULT, ChoiceFolder, KeptWay
from settle.jobs.choose.forecast import forecast, forecast_triage, measure_costs
from settle.jobs.choose.prompts import score_of
from settle.jobs.choose.settings import ChooseSettings
from settle.jobs.choose.triage import FEWEST, Triage, triage
from settle.jobs.choose.verdict import Verdict, decide
from settle.jobs.choose.way import DECIDE, DOCUMENTS, TUNE, WITH_DOCUMENTS, Built, Failed, Measured, possible_ways
from settle.jobs.choose.ways import built, with_fact_tuned_again
from settle.jobs.choose.work import Work
from settle.library.resolve import resolve_gguf
from settle.retrieve.answer.retrieval import retrieve
from settle.retrieve.index.collection import Collection, collection_names

TRIAGE, CHANGED = "triage", "a changed fact"
RARE = 3  # examples of an answer of a closed set, below which nothing can be said of it


def choose(settings: ChooseSettings, events: Events) -> int:
    """Run the job; the exit code is 3 where nothing could be told. Raises SettleError."""
    if settings.ask is not None:
        return answer(str(settings.examples), settings.ask, settings.threads, events)
    if settings.model is None:
        raise UsageError("no model is named that answers", "settle choose rows.jsonl --model smollm2")
    with Stopping():
        try:
            return _choose(settings, settings.model, events)
        except KeyboardInterrupt:
            events.emit(Say(text="stopped; what is ready is kept, and the same command continues"))
            raise


def _choose(settings: ChooseSettings, name: str, events: Events) -> int:
    began = time.monotonic()
    task = named(settings.score) if settings.score else None  # an unknown score is refused before anything is read
    ref = resolve_gguf(name)
    examples = read_examples(settings.examples, settings.docs, settings.test_share, events)
    every = [*examples.train_cases, *examples.test]
    task = task or best_suited(every)
    say_what_can_be_seen(examples, task, settings.docs is not None, events)
    folder = ChoiceFolder.of(settings, ref, [[case.messages, case.reference] for case in every])
    events.emit(WorkStarted(what="choose", name=folder.name, path=str(folder.path)))
    with folder.lock(), ledger("choose") as connections, ModelInTurns(ref, threads=settings.threads) as model:
        connections.put_into(folder.path)
        longest = settings.max_tokens or folder.once("max_tokens", int, lambda: longest_answer(model, every))
        work = Work(settings, events, folder, model.limited(longest), examples, task)
        if settings.docs is None:
            return _measured(work, began)
        collection = folder.own_name("collection", f"choose-{folder.name}", collection_names())
        with Documents(collection, settings.docs, events) as documents:
            return _measured(with_documents(work, documents), began)


def _measured(work: Work, began: float) -> int:
    """Forecast, look, build, ask and decide; return the exit code."""
    settings, events, folder = work.settings, work.events, work.folder
    reads, train, test = work.documents is not None, len(work.examples.train), len(work.examples.test)
    possible = {way: way in WITH_DOCUMENTS for way in possible_ways(reads, bool(work.examples.labels))}

    with folder.timed("pace"):
        costs = measure_costs(work)
    looking = forecast_triage(costs, train, reads, work.examples.form is not None)
    expected = {TRIAGE: looking} | forecast(costs, train, test, possible)
    events.emit(Say(text=f"all of it takes about {duration(sum(expected.values()))}: {_parts(expected)}"))
    if settings.dry:
        removed = work.examples.removed
        events.emit(ResultReady(result={"folder": str(folder.path), "forecast": expected, "removed": removed}))
        return 0

    with folder.timed(TRIAGE):
        first = triage(
            work.examples,
            work.found_train,
            work.task,
            lambda setup, passages, cases: work.ask(TRIAGE, work.arm(setup, passages), cases),
            settings.seed,
        )
    say_triage(first, events)
    chosen = {way: reads for way, reads in possible.items() if settings.every or way not in first.ruled_out}
    left = forecast(costs.after(first.seconds, work.search_seconds), train, test, chosen)
    events.emit(Say(text=f"{', '.join(chosen)} can still win: about {duration(sum(left.values()))} more"))

    if any(chosen.values()):
        with folder.timed(DOCUMENTS):
            search_for_test(work)
    ways, failed = build_all(list(chosen), work)
    measured, outcome = ask_all(ways, failed, work)
    verdict = decide(outcome, settings.margin, work.task.is_share)
    measured[verdict.chosen] = tune_changed_fact(work, measured[verdict.chosen])

    took = actual_seconds(work, measured)
    times = {"forecast_seconds": expected, "forecast_after_triage": left, "actual_seconds": took}
    about = {**_about(work, time.monotonic() - began), **times}
    result = report.to_json(measured, failed, outcome, verdict, first, about)
    result["audit"] = network_record(folder.path, events)
    events.emit(Say(text=_forecast_and_actual(left, took)))
    return finish(work, measured, failed, verdict, result)


def tune_changed_fact(work: Work, chosen: Measured) -> Measured:
    """Return the way that is taken with what a changed fact really costs it, where that takes another tuning run."""
    if chosen.name not in (TUNE, DECIDE):
        return chosen
    text = f"{chosen.name} is tuned once more on examples of which one is changed: what a changed fact costs"
    work.events.emit(Say(text=text))
    try:
        with work.folder.timed(CHANGED):
            return replace(chosen, way=with_fact_tuned_again(work, chosen.way))
    except SettleError as e:
        work.events.emit(Warn(text=f"what a changed fact costs could not be measured: {e.what.splitlines()[0]}"))
        return chosen


def actual_seconds(work: Work, measured: Sequence[Measured]) -> dict[str, float]:
    """Return the seconds that each part took, over all sessions: building a way and its answers."""
    answers = {m.name: sum(reply.seconds for reply in m.replies) for m in measured}
    return {part: round(seconds + answers.get(part, 0.0), 1) for part, seconds in work.folder.spent().items()}


def _forecast_and_actual(left: Mapping[str, float], took: Mapping[str, float]) -> str:
    done = [way for way in left if way in took]
    expected, actual = sum(left[way] for way in done), sum(took[way] for way in done)
    parts = ", ".join(f"{way} {duration(took[way])} ({duration(left[way])})" for way in done)
    return f"the ways took {duration(actual)}, forecast {duration(expected)}: {parts}"


def build_all(names: Sequence[str], work: Work) -> tuple[list[Built], list[Failed]]:
    """Return the ways that could be built, and the others with the reason."""
    ways, failed = [], []
    for name in names:
        try:
            with work.folder.timed(name):
                ways.append(built(name, work))
        except SettleError as e:
            failed.append(Failed(name, e.what.splitlines()[0]))
            work.events.emit(Warn(text=f"{name} could not be built: {failed[-1].why}"))
    return ways, failed


def ask_all(ways: Sequence[Built], failed: list[Failed], work: Work) -> tuple[list[Measured], Outcome]:
    """Let all ways answer the test questions in turns.

    failed: gets those that could not. Raises DataError where none could.
    """
    examples, task = work.examples, work.task
    arms = [w.setup.over(w.model, w.name, work.found_test if w.name in WITH_DOCUMENTS else None) for w in ways]

    def race(names: Sequence[str]) -> Race:
        return Race(names, examples.families, task.is_share, ERROR_OF_WAYS, work.settings.seed, may_stop=False)

    finished = run_race(arms, examples.test, race, lambda r, c: score_of(task, r, c), work.events)
    failed += [Failed(name, error.what.splitlines()[0]) for name, error in finished.failures.items()]
    if finished.outcome is None:
        raise DataError("no way could be measured", "see the warnings above")
    known = work.folder.kept("peaks", dict[str, int]) or {}
    going = [way for way in ways if way.name not in finished.failures]
    measured = []
    for way, by_row in zip(going, finished.replies, strict=True):
        replies = [by_row[row] for row in range(len(examples.test))]
        scores = [score_of(task, reply, case) for reply, case in zip(replies, examples.test, strict=True)]
        known[way.name] = max(known.get(way.name, 0), way.model.process_peak)
        measured.append(Measured(way, scores, replies, known[way.name]))
    work.folder.keep("peaks", known)
    return measured, finished.outcome


def _parts(expected: dict[str, float]) -> str:
    return ", ".join(f"{name} {duration(seconds)}" for name, seconds in expected.items())


def with_documents(work: Work, documents: Documents) -> Work:
    """Add the documents to the work, and leave out test questions that they hold word for word.

    Raises DataError where nothing is left.
    """
    work.documents = documents
    work.index_seconds = work.folder.once("index_seconds", float, lambda: documents.build_seconds)
    events, examples = work.events, work.examples
    held = [case for case in examples.test if documents.holds_verbatim(case)]
    if held:
        work.examples = examples = examples.without(held)
        events.emit(Say(text=f"left out: {len(held)} test questions that the documents hold with their answers"))
        require_enough(examples, has_documents=True)
    work.found_train = Findings(examples.train_cases, documents)
    work.found_test = Findings(examples.test, documents)
    events.emit(Say(text=f"{documents.num_documents} documents, {documents.num_passages} passages"))
    return work


def search_for_test(work: Work) -> None:
    """Find the passages for all test questions, and say what the documents hold."""
    work.found_test.complete(work.events)
    holding = [found for found in work.found_test.values() if found.gold]
    text = f"the documents hold the answers to {len(holding)} of {len(work.found_test)} test questions"
    if holding:
        text += f", and the search finds {sum(found.is_found for found in holding)} of these"
    work.events.emit(Say(text=text))


def say_what_can_be_seen(examples: ExampleSet, task: Task, has_documents: bool, events: Events) -> None:
    """Say, before anything runs, what is left of the examples, and what so many can show.

    Raises DataError where that is nothing.
    """
    for reason, number in examples.removed.items():
        events.emit(Say(text=f"left out: {number} examples that {reason}"))
    wanted = [plain(case.reference) for case in (*examples.train_cases, *examples.test)]
    rare = [label for label in examples.labels if wanted.count(plain(label)) < RARE]
    if rare:
        shown = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        events.emit(Warn(text=f"fewer than {RARE} examples want {shown}: nothing can be said of how they are answered"))
    require_enough(examples, has_documents)
    visible = smallest_visible(len(set(examples.families)), _error(examples, has_documents))
    assert visible is not None
    text = f"{len(examples.train)} examples to build from, {len(examples.test)} locked away as a test"
    if examples.labels:
        text += f", a closed set of {len(examples.labels)} answers"
    events.emit(Say(text=f"{text}, scored by {task.title}"))
    events.emit(Say(text=f"a difference of {100 * visible:.0f} points or more would be seen in four cases of five"))


def require_enough(examples: ExampleSet, has_documents: bool) -> None:
    """Raise DataError where the examples are too few to show or to build anything."""
    families, error = len(set(examples.families)), _error(examples, has_documents)
    if smallest_visible(families, error) is None:
        needed = next(n for n in range(families, 1000) if smallest_visible(n, error) is not None)
        raise DataError(
            f"{families} independent test questions show no difference, not even between always and never right",
            f"give examples enough for {needed} test questions, or a larger --test-share",
        )
    if len(examples.train) < FEWEST:
        raise DataError(
            f"{len(examples.train)} examples are too few to build from", f"give {FEWEST} or more beside the test"
        )


def _error(examples: ExampleSet, has_documents: bool) -> float:
    """Return the error that each pair of ways has, were all of them compared."""
    ways = len(possible_ways(has_documents, bool(examples.labels)))
    return ERROR_OF_WAYS / (ways * (ways - 1) // 2)


def say_triage(first: Triage, events: Events) -> None:
    """Show the first look, and say its prediction."""
    table = [
        [name, f"{score:.2f}", "" if name not in first.gains else _gain(first, name)]
        for name, score in first.scores.items()
    ]
    title = f"a first look at {first.rows} training examples"
    events.emit(Listing(title=title, columns=("tried", "score", "gain (95 %)"), rows=table))
    events.emit(Say(text=f"{first.prediction} is expected to win: {first.why}"))
    for way, why in first.ruled_out.items():
        events.emit(Say(text=f"{way} cannot win: {why}"))


def _gain(first: Triage, name: str) -> str:
    value, low, high = first.gains[name].ends
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _about(work: Work, seconds: float) -> dict[str, object]:
    examples = work.examples
    return {
        "folder": str(work.folder.path),
        "model": work.settings.model,
        "measure": work.task.title,
        "margin": work.settings.margin,
        "train": len(examples.train),
        "test": len(examples.test),
        "test_families": len(set(examples.families)),
        "removed": dict(examples.removed),
        "labels": list(examples.labels),
        "seconds": round(seconds, 1),
    }


def finish(
    work: Work, measured: Sequence[Measured], failed: Sequence[Failed], verdict: Verdict, result: dict[str, object]
) -> int:
    """Write the page and the result, show the table, and return the exit code."""
    events, examples, is_share = work.events, work.examples, work.task.is_share
    table = report.rows(measured, verdict, examples.families, is_share)
    lines = [*verdict.notes, *(f"{f.name} could not be measured: {f.why}" for f in failed)]
    lines += [f"{m.name}: {m.way.about}" for m in measured if m.way.about]
    for m in measured:
        if m.unasked:
            lines.append(f"{m.unasked} test questions were too long for {m.name}, and count as not answered")
        if m.cut * 10 > len(m.replies):
            lines.append(f"{m.cut} of {len(m.replies)} answers of {m.name} were stopped for their length")
    lines.append(f"{work.task.title} on {len(examples.test)} test questions that nothing was built from")
    text = report.page(
        f"Which way for {work.folder.name}", table, result, lines, report.differing(measured, examples.test)
    )
    page = work.folder.path / "page.md"
    write_atomic(page, text)
    write_json(work.folder.path / RESULT, result)
    events.emit(Listing(columns=report.COLUMNS, rows=table))
    for line in (
        str(result["why"]),
        *lines,
        f"to make it ready: {result['command']}",
        f"the page: {page}",
    ):
        events.emit(Say(text=line))
    events.emit(ResultReady(result=result))
    return 0 if verdict.is_shown else 3


# --- a finished choice, put to use ---


def answer(name: str, question: str, threads: int | None, events: Events) -> int:
    """Answer one question exactly in the way that a choice took; return the exit code.

    Raises UsageError for an unknown choice.
    """
    folder = ChoiceFolder.finished(name)
    if not question.strip():
        raise UsageError("there is nothing to answer", f'settle choose {name} --ask "a question"')
    way = str(read_json(folder.path / RESULT)["chosen"])
    kept = folder.kept_way(way)
    passages: tuple[str, ...] = ()
    if kept.collection:
        with Collection(kept.collection) as collection:
            hits = retrieve(collection, question, k=PASSAGES).hits
            passages = tuple(hit.passage.embedded for hit in hits)
    model = _model(kept, threads)
    try:
        (reply,) = answers(kept.setup.over(model, way, {0: Found(passages)}), [asking(question)])
    finally:
        model.close()
    events.emit(AnswerText(text=f"{reply.text}\n"))
    events.emit(
        ResultReady(result={"question": question, "answer": reply.text, "way": way, "passages": list(passages)})
    )
    return 0 if reply.text else 3


def _model(kept: KeptWay, threads: int | None) -> AnsweringModel:
    if kept.labels:
        return DecisionModel(kept.ref, kept.labels, threads)
    return ModelInTurns(kept.ref, kept.max_tokens, threads)
