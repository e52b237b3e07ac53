"""Decisions as people ask for them: about one text, or about the rows of a table, which is written with the answers."""

import json
import math
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError, EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Progress, ResultReady, Say, Warn
from settle.base.files import read_bounded
from settle.base.statistics import wilson
from settle.base.visible import visible_line
from settle.data.decisions.answers import Answer, ranked
from settle.data.decisions.questions import Question
from settle.data.decisions.risk import CLAIMED, Refusal, least_risk, refusal_for
from settle.data.decisions.split import UNTRAINED_SHARE
from settle.infer.decisions.decider import Decider
from settle.infer.decisions.tables import Row, Table, read_table
from settle.library.resolve import resolve_gguf

SHOWN = 5  # options of an answer
TOGETHER = 4  # rows that are decided at the same time
PROBABILITY, MEAN = "_probability", "_mean"  # ends of the names of columns
LEAST_SHOWN = 0.005  # probability below which an option is left out


@dataclass(frozen=True)
class Asking:
    """questions: a file of them, None for those that the model was tuned for. risk: so many answers are refused that at
    most this share of the others is wrong; None refuses none."""

    questions: Path | None = None
    risk: float | None = None


@dataclass(frozen=True)
class Decided:
    """The answers to one state by the names of their questions, and the names of those that are refused."""

    answers: Mapping[str, Answer]
    refused: frozenset[str]

    def to_json(self) -> dict[str, object]:
        return {name: {**answer.to_json(), "refused": name in self.refused} for name, answer in self.answers.items()}


class DecisionSession:
    """A decision model that runs, and what is asked of it. Raises SettleError."""

    def __init__(self, decider: Decider, asking: Asking, events: Events) -> None:
        own = {name: Question.from_json(q, name) for name, q in decider.keys.questions.items()}
        self.questions = read_questions(asking.questions) if asking.questions else own
        if not self.questions:
            raise UsageError(f"{decider.path.name} does not say what it decides", "give --questions FILE")
        self._decider, self.columns = decider, decider.keys.columns
        self.is_own = set(self.questions.values()) <= set(own.values())
        if not self.is_own:
            if asking.risk is not None:
                raise UsageError(
                    f"{decider.path.name} was tuned for other questions: the risk of its answers is not known",
                    "leave out --refuse-above-risk, or --questions",
                )
            text = f"{decider.path.name} was tuned for other questions: its probabilities are not calibrated for these"
            events.emit(Warn(text=text))
        self.refusal = self._refusal(asking.risk) if asking.risk is not None else None

    def decide(self, state: object) -> Decided:
        """Raises DataError, EngineError."""
        answers = dict(zip(self.questions, self._decider.decide(state, list(self.questions.values())), strict=True))
        refusal = self.refusal
        is_refused = (name for name, a in answers.items() if refusal is not None and refusal.refuses(a.highest))
        return Decided(answers, frozenset(is_refused))

    def _refusal(self, risk: float) -> Refusal:
        """Raises UsageError where no threshold can be vouched for."""
        keys, name = self._decider.keys, self._decider.path.name
        if not keys.families:
            raise UsageError(
                f"{name} does not hold the rows by which a risk can be promised: an older settle wrote it, or another "
                "program",
                "tune it again, or leave out --refuse-above-risk and read the probabilities",
            )
        refusal = refusal_for(risk, keys.confidences, keys.correct, keys.families)
        if refusal.independent < refusal.needed:
            rows = f"{refusal.independent:.0f}" + (" unlike ones" if refusal.independent < refusal.rows else "")
            raise UsageError(
                f"a risk of {risk:.1%} takes {refusal.needed} rows that trained nothing, and {name} has {rows}",
                f"allow a risk of {math.ceil(100 * least_risk(refusal.independent))}% or more, or tune on about "
                f"{math.ceil(refusal.needed / UNTRAINED_SHARE):,} rows in all",
            )
        return refusal

    @property
    def columns_of_answers(self) -> list[str]:
        """What a table gets beside its own columns."""
        more = {"score": (PROBABILITY, MEAN)}
        ends = [(name, more.get(question.type, (PROBABILITY,))) for name, question in self.questions.items()]
        return [column for name, own in ends for column in (name, *(name + end for end in own))] + ["error"]

    def alive(self) -> bool:
        """Whether llama.cpp still runs."""
        return self._decider.alive()

    @property
    def evidence(self) -> str | None:
        """What refusing above the risk was worth on the rows that trained nothing."""
        keys, refusal = self._decider.keys, self.refusal
        if refusal is None:
            return None
        if refusal.threshold is None:
            return (
                f"everything is refused: of the {refusal.rows} rows that trained nothing even the surest are wrong "
                f"too often to promise a risk of {refusal.risk:.1%}"
            )
        answered = [i for i, confidence in enumerate(keys.confidences) if not refusal.refuses(confidence)]
        share = wilson([not keys.correct[i] for i in answered], [keys.families[i] for i in answered])
        return (
            f"answers below {refusal.threshold:.3f} are refused: of the {refusal.rows} rows that trained nothing "
            f"{len(answered) / refusal.rows:.0%} are as sure, and {share.value:.1%} of these are wrong "
            f"({share.low:.1%} to {share.high:.1%}); among new texts like them, more than {refusal.risk:.1%} are with "
            f"a chance of at most {CLAIMED:.0%}"
        )


