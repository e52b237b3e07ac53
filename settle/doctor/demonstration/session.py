"""Lessons as a user asks for them: each on their own model, with its numbers."""

from collections.abc import Iterator, Sequence

from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, Progress, ResultReady
from settle.doctor.demonstration.lesson_model import LessonModel
from settle.doctor.demonstration.measure_lesson import LessonResult, measure_lesson
from settle.doctor.lessons import Lesson
from settle.library.resolve import resolve

DRAWS = 12
SHOWN_CHARACTERS = 400  # of a prompt: its end


def all_lessons() -> list[Lesson]:
    """Every lesson in its order."""
    return sorted((lesson() for lesson in Lesson.parts().values()), key=lambda lesson: lesson.number)


def lessons(name: str, wanted: str | None, events: Events, draws: int = DRAWS, seed: int = 0) -> int:
    """Measure one lesson, or all, on the model `name`, and show them; return the exit code.

    wanted: a lesson's name or number. Raises SettleError.
    """
    chosen = [_named(wanted)] if wanted else all_lessons()
    results = []
    for result in measured(name, chosen, draws, seed, events):
        results.append(result)
        for line in _lines(result, is_long=bool(wanted)):
            events.emit(AnswerText(text=line + "\n"))
    events.emit(Progress(what="lessons", done=len(chosen), total=len(chosen), unit="lessons"))
    events.emit(_table(results, name))
    events.emit(ResultReady(result={"model": name, "seed": seed, "lessons": [one.to_json() for one in results]}))
    return 0


def measured(
    name: str, chosen: Sequence[Lesson], draws: int = DRAWS, seed: int = 0, events: Events | None = None
) -> Iterator[LessonResult]:
    """Measure lessons on the model `name`, one after the other. Raises SettleError."""
    with LessonModel(resolve(name)) as model:
        for done, lesson in enumerate(chosen):
            if events:
                events.emit(Progress(what=lesson.title, done=done, total=len(chosen), unit="lessons"))
            yield measure_lesson(lesson, model, draws, seed)


def _named(wanted: str) -> Lesson:
    """Return the lesson of a name or number. Raises UsageError naming the nearest."""
    by_number = {str(lesson.number): lesson for lesson in all_lessons()}
    return by_number[wanted] if wanted in by_number else Lesson.part(wanted.replace("-", "_"))()


def _lines(result: LessonResult, is_long: bool) -> Iterator[str]:
    yield f"{result.number}. {result.title}"
    yield result.why
    yield f"A: {result.works}. B: {result.breaks}. Measured: the probability of {result.answer}."
    if result.example and is_long:
        for side, prompt, written in zip("AB", result.example.prompts, result.example.written, strict=True):
            yield f"\n{side} ──────────\n{_end_of(prompt)}"
            yield f"{side} wanted: {result.example.answer.strip()} · it continues: {written.strip() or 'nothing'}"
        yield ""
    yield f"{result.verdict}\n"


def _end_of(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else "… " + text[-SHOWN_CHARACTERS:]


def _table(results: list[LessonResult], name: str) -> Listing:
    rows: list[list[object]] = []
    for one in results:
        if one.lacking:
            rows.append([f"{one.number}. {one.title}", "–", "–", "–", "–", "not measured"])
            continue
        a, b = one.probabilities
        share = f"{sum(one.wins)} of {len(one.sides)}"
        interval = f"{100 * one.share.low:.0f} – {100 * one.share.high:.0f} %"
        shown = {True: "shown", False: "the opposite", None: "not shown"}[one.is_shown]
        rows.append([f"{one.number}. {one.title}", percent(a), percent(b), share, interval, shown])
    columns = ["lesson", "A", "B", "A works better", "95 % interval", ""]
    note = "A and B: the probability of one token of the answer, the median of the draws."
    return Listing(title=name, columns=columns, rows=rows, note=note)


def percent(probability: float) -> str:
    """Three digits that count."""
    return f"{100 * probability:.3g} %"
