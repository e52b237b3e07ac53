"""settle pick: which model for a task on this machine, measured on the user's own prompts."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from settle.audit.session import ledger, network_record
from settle.base.amounts import count
from settle.base.errors import SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Listing, Progress, ResultReady, Say, Warn
from settle.evaluate.compare.cases import Case
from settle.evaluate.tasks import Task, best_suited, named
from settle.experiment.arm import ModelArm, Reply
from settle.experiment.race import Outcome, Race
from settle.experiment.run import run_race
from settle.jobs.job import Context, Job
from settle.jobs.kept_work import KeptFolder, carry_out, stoppable
from settle.jobs.pick.candidates import (
    Candidate,
    Excluded,
    feasible,
    fetched,
    known_candidates,
    named_candidates,
    shortlist,
)
from settle.jobs.pick.exam import ROUNDS, Exam, Taken, in_turns, read_decisions, read_search, text_round
from settle.jobs.pick.predict import note_measured, show_ledger
from settle.jobs.pick.prompts import (
    Needs,
    Prompts,
    asks_for_decisions,
    asks_for_vectors,
    languages_in,
    needs_turns,
    read_prompts,
)
from settle.jobs.pick.verdict import COLUMNS, Measured, PickResult, decide, draw, rows
from settle.jobs.settings import PickSettings
from settle.library.deletion import confirm
from settle.library.reference import ModelRef
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


class PickFolder(KeptFolder):
    """A pick on the disk; a finished one stays as it is, and the same command begins another."""

    parent: ClassVar[str] = "picks"
    what: ClassVar[str] = "pick"

    @property
    def is_open(self) -> bool:
        return self.status == "interrupted"


@dataclass
class PickContext(Context):
    """What the stages of a pick make, in the order in which they make it."""

    folder: PickFolder
    settings: PickSettings
    asked: Asked = field(kw_only=True)
    candidates: Sequence[Candidate] = field(kw_only=True)
    measured: list[Measured] = field(default_factory=list)
    outcome: Outcome | None = None  # None where nothing says what a right answer is


def pick(settings: PickSettings, events: Events) -> int:
    """Run the job; the exit code is 3 where no model is recommended. Raises SettleError."""
    if settings.ledger:
        show_ledger(events)
        return 0
    with stoppable("what was measured", events) as stopping, ledger("pick"):
        asked = what_is_asked(settings, events)
        able, excluded = who_can(settings, asked.needs)
        chosen, not_fetched = _with_consent(able, asked.needs, settings.yes, events)
        for one in (*excluded, *not_fetched):
            events.emit(Say(text=f"{one.name} is left out: {one.why}"))
        if not chosen:
            raise UsageError(
                "no model is left to choose from", "name some with --models, or allow downloads with --yes"
            )
        for candidate in chosen:
            if candidate.prediction:
                events.emit(Say(text=f"{candidate.name} is expected to take {candidate.prediction.summary}"))
        say_what_can_be_seen(Race([c.name for c in chosen], asked.prompts.families, asked.is_share), asked, events)
        about = settings.model_dump(mode="json", exclude={"yes", "ledger", "threads"})
        folder = PickFolder.of(about, settings, None, settings.task or "pick")
        return carry_out(JOB, PickContext(folder, settings, events, stopping, asked=asked, candidates=chosen))


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


def say_what_can_be_seen(race: Race, asked: Asked, events: Events) -> None:
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


def takes(c: PickContext) -> None:
    """Measure time, speed and memory of each; leave out those that fail or are too slow, and note the others."""
    asked, exam, context = c.asked, c.asked.exam, c.asked.needs.context
    done, total = 0, ROUNDS * len(c.candidates)

    def on_progress(number: int) -> None:
        nonlocal done
        done += number
        c.events.emit(Progress(what="measuring speed and memory", done=done, total=total))

    def one_round(ref: ModelRef) -> Taken:
        return exam.takes(ref, context) if exam else text_round(ref, asked.prompts.cases, context)

    was_busy = others_are_busy()
    taken_by_all = in_turns([candidate.model for candidate in c.candidates], one_round, on_progress)
    if busy := was_busy or others_are_busy():
        c.events.emit(Warn(text="other programs keep this machine busy, so answers would be faster than was measured"))
    for candidate, taken in zip(c.candidates, taken_by_all, strict=True):
        if isinstance(taken, SettleError):
            c.events.emit(Warn(text=f"{candidate.name} could not be measured: {taken.what.splitlines()[0]}"))
            continue
        if candidate.prediction is not None:
            note_measured(candidate.name, candidate.prediction, taken, busy)
        if asked.needs.speed and taken.speed.most < asked.needs.speed:
            speed = f"{taken.speed.median:.1f} tokens/s were measured, and {asked.needs.speed:g} are asked for"
            c.events.emit(Say(text=f"{candidate.name} is left out: {speed}"))
            continue
        c.measured.append(Measured(candidate, taken))
        if taken.tokens >= taken.context and not exam:
            text = f"the longest prompt has {taken.tokens:,} tokens, which {candidate.name} is not asked"
            c.events.emit(Warn(text=f"{text}; --context {taken.tokens + taken.longest_answer} makes room for it"))


def answers(c: PickContext) -> None:
    """Let all candidates answer, where something says what is right. Raises SettleError where all of them fail."""
    if c.measured and c.asked.exam:
        _pass_exam(c, c.asked.exam)
    elif c.measured and c.asked.task:
        _race(c, c.asked.task)


def _race(c: PickContext, task: Task) -> None:
    """Let all candidates answer the prompts in turns, until nothing more can be shown."""
    prompts, measured = c.asked.prompts, c.measured
    max_tokens = c.asked.max_tokens or max(m.taken.longest_answer for m in measured)
    context = min(c.asked.needs.context, max(m.taken.tokens for m in measured) + max_tokens)
    arms = []
    for m in measured:
        seconds = m.taken.first_token.median + max_tokens / m.taken.speed.median
        arms.append(ModelArm(m.candidate.model, context, max_tokens, m.name, seconds / TOGETHER))

    def race(names: Sequence[str]) -> Race:
        return Race(names, prompts.families, task.is_share)

    def score(reply: Reply, case: Case) -> float:
        return task.score(reply.text, case) if reply.asked else 0.0

    finished = run_race(arms, prompts.cases, race, score, c.events)
    outcome = c.outcome = finished.outcome
    if outcome is None:
        raise finished.failures[measured[0].name]
    going = [m for m in measured if m.name not in finished.failures]
    c.measured = [
        Measured(m.candidate, m.taken, mean, asked, sum(not reply.ended for reply in replies.values()))
        for m, mean, asked, replies in zip(going, outcome.means, outcome.asked, finished.replies, strict=True)
    ]


def _pass_exam(c: PickContext, exam: Exam) -> None:
    """Let all candidates answer all rows, which takes little time."""
    race, scores = Race([m.name for m in c.measured], exam.families), {}
    for k, m in enumerate(c.measured):
        c.events.emit(Progress(what="answers", done=k, total=len(c.measured), detail=m.name))
        scores[k] = exam.scores(m.candidate.model, c.asked.needs.context)
    c.events.emit(Progress(what="answers", done=len(c.measured), total=len(c.measured)))
    rows = race.next_rows(len(exam.families))
    race.record({k: [of[row] for row in rows] for k, of in scores.items()})
    outcome = c.outcome = race.outcome()
    c.measured = [replace(m, score=outcome.means[k], asked=outcome.asked[k]) for k, m in enumerate(c.measured)]


def result(c: PickContext) -> None:
    """Decide, draw the picture, write the result and show the table."""
    is_share, exam, title = c.asked.is_share, c.asked.exam, c.asked.title
    verdict = decide(c.measured, c.outcome, title, is_share)
    picture = c.folder.path / "pareto.png"
    more = {"task": c.settings.task, "folder": str(c.folder.path), "audit": network_record(c.folder.path, c.events)}
    made = PickResult.of(c.measured, c.outcome, verdict, title).model_copy(update=more)
    is_drawn = draw(c.measured, verdict, title, is_share, picture, exam.unit if exam else "tokens")
    c.folder.finish(made)
    columns = [exam.columns.get(name, name) if exam else name for name in COLUMNS]
    c.events.emit(Listing(columns=columns, rows=rows(c.measured, verdict, is_share)))
    for text in (verdict.sentence, *verdict.notes):
        c.events.emit(Say(text=text))
    if c.outcome is not None and c.outcome.why:
        c.events.emit(Say(text=f"{c.outcome.saved:.0%} of the answers were not needed: {c.outcome.why}"))
    for m in c.measured:
        if m.cut * 10 > m.asked:
            text = f"{m.cut} of {m.asked} answers of {m.name} were stopped for their length"
            c.events.emit(Warn(text=f"{text}; that is a limit and no mistake: --max-tokens allows longer ones"))
    if is_drawn:
        c.events.emit(Say(text=f"{picture} shows speed against quality"))
    c.events.emit(ResultReady(result=made.model_dump(mode="json")))
    c.exit_code = 0 if verdict.chosen is not None else 3


JOB = Job("pick", (takes, answers, result))
