"""The pick job: prompts · who can · who is measured · what each takes · who answers best · verdict."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from settle.audit import session
from settle.base.amounts import count
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, Progress, ResultReady, Say, Warn, WorkStarted
from settle.base.files import home, write_json
from settle.base.run import free_name
from settle.base.stop_signals import Stopping
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, best_suited, named
from settle.experiment.arm import ModelArm, Reply
from settle.experiment.race import Outcome, Race
from settle.experiment.run import run_race
from settle.jobs.pick import ledger, report
from settle.jobs.pick.candidates import (
    Candidate,
    Excluded,
    feasible,
    fetched,
    known_candidates,
    named_candidates,
    shortlist,
)
from settle.jobs.pick.decisions import read_decisions
from settle.jobs.pick.embedders import read_search
from settle.jobs.pick.exam import ROUNDS, Exam, in_turns, measure
from settle.jobs.pick.needs import Needs, asks_for_decisions, asks_for_vectors, languages_in, needs_turns
from settle.jobs.pick.predict import note_measured
from settle.jobs.pick.prompts import Prompts, read_prompts
from settle.jobs.pick.settings import PickSettings
from settle.jobs.pick.verdict import Measured, Verdict, decide
from settle.library.deletion import confirm
from settle.machine.measurement_cache import others_are_busy

UNANSWERED_TOKENS = 256  # of an answer, where none is wanted that says how long one is
USUAL_CONTEXT = 4096  # tokens, or what the model knows, where none are asked for
TOGETHER = 1.6  # times as fast as one by one, several answers at a time on a processor


@dataclass(frozen=True)
class Asked:
    """What the candidates are asked, and how answers are scored.

    Attributes:
        title: of the score, "" where nothing says what is right.
    """

    prompts: Prompts
    task: Task | None  # None there, and where an `exam` takes its place
    needs: Needs
    max_tokens: int | None
    exam: Exam | None = None

    @property
    def title(self) -> str:
        return self.exam.title if self.exam else self.task.title if self.task else ""

    @property
    def is_share(self) -> bool:
        return self.task is None or self.task.is_share


def pick(settings: PickSettings, events: Events) -> int:
    """Run the job; the exit code is 3 where no model is recommended. Raises SettleError."""
    if settings.ledger:
        ledger.show(events)
        return 0
    with Stopping(), session.ledger("pick"):
        try:
            return _pick(settings, events)
        except KeyboardInterrupt:
            events.emit(Say(text="stopped; what was measured is kept, and the same command continues"))
            raise


def _pick(settings: PickSettings, events: Events) -> int:
    asked = what_is_asked(settings, events)
    candidates, excluded = who_can(settings, asked.needs)
    chosen, not_fetched = _with_consent(candidates, asked.needs, settings.yes, events)
    _show_excluded([*excluded, *not_fetched], events)
    if not chosen:
        raise UsageError("no model is left to choose from", "name some with --models, or allow downloads with --yes")
    for candidate in chosen:
        if candidate.prediction:
            events.emit(Say(text=f"{candidate.name} is expected to take {candidate.prediction.summary}"))
    race = Race([c.name for c in chosen], asked.prompts.families, asked.is_share)
    _say_what_can_be_seen(race, asked, events)
    events.emit(WorkStarted(what="pick", name=settings.task or "pick"))
    measured = what_it_takes(chosen, asked, events)
    outcome = None
    if measured and asked.exam:
        outcome = who_passes_best(measured, asked.exam, asked.needs, events)
    elif measured and asked.task:
        outcome = who_answers_best(measured, asked, events)
    return _finish(settings, measured, outcome, asked, events)


def what_is_asked(settings: PickSettings, events: Events) -> Asked:
    """Return the prompts, how answers to them are scored, and what they ask of a model."""
    task = named(settings.score) if settings.score else None  # an unknown score is refused before anything is read
    if settings.prompts is None:
        raise UsageError("no prompts are given to measure with", "give some as people will ask them: --prompts FILE")
    if asks_for_vectors(settings.task):
        return _exam_asked(settings, read_search(settings.prompts, settings.limit))
    if asks_for_decisions(settings.task):
        return _exam_asked(settings, read_decisions(settings.prompts, settings.limit))
    context = count(settings.context) if settings.context else USUAL_CONTEXT
    prompts = read_prompts(settings.prompts, settings.limit, events)
    if task is None and prompts.are_answered:
        task = best_suited(prompts.cases)
    if task is None:
        text = "no right answers are given: speed and memory are measured, and no model is recommended"
        events.emit(Warn(text=f"{text}; give the wanted answer beside each prompt, or --score FILE.py"))
    tokens = settings.max_tokens or (None if prompts.are_answered else UNANSWERED_TOKENS)
    cases = prompts.cases
    needs = Needs(
        context=context,
        must_take_it=settings.context is not None,
        languages=languages_in(settings.task),
        tools=any(case.tools for case in cases),
        turns=needs_turns(cases),
        letters=int(statistics.median(sum(len(str(m["content"])) for m in case.messages) for case in cases)),
        commercial=settings.commercial,
        speed=settings.speed,
    )
    return Asked(prompts, task, needs, tokens)


def _exam_asked(settings: PickSettings, exam: Exam) -> Asked:
    """Return what candidates are asked that answer otherwise than in text."""
    if settings.score or settings.speed:
        raise UsageError(
            f"they are scored by {exam.title} and write no tokens", "leave out --score and --speed for this task"
        )
    context = count(settings.context) if settings.context else exam.tokens
    languages = languages_in(settings.task)
    needs = exam.needs(context, settings.context is not None, languages, settings.commercial)
    return Asked(exam.prompts, None, needs, None, exam)


def who_can(settings: PickSettings, needs: Needs) -> tuple[list[Candidate], list[Excluded]]:
    """Return the candidates that are measured, and the others with the reason."""
    if settings.models:
        able, unable = feasible(named_candidates(settings.models), needs)
        return able, unable
    known, broken = known_candidates()
    able, unable = feasible(known, needs)
    chosen, rest = shortlist(able)
    return chosen, [*broken, *unable, *rest]


def _with_consent(
    candidates: Sequence[Candidate], needs: Needs, yes: bool, events: Events
) -> tuple[list[Candidate], list[Excluded]]:
    """Return the candidates on this machine, after downloads that the user agreed to; and what was not downloaded."""
    here, missing = [], []
    for candidate in candidates:
        if candidate.is_here:
            here.append(candidate)
            continue
        what = f"{candidate.name}: {candidate.num_bytes / 1e6:,.0f} MB, {candidate.where}"
        if candidate.prediction:
            what += f", expected to take {candidate.prediction.summary}"
        can_ask = sys.stdin.isatty() and sys.stderr.isatty()
        if not yes and not (can_ask and confirm(f"download {what}?")):
            missing.append(Excluded(candidate.name, f"it is not on this machine ({what}); --yes downloads it"))
            continue
        events.emit(Say(text=f"downloading {what}"))
        try:
            here += feasible([fetched(candidate, events)], needs)[0]
        except SettleError as e:
            missing.append(Excluded(candidate.name, f"it could not be downloaded: {e}"))
    return here, missing


def _show_excluded(excluded: Sequence[Excluded], events: Events) -> None:
    for one in excluded:
        events.emit(Say(text=f"{one.name} is left out: {one.why}"))


def _say_what_can_be_seen(race: Race, asked: Asked, events: Events) -> None:
    """Say, before anything runs, what so many prompts can show."""
    prompts = asked.prompts
    given = len(prompts.families)
    number = f"{given} {asked.exam.noun if asked.exam else 'prompts'}"
    number += f" of {prompts.given}" if prompts.given > given else ""
    if (kinds := len(set(prompts.families))) < given:
        number += f", {kinds} of them not alike"
    number += f", {asked.exam.beside}" if asked.exam else ""
    if not asked.title or len(race.names) < 2:
        events.emit(Say(text=f"{number}; models: {', '.join(race.names)}"))
        return
    visible = race.smallest_visible
    if visible is None:
        text = "too few to show any difference: give 12 or more that are not alike"
    elif asked.is_share:
        text = f"a difference of {100 * visible:.0f} points or more would be seen in four cases of five"
    else:
        text = "nobody drops out before the end, since this score has no bounds"
    events.emit(Say(text=f"{number}, scored by {asked.title}: {text}"))


def what_it_takes(candidates: Sequence[Candidate], asked: Asked, events: Events) -> list[Measured]:
    """Measure time, speed and memory of each; leave out those that fail or are too slow, and note the others."""
    done, total = 0, ROUNDS * len(candidates)

    def on_progress(number: int) -> None:
        nonlocal done
        done += number
        events.emit(Progress(what="measuring speed and memory", done=done, total=total))

    refs = [c.ref for c in candidates if c.ref is not None]
    measured = []
    busy = others_are_busy()
    exam, context = asked.exam, asked.needs.context
    if exam:
        taken_by_all = in_turns(refs, lambda ref: exam.takes(ref, context), on_progress)
    else:
        taken_by_all = measure(refs, asked.prompts.cases, context, on_progress)
    if busy := busy or others_are_busy():
        events.emit(Warn(text="other programs keep this machine busy, so answers would be faster than was measured"))
    for candidate, taken in zip(candidates, taken_by_all, strict=True):
        if isinstance(taken, SettleError):
            events.emit(Warn(text=f"{candidate.name} could not be measured: {taken.what.splitlines()[0]}"))
            continue
        if candidate.prediction is not None:
            note_measured(candidate.name, candidate.prediction, taken, busy)
        if asked.needs.speed and taken.speed.most < asked.needs.speed:
            speed = f"{taken.speed.median:.1f} tokens/s were measured, and {asked.needs.speed:g} are asked for"
            events.emit(Say(text=f"{candidate.name} is left out: {speed}"))
            continue
        measured.append(Measured(candidate, taken))
        if taken.tokens >= taken.context and not exam:
            text = f"the longest prompt has {taken.tokens:,} tokens, which {candidate.name} is not asked"
            events.emit(Warn(text=f"{text}; --context {taken.tokens + taken.longest_answer} makes room for it"))
    return measured


def who_answers_best(measured: list[Measured], asked: Asked, events: Events) -> Outcome:
    """Let all candidates answer the prompts in turns, until nothing more can be shown.

    measured: gets the scores, and loses those that fail. Raises SettleError where all of them do.
    """
    assert asked.task is not None
    task, cases = asked.task, asked.prompts.cases
    max_tokens = asked.max_tokens or max(m.taken.longest_answer for m in measured)
    context = min(asked.needs.context, max(m.taken.tokens for m in measured) + max_tokens)
    arms = []
    for m in measured:
        seconds = m.taken.first_token.median + max_tokens / m.taken.speed.median
        assert m.candidate.ref is not None
        arms.append(ModelArm(m.candidate.ref, context, max_tokens, m.name, seconds / TOGETHER))

    def race(names: Sequence[str]) -> Race:
        return Race(names, asked.prompts.families, task.is_share)

    def score(reply: Reply, case: Case) -> float:
        return task.score(reply.text, case) if reply.asked else 0.0

    finished = run_race(arms, cases, race, score, events)
    outcome = finished.outcome
    if outcome is None:
        raise finished.failures[measured[0].name]
    going = [m for m in measured if m.name not in finished.failures]
    measured[:] = [
        Measured(m.candidate, m.taken, mean, asked, sum(not reply.ended for reply in replies.values()))
        for m, mean, asked, replies in zip(going, outcome.means, outcome.asked, finished.replies, strict=True)
    ]
    return outcome


def who_passes_best(measured: list[Measured], exam: Exam, needs: Needs, events: Events) -> Outcome:
    """Let all candidates answer all rows, which takes little time. measured: gets the scores."""
    race = Race([m.name for m in measured], exam.families)
    scores = {}
    for k, m in enumerate(measured):
        events.emit(Progress(what="answers", done=k, total=len(measured), detail=m.name))
        assert m.candidate.ref is not None
        scores[k] = exam.scores(m.candidate.ref, needs.context)
    events.emit(Progress(what="answers", done=len(measured), total=len(measured)))
    rows = race.next_rows(len(exam.families))
    race.record({k: [of[row] for row in rows] for k, of in scores.items()})
    outcome = race.outcome()
    for k, m in enumerate(measured):
        measured[k] = Measured(m.candidate, m.taken, outcome.means[k], outcome.asked[k])
    return outcome


def _finish(
    settings: PickSettings, measured: Sequence[Measured], outcome: Outcome | None, asked: Asked, events: Events
) -> int:
    is_share, exam = asked.is_share, asked.exam
    verdict = decide(measured, outcome, asked.title, is_share)
    folder = home() / "picks"
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder / free_name(settings.task or "pick", [p.name for p in folder.iterdir()])
    folder.mkdir()
    result = report.to_json(measured, outcome, verdict, asked.title) | {"task": settings.task, "folder": str(folder)}
    with session.ledger("pick") as connections:
        connections.put_into(folder)
    result["audit"] = session.network_record(folder, events)
    picture = report.draw(
        measured, verdict, asked.title, is_share, folder / "pareto.png", exam.unit if exam else "tokens"
    )
    write_json(folder / "result.json", result)
    columns = [exam.columns.get(name, name) if exam else name for name in report.COLUMNS]
    events.emit(Listing(columns=columns, rows=report.rows(measured, verdict, is_share)))
    _say_verdict(verdict, outcome, measured, events)
    if picture is not None:
        events.emit(Say(text=f"{picture} shows speed against quality"))
    events.emit(ResultReady(result=result))
    return 0 if verdict.chosen is not None else 3


def _say_verdict(verdict: Verdict, outcome: Outcome | None, measured: Sequence[Measured], events: Events) -> None:
    events.emit(Say(text=verdict.sentence))
    for note in verdict.notes:
        events.emit(Say(text=note))
    if outcome is not None and outcome.why:
        events.emit(Say(text=f"{outcome.saved:.0%} of the answers were not needed: {outcome.why}"))
    for m in measured:
        if m.cut * 10 > m.asked:
            text = f"{m.cut} of {m.asked} answers of {m.name} were stopped for their length"
            events.emit(Warn(text=f"{text}; that is a limit and no mistake: --max-tokens allows longer ones"))
