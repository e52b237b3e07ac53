"""settle choose: are a prompt, documents or tuning enough, measured on the user's own examples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from settle.audit.session import network_record
from settle.base.errors import DataError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, ResultReady, Say, Warn
from settle.base.files import read_json, write_atomic
from settle.base.words.amounts import duration
from settle.evaluate.compare.cases import asking
from settle.evaluate.compare.compare import longest_answer
from settle.evaluate.compare.sample_size import smallest_visible
from settle.evaluate.tasks import Task, best_suited, named, plain
from settle.experiment.race import ERROR_OF_WAYS, Race, pairs_json
from settle.experiment.run import run_race
from settle.jobs.choose.answerer import (
    DECIDE,
    DOCUMENTS,
    TUNE,
    WITH_DOCUMENTS,
    AnsweringModel,
    DecisionModel,
    Failed,
    Measured,
    ModelInTurns,
    Setup,
    answers,
    possible_ways,
)
from settle.jobs.choose.context import ChoiceFolder, ChooseContext, KeptWay
from settle.jobs.choose.documents import PASSAGES, Documents, Findings, Found
from settle.jobs.choose.examples import ExampleSet, read_examples
from settle.jobs.choose.forecast import Costs, forecast, forecast_triage
from settle.jobs.choose.prompts import choose_shots, score_of
from settle.jobs.choose.triage import FEWEST, SHOTS, Triage, triage
from settle.jobs.choose.verdict import COLUMNS, ChoiceResult, MeasuredWay, decide, differing, page, rows
from settle.jobs.choose.ways import built, forecast_seconds, tuning_recipe, with_fact_tuned_again
from settle.jobs.job import Job, end_dry
from settle.jobs.kept_work import RESULT, carry_out, stoppable
from settle.jobs.settings import ChooseSettings
from settle.library.reference import ModelRef
from settle.library.resolve import resolve_gguf
from settle.library.store import stamp_of
from settle.retrieve.answer.evidence import retrieve
from settle.retrieve.index.collection import Collection, collection_names

VERSION = 2  # of how a choice is made: another one begins anew
TRIAGE, CHANGED = "triage", "a changed fact"
RARE = 3  # examples of an answer of a closed set, below which nothing can be said of it
PACED = 3  # answers by which the pace is known, after a first one, which loads the model


def choose(settings: ChooseSettings, events: Events) -> int:
    """Run the job; the exit code is 3 where nothing could be told. Raises SettleError."""
    if settings.ask is not None:
        return answer(str(settings.examples), settings.ask, settings.threads, events)
    if settings.model is None:
        raise UsageError("no model is named that answers", "settle choose rows.jsonl --model smollm2")
    with stoppable("what is ready", events) as stopping:
        task = named(settings.score) if settings.score else None  # an unknown score is refused before anything is read
        ref = resolve_gguf(settings.model)
        examples = read_examples(settings.examples, settings.docs, settings.test_share, events)
        every = [*examples.train_cases, *examples.test]
        task = task or best_suited(every)
        say_what_can_be_seen(examples, task, settings.docs is not None, events)
        folder = choice_folder(settings, ref, [[case.messages, case.reference] for case in every])
        context = ChooseContext(folder, settings, events, stopping, ref=ref, examples=examples, task=task)
        return carry_out(JOB, context)


def choice_folder(settings: ChooseSettings, ref: ModelRef, rows: object) -> ChoiceFolder:
    """Return the folder that an earlier session began for the same examples, documents and model, or a new one."""
    files = [stamp_of(path) for path in (ref.weights, ref.adapter) if path is not None]
    asked = settings.model_dump(mode="json", exclude={"name", "dry", "threads", "examples"})
    usual_name = settings.examples.expanduser().resolve().stem
    return ChoiceFolder.of([VERSION, files, asked, rows], settings, settings.name, usual_name)


def model(c: ChooseContext) -> None:
    """Name the model that answers, with the limit of its answers; it is loaded when it is first asked."""
    whole = c.resources.enter_context(ModelInTurns(c.ref, threads=c.settings.threads))
    every = [*c.examples.train_cases, *c.examples.test]
    longest = c.settings.max_tokens or c.folder.once("max_tokens", int, lambda: longest_answer(whole, every))
    c.model = whole.limited(longest)


def documents(c: ChooseContext) -> None:
    """Index the documents, and leave out test questions that they hold word for word.

    Raises DataError where nothing is left.
    """
    if c.settings.docs is None:
        return
    collection = c.folder.own_name("collection", f"choose-{c.folder.name}", collection_names())
    held = c.documents = c.resources.enter_context(Documents(collection, c.settings.docs, c.events))
    c.index_seconds = c.folder.once("index_seconds", float, lambda: held.build_seconds)
    known = [case for case in c.examples.test if held.holds_verbatim(case)]
    if known:
        c.examples = c.examples.without(known)
        c.events.emit(Say(text=f"left out: {len(known)} test questions that the documents hold with their answers"))
        require_enough(c.examples, has_documents=True)
    c.found_train, c.found_test = (Findings(cases, held.find) for cases in (c.examples.train_cases, c.examples.test))
    c.events.emit(Say(text=f"{held.num_documents} documents, {held.num_passages} passages"))


def pace(c: ChooseContext) -> None:
    """Forecast how long the choice takes, by a few answers and a few steps of tuning."""
    with c.folder.timed("pace"):
        c.costs = c.folder.once("pace", Costs, lambda: _costs(c))
    train, has_form = len(c.examples.train), c.examples.form is not None
    looking = forecast_triage(c.costs, train, c.documents is not None, has_form)
    c.expected = {TRIAGE: looking} | forecast(c.costs, train, len(c.examples.test), _possible(c))
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in c.expected.items())
    c.events.emit(Say(text=f"all of it takes about {duration(sum(c.expected.values()))}: {parts}"))
    if c.settings.dry:
        end_dry(c, {"folder": str(c.folder.path), "forecast": c.expected, "removed": c.examples.removed})


def _costs(c: ChooseContext) -> Costs:
    examples, found = c.examples, c.found_train
    shots = choose_shots(examples.train_cases[PACED + 1 :], examples.labels, SHOTS)
    few = Setup(shots=tuple((case.question, case.reference) for case in shots))
    cases = examples.train_cases[: PACED + 1]
    plain = c.ask("pace", c.arm(Setup()), cases)[1:]
    read = c.ask("pace", c.arm(Setup(), found), cases[1:]) if found else plain
    taught = c.ask("pace", c.arm(few), cases[1:])
    tuning, steps = forecast_seconds(tuning_recipe(c, TUNE), c.events)
    return Costs(
        plain=_mean([reply.seconds for reply in plain]),
        with_examples=_mean([reply.seconds for reply in taught]),
        with_passages=_mean([reply.seconds for reply in read]),
        search=c.search_seconds,
        tuning=tuning,
        steps=steps,
        deciding=_deciding(c, tuning) if examples.labels else 0.0,
        longer=_mean([reply.read for reply in read]) / max(1.0, _mean([reply.read for reply in plain])),
    )


def _deciding(c: ChooseContext, tuning: float) -> float:
    """Forecast the seconds of tuning a decision; where it cannot be tuned, as the way itself will say, of the other."""
    try:
        return forecast_seconds(tuning_recipe(c, DECIDE), c.events)[0]
    except SettleError:
        return tuning


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _possible(c: ChooseContext) -> dict[str, bool]:
    """Return the ways that there are, and whether they read passages."""
    ways = possible_ways(c.documents is not None, bool(c.examples.labels))
    return {way: way in WITH_DOCUMENTS for way in ways}


def first_look(c: ChooseContext) -> None:
    """Try a few training examples in each setup, and leave out the ways that cannot win."""
    with c.folder.timed(TRIAGE):
        c.first = triage(
            c.examples,
            c.found_train,
            c.task,
            lambda setup, passages, cases: c.ask(TRIAGE, c.arm(setup, passages), cases),
            c.settings.seed,
        )
    _say_triage(c.first, c.events)
    chosen = {way: reads for way, reads in _possible(c).items() if c.settings.every or way not in c.first.ruled_out}
    costs = c.costs.after(c.first.seconds, c.search_seconds)
    c.left = forecast(costs, len(c.examples.train), len(c.examples.test), chosen)
    c.events.emit(Say(text=f"{', '.join(chosen)} can still win: about {duration(sum(c.left.values()))} more"))


def build(c: ChooseContext) -> None:
    """Build the ways that can still win; one that cannot be built is left out."""
    if any(way in WITH_DOCUMENTS for way in c.left):
        with c.folder.timed(DOCUMENTS):
            _search_for_test(c)
    for name in c.left:
        try:
            with c.folder.timed(name):
                c.ways.append(built(name, c))
        except SettleError as e:
            c.failed.append(Failed(name, e.what.splitlines()[0]))
            c.events.emit(Warn(text=f"{name} could not be built: {c.failed[-1].why}"))


def _search_for_test(c: ChooseContext) -> None:
    """Find the passages for all test questions, and say what the documents hold."""
    c.found_test.complete(c.events)
    holding = [found for found in c.found_test.values() if found.gold]
    text = f"the documents hold the answers to {len(holding)} of {len(c.found_test)} test questions"
    if holding:
        text += f", and the search finds {sum(found.is_found for found in holding)} of these"
    c.events.emit(Say(text=text))


def ask(c: ChooseContext) -> None:
    """Let all ways answer the test questions in turns, and decide. Raises DataError where none could."""
    examples, task = c.examples, c.task
    arms = [w.setup.over(w.model, w.name, c.found_test if w.name in WITH_DOCUMENTS else None) for w in c.ways]

    def race(names: Sequence[str]) -> Race:
        return Race(names, examples.families, task.is_share, ERROR_OF_WAYS, c.settings.seed, may_stop=False)

    finished = run_race(arms, examples.test, race, lambda reply, case: score_of(task, reply, case), c.events)
    c.failed += [Failed(name, error.what.splitlines()[0]) for name, error in finished.failures.items()]
    if finished.outcome is None:
        raise DataError("no way could be measured", "see the warnings above")
    known = c.folder.kept("peaks", dict[str, int]) or {}
    going = [way for way in c.ways if way.name not in finished.failures]
    c.measured = []
    for way, by_row in zip(going, finished.replies, strict=True):
        replies = [by_row[row] for row in range(len(examples.test))]
        scores = [score_of(task, reply, case) for reply, case in zip(replies, examples.test, strict=True)]
        known[way.name] = max(known.get(way.name, 0), way.model.process_peak)
        c.measured.append(Measured(way, scores, replies, known[way.name]))
    c.folder.keep("peaks", known)
    c.outcome = finished.outcome
    c.verdict = decide(c.outcome, c.settings.margin, task.is_share)


def changed_fact(c: ChooseContext) -> None:
    """Measure what a changed fact really costs the way that is taken, where that takes another tuning run."""
    chosen = c.measured[c.verdict.chosen]
    if chosen.name not in (TUNE, DECIDE):
        return
    text = f"{chosen.name} is tuned once more on examples of which one is changed: what a changed fact costs"
    c.events.emit(Say(text=text))
    try:
        with c.folder.timed(CHANGED):
            c.measured[c.verdict.chosen] = replace(chosen, way=with_fact_tuned_again(c, chosen.way))
    except SettleError as e:
        c.events.emit(Warn(text=f"what a changed fact costs could not be measured: {e.what.splitlines()[0]}"))


def result(c: ChooseContext) -> None:
    """Write the page and the result, and show the table."""
    table = rows(c.measured, c.verdict, c.examples.families, c.task.is_share)
    lines, made = _notes(c), _result(c)
    c.events.emit(Say(text=_forecast_and_actual(c.left, made.actual_seconds)))
    path = c.folder.path / "page.md"
    write_atomic(path, page(c.folder.name, made, table, lines, differing(c.measured, c.examples.test)))
    c.folder.finish(made)
    c.events.emit(Listing(columns=COLUMNS, rows=table))
    for line in (made.why, *lines, f"to make it ready: {made.command}", f"the page: {path}"):
        c.events.emit(Say(text=line))
    c.events.emit(ResultReady(result=made.model_dump(mode="json")))
    c.exit_code = 0 if c.verdict.is_shown else 3


def _notes(c: ChooseContext) -> list[str]:
    """Return what to know about the figures."""
    lines = [*c.verdict.notes, *(f"{f.name} could not be measured: {f.why}" for f in c.failed)]
    lines += [f"{m.name}: {m.way.about}" for m in c.measured if m.way.about]
    for m in c.measured:
        if m.unasked:
            lines.append(f"{m.unasked} test questions were too long for {m.name}, and count as not answered")
        if m.cut * 10 > len(m.replies):
            lines.append(f"{m.cut} of {len(m.replies)} answers of {m.name} were stopped for their length")
    return [*lines, f"{c.task.title} on {len(c.examples.test)} test questions that nothing was built from"]


def _result(c: ChooseContext) -> ChoiceResult:
    examples, verdict, chosen = c.examples, c.verdict, c.measured[c.verdict.chosen]
    unknown = " and ".join(f.name for f in c.failed)
    return ChoiceResult(
        folder=str(c.folder.path),
        model=c.settings.model,
        measure=c.task.title,
        margin=c.settings.margin,
        train=len(examples.train),
        test=len(examples.test),
        test_families=len(set(examples.families)),
        removed=examples.removed,
        labels=examples.labels,
        seconds=round(c.spending.seconds, 1),
        forecast_seconds=c.expected,
        forecast_after_triage=c.left,
        actual_seconds=c.actual_seconds(),
        chosen=chosen.name,
        verdict="take" if verdict.is_shown else "cannot tell",
        why=verdict.sentence + (f"; nothing is known of {unknown}, which could not be measured" if unknown else ""),
        notes=verdict.notes,
        more_rows=verdict.more,
        command=chosen.way.command,
        triage=c.first,
        triage_agrees=c.first.prediction == chosen.name,
        ways=[MeasuredWay.of(m) for m in c.measured],
        failed=c.failed,
        pairs=pairs_json(c.outcome, "rows"),
        audit=network_record(c.folder.path, c.events),
    )


def _forecast_and_actual(left: Mapping[str, float], took: Mapping[str, float]) -> str:
    done = [way for way in left if way in took]
    expected, actual = sum(left[way] for way in done), sum(took[way] for way in done)
    parts = ", ".join(f"{way} {duration(took[way])} ({duration(left[way])})" for way in done)
    return f"the ways took {duration(actual)}, forecast {duration(expected)}: {parts}"


JOB = Job("choose", (model, documents, pace, first_look, build, ask, changed_fact, result))


# --- before anything runs ---


def say_what_can_be_seen(examples: ExampleSet, task: Task, has_documents: bool, events: Events) -> None:
    """Say what is left of the examples, and what so many can show.

    Raises DataError where that is nothing.
    """
    for reason, number in examples.removed.items():
        events.emit(Say(text=f"left out: {number} examples that {reason}"))
    wanted = [plain(case.reference) for case in (*examples.train_cases, *examples.test)]
    rare = [label for label in examples.labels if wanted.count(plain(label)) < RARE]
    if rare:
        shown = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        events.emit(Warn(text=f"fewer than {RARE} examples want {shown}: nothing can be said of how they are answered"))
    visible = require_enough(examples, has_documents)
    text = f"{len(examples.train)} examples to build from, {len(examples.test)} locked away as a test"
    if examples.labels:
        text += f", a closed set of {len(examples.labels)} answers"
    events.emit(Say(text=f"{text}, scored by {task.title}"))
    events.emit(Say(text=f"a difference of {100 * visible:.0f} points or more would be seen in four cases of five"))


def require_enough(examples: ExampleSet, has_documents: bool) -> float:
    """Return the smallest difference that would be seen.

    Raises DataError where the examples are too few to show or to build anything.
    """
    ways = len(possible_ways(has_documents, bool(examples.labels)))
    error = ERROR_OF_WAYS / (ways * (ways - 1) // 2)  # of each pair of ways, were all of them compared
    families = len(set(examples.families))
    visible = smallest_visible(families, error)
    if visible is None:
        needed = next(n for n in range(families, 1000) if smallest_visible(n, error) is not None)
        raise DataError(
            f"{families} independent test questions show no difference, not even between always and never right",
            f"give examples enough for {needed} test questions, or a larger --test-share",
        )
    if len(examples.train) < FEWEST:
        raise DataError(
            f"{len(examples.train)} examples are too few to build from", f"give {FEWEST} or more beside the test"
        )
    return visible


def _say_triage(first: Triage, events: Events) -> None:
    """Show the first look, and say its prediction."""
    table = []
    for name, score in first.scores.items():
        value, low, high = first.gains[name].ends if name in first.gains else (0.0, 0.0, 0.0)
        gain = f"{value:+.2f} ({low:+.2f} to {high:+.2f})" if name in first.gains else ""
        table.append([name, f"{score:.2f}", gain])
    title = f"a first look at {first.rows} training examples"
    events.emit(Listing(title=title, columns=("tried", "score", "gain (95 %)"), rows=table))
    events.emit(Say(text=f"{first.prediction} is expected to win: {first.why}"))
    for way, why in first.ruled_out.items():
        events.emit(Say(text=f"{way} cannot win: {why}"))


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