def read_questions(path: Path) -> dict[str, Question]:
    """The questions of a JSON file: one, or an object of them by name. Raises UsageError, DataError."""
    try:
        value = json.loads(read_bounded(path))
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", "give a file of questions") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is no JSON: {str(e)[:100]}", "write the questions as JSON") from None
    if isinstance(value, Mapping) and "instructions" in value:
        return {path.stem: Question.from_json(value, path.stem)}
    if not isinstance(value, Mapping) or not value:
        raise UsageError(f"{path} holds no questions", 'write {"NAME": {"type": …, "instructions": …, "criteria": …}}')
    return {str(name): Question.from_json(question, str(name)) for name, question in value.items()}


def decide(
    name: str,
    text: str | None,
    asking: Asking,
    events: Events,
    rows: Path | None = None,
    out: Path | None = None,
    context: int | None = None,
) -> int:
    """Decides about `text`, about what stdin holds, or about each row of the table `rows`; returns the exit code: 3
    where every answer is refused. out: a file for the table with the answers, stdout when None. Raises SettleError."""
    if rows and text is not None:
        raise UsageError("a text and --rows are given", "leave one of them out")
    table = read_table(rows, sys.stdin.buffer) if rows else None
    if table is None and text in (None, "-"):
        if sys.stdin.isatty():
            raise UsageError("there is no text to decide about", f"settle decide {name} 'some text', or text on stdin")
        text = sys.stdin.read()
    if table is None and not (text or "").strip():
        raise UsageError("the text to decide about is empty", "give some text")
    model = resolve_gguf(name)
    with Decider(model.weights, context, slots=TOGETHER) as decider:
        session = DecisionSession(decider, asking, events)
        if table:
            return _decide_rows(session, table, out, events)
        decided = session.decide(text)
    for line in _lines(decided):
        events.emit(AnswerText(text=line + "\n"))
    _say_evidence(session, events)
    events.emit(ResultReady(result={"model": model.name, "answers": decided.to_json()}))
    return 3 if len(decided.refused) == len(decided.answers) else 0


def _decide_rows(session: DecisionSession, table: Table, out: Path | None, events: Events) -> int:
    """Writes the table with a column for each answer, its probability, and what went wrong."""

    def result(state: object) -> Decided | str:
        try:
            return session.decide(state) if state is not None else "no values"
        except (DataError, EngineError) as e:
            if not session.alive():
                raise
            return e.what

    total, answered, broken, problem = len(table.rows), 0, 0, ""
    with ThreadPoolExecutor(TOGETHER) as pool, table.writer(out, session.columns_of_answers, events) as write:
        results = pool.map(result, table.states(session.columns))
        for number, (row, decided) in enumerate(zip(table.rows, results, strict=True), 1):
            if isinstance(row, str) or isinstance(decided, str):
                error = row if isinstance(row, str) else str(decided)
                broken, problem = broken + 1, problem or error
                write({} if isinstance(row, str) else row, {"error": error})
            else:
                answered += len(decided.refused) < len(decided.answers)
                write(row, _cells(decided))
            events.emit(Progress(what="decide", done=number, total=total, unit="rows"))
    if broken:
        events.emit(Warn(text=f"{broken} of {total} rows were not decided: {problem}"))
    refused = total - broken - answered
    if refused:
        events.emit(Say(text=f"{refused} of {total} rows were refused: no answer was sure enough"))
    _say_evidence(session, events)
    figures = {"rows": total, "answered": answered, "refused": refused, "failed": broken}
    events.emit(ResultReady(result=figures | ({"file": str(out)} if out else {})))
    return 0 if answered else 3


def _cells(decided: Decided) -> Row:
    """The columns that a row gets: of a refused answer, only the probability."""
    cells: dict[str, object] = {}
    for name, answer in decided.answers.items():
        cells[name] = None if name in decided.refused else answer.name_of(answer.best)
        cells[name + PROBABILITY] = round(answer.highest, 4)
        if answer.question.type == "score":
            cells[name + MEAN] = round(answer.expected, 3)
    return cells


def _lines(decided: Decided) -> Iterator[str]:
    """One line a question, the likeliest options first."""
    for name, answer in decided.answers.items():
        options = answer.question.options
        shown = [i for i in ranked(answer) if answer.probabilities[i] >= LEAST_SHOWN][:SHOWN]
        words = [(answer.name_of(i), answer.probabilities[i]) for i in shown]
        line = " · ".join(f"{visible_line(word)} {share:.2f}" for word, share in words)
        line += " · …" if len(shown) < len(options) else ""
        head = f"{visible_line(name)}: " if len(decided.answers) > 1 else ""
        yield f"{head}{'refused, too unsure: ' if name in decided.refused else ''}{line}"


def _say_evidence(session: DecisionSession, events: Events) -> None:
    if session.evidence:
        events.emit(Say(text=session.evidence))
