"""Decisions as people ask for them: about one text, or about the rows of a table, which is written with the answers."""

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from settle.base.errors import DataError, EngineError, UsageError
from settle.base.event_log import Events
from settle.base.events import AnswerText, Progress, ResultReady, Say, Warn
from settle.base.files import read_object
from settle.base.statistics import wilson
from settle.base.visible import visible_line
from settle.data.decisions.calibration import CLAIMED, Refusal, least_risk, refusal_for
from settle.data.decisions.corpus import UNTRAINED_SHARE
from settle.data.decisions.questions import DecisionAnswer, Question, ranked
from settle.data.decisions.rows import LabelColumn
from settle.infer.child_process import Json
from settle.infer.decider import Decider
from settle.infer.table import Row, Table, read_table
from settle.library.resolve import resolve_gguf

SHOWN = 5  # options of an answer
TOGETHER = 4  # rows that are decided at the same time
PROBABILITY, MEAN = "_probability", "_mean"  # ends of the names of columns
LEAST_SHOWN = 0.005  # probability below which an option is left out
STATE = "state"  # column of what is decided about
_ANY = Question("noul", "", ())


def _states(table: Table, columns: Sequence[str]) -> Iterator[object]:
    """Yield what is decided about in each row.

    Its `state`, or those columns that the model was tuned on, or its only one; None for a row that has no values.
    Raises DataError for a table that lacks columns.
    """
    present = table.columns
    wanted = [STATE] if STATE in present else list(columns) or present
    missing = [name for name in wanted if name not in present]
    if missing and len(present) > 1:
        raise DataError(
            f"the model was tuned on the column {missing[0]!r}, and the rows have {', '.join(present[:8])}",
            "rename the columns, or give each row its text as `state`",
        )
    wanted = present if missing else wanted
    if len(wanted) > 1 and not columns:
        raise DataError(
            f"the model does not say which of the columns {', '.join(present[:8])} it reads",
            "give each row its text as `state`, or one column alone",
        )
    reading = LabelColumn("", _ANY, tuple(wanted))
    for row in table.rows:
        if row.problem:
            yield None
        else:
            yield row.values.get(STATE) if wanted == [STATE] else reading.state(row.values)


@dataclass(frozen=True)
class Asking:
    """What is asked of a decision model.

    questions: a file of them, None for those that the model was tuned for. risk: so many answers are refused that at
    most this share of the others is wrong; None refuses none.
    """

    questions: Path | None = None
    risk: float | None = None


@dataclass(frozen=True)
class Decided:
    """The answers to one state by the names of their questions, and the names of those that are refused."""

    answers: Mapping[str, DecisionAnswer]
    refused: frozenset[str]

    def to_json(self) -> Json:
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
        """Decide about a state. Raises DataError, EngineError."""
        answers = dict(zip(self.questions, self._decider.decide(state, list(self.questions.values())), strict=True))
        refused = [name for name, answer in answers.items() if self.refusal and self.refusal.refuses(answer.highest)]
        return Decided(answers, frozenset(refused))

    def _refusal(self, risk: float) -> Refusal:
        """Fit the refusals. Raises UsageError where no threshold can be vouched for."""
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
        """Return whether llama.cpp still runs."""
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
    """Read the questions of a JSON file: one, or an object of them by name. Raises UsageError, DataError."""
    value = read_object(path, 'questions: {"NAME": {"type": …, "instructions": …, "criteria": …}}')
    if "instructions" in value:
        return {path.stem: Question.from_json(value, path.stem)}
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
    """Decide about `text`, about what stdin holds, or about each row of the table `rows`; return the exit code.

    It is 3 where every answer is refused. out: a file for the table with the answers, stdout when None. Raises
    SettleError.
    """
    if rows and text is not None:
        raise UsageError("a text and --rows are given", "leave one of them out")
    table = read_table(rows) if rows else None
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
    """Write the table with a column for each answer, its probability, and what went wrong."""

    def result(state: object) -> tuple[Decided | None, str]:
        try:
            return (session.decide(state), "") if state is not None else (None, "no values")
        except (DataError, EngineError) as e:
            if not session.alive():
                raise
            return None, e.what

    total, answered, broken, problem = len(table.rows), 0, 0, ""
    with (
        ThreadPoolExecutor(TOGETHER) as pool,
        table.writer(out, session.columns_of_answers, "decided", events) as write,
    ):
        results = pool.map(result, _states(table, session.columns))
        for number, (row, (decided, error)) in enumerate(zip(table.rows, results, strict=True), 1):
            if decided is None:
                error = row.problem or error
                broken, problem = broken + 1, problem or error
                write(row.values, {"error": error})
            else:
                answered += len(decided.refused) < len(decided.answers)
                write(row.values, _cells(decided))
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
    """Return the columns that a row gets: of a refused answer, only the probability."""
    cells: Json = {}
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
