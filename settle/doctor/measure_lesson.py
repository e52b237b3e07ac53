"""A lesson measured: some A and B drawn by rule, the probability of each answer, and how often A is the one that works.

The draws come from a seed, never from what the model makes of them.
"""

import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from settle.base.event_log import Events
from settle.base.events import AnswerText, Listing, Progress, ResultReady
from settle.base.statistics import Interval, wilson
from settle.doctor.lesson_model import Case, LessonModel
from settle.doctor.lessons import Lesson
from settle.infer.next_token import GREEDY, Sampler
from settle.library.resolve import resolve
from settle.wire.types import JsonObject

SHOWN_TOKENS = 300  # of a prompt: its end
WRITTEN_TOKENS = 8  # more than the answer has


@dataclass(frozen=True)
class Side:
    """An answer as the model holds it."""

    logprob: float  # natural, of the whole answer
    tokens: int  # of the answer
    is_likeliest: bool  # whether each of them is the likeliest token in its place

    @property
    def probability(self) -> float:
        """Probability of one of its tokens: the geometric mean."""
        return math.exp(self.logprob / self.tokens)


@dataclass(frozen=True)
class Example:
    """The first draw, for people. prompts, written: of A and of B; written: what the model continues with by itself."""

    prompts: tuple[str, str]
    answer: str
    written: tuple[str, str]


@dataclass(frozen=True)
class LessonResult:
    """What a model shows of a lesson."""

    lesson: Lesson
    lacking: str = ""  # why it was not measured
    example: Example | None = None
    sides: Sequence[tuple[Side, Side]] = ()  # A and B of every draw

    @property
    def wins(self) -> list[bool]:
        """Draw by draw, whether A is the one that works."""
        return [(a.logprob < b.logprob) if self.lesson.wants_low else (a.logprob > b.logprob) for a, b in self.sides]

    @property
    def share(self) -> Interval:
        """Share of draws in which A is the one that works, with a 95 % interval."""
        return wilson(self.wins)

    @property
    def probabilities(self) -> tuple[float, float]:
        """Probability of a token of the answer, in A and in B: the median of the draws."""
        one, other = zip(*[(a.probability, b.probability) for a, b in self.sides], strict=True)
        return statistics.median(one), statistics.median(other)

    @property
    def right(self) -> tuple[int, int]:
        """In how many draws of A and of B the model writes the answer by itself."""
        return sum(a.is_likeliest for a, _ in self.sides), sum(b.is_likeliest for _, b in self.sides)

    @property
    def is_shown(self) -> bool | None:
        """Whether the model shows it: A works better beyond chance. False where B does, None where it is open."""
        if self.lacking:
            return None
        return True if self.share.low > 0.5 else False if self.share.high < 0.5 else None

    @property
    def verdict(self) -> str:
        """What the numbers say, in a sentence or two, also where they do not show what the lesson is about."""
        if self.lacking:
            return f"Not measured: {self.lacking}."
        number = len(self.sides)
        counted = f"in {sum(self.wins)} of {number} draws"
        if self.is_shown:
            text = f"Your model shows it: A works better than B {counted}."
        elif self.is_shown is False:
            text = f"Your model shows the opposite: A works better than B only {counted}."
        else:
            text = f"Your model does not show it beyond chance: A works better than B {counted}."
        if not self.lesson.has_rank or self.lesson.wants_low:
            return text
        one, other = self.right
        if one == other == number:
            return f"{text} It gets both right every time: only how sure it is differs."
        if not one and not other:
            return f"{text} It gets neither right by itself: only how unlikely the answer is differs."
        return f"{text} By itself it writes the answer {one} times in A and {other} times in B."

    def to_json(self) -> JsonObject:
        about = ("number", "title", "why", "works", "breaks", "answer", "wants_low")
        values: JsonObject = {"name": self.lesson.part_name(), **{name: getattr(self.lesson, name) for name in about}}
        values |= {"lacking": self.lacking, "verdict": self.verdict, "is_shown": self.is_shown}
        if self.lacking or self.example is None:
            return values
        figures = {"draws": len(self.sides), "wins": sum(self.wins), "share": asdict(self.share)}
        figures |= {"probabilities": self.probabilities, "right": self.right if self.lesson.has_rank else None}
        sides = [[{**asdict(side), "probability": side.probability} for side in pair] for pair in self.sides]
        return values | figures | {"example": asdict(self.example), "sides": sides}


def measure_lesson(lesson: Lesson, model: LessonModel, draws: int, seed: int = 0) -> LessonResult:
    """Measure a lesson on a model. draws: how many A and B. Raises SettleError."""
    if lacking := lesson.lacking(model):
        return LessonResult(lesson, lacking)
    drawn = random.Random(f"{lesson.part_name()} {seed}")
    pairs = [lesson.draw(model, drawn) for _ in range(draws)]
    longest = max(len(case.ids) + len(case.answer) for pair in pairs for case in pair) + WRITTEN_TOKENS
    if longest > model.reader.context:
        lacking = f"it takes {longest} tokens, and the model has a context of {model.reader.context}"
        return LessonResult(lesson, lacking)
    sides = [(measure_case(model, one), measure_case(model, other)) for one, other in pairs]
    one, other = pairs[0]
    prompts, written = (_shown(model, one), _shown(model, other)), (_written(model, one), _written(model, other))
    return LessonResult(lesson, "", Example(prompts, model.reader.shown_text(one.answer), written), sides)


def measure_case(model: LessonModel, case: Case) -> Side:
    """How likely the model holds the answer of a case."""
    first = len(case.ids)
    positions = model.positions([*case.ids, *case.answer], first, case.is_small)
    logprobs = positions.logprobs[:-1].astype(float)
    if case.temperature != 1.0:
        pairs = enumerate(logprobs.tolist())
        logprobs = np.array([positions.at(at).tempered(logprob, case.temperature) for at, logprob in pairs])
    return Side(float(logprobs.sum()), len(case.answer), bool((positions.ranks[:-1] == 1).all()))


def _shown(model: LessonModel, case: Case) -> str:
    return ("… " if len(case.ids) > SHOWN_TOKENS else "") + model.reader.shown_text(case.ids[-SHOWN_TOKENS:])


def _written(model: LessonModel, case: Case) -> str:
    """Let the model continue a case, with a random draw where the lesson is about that."""
    sampler = GREEDY if case.temperature == 1.0 else Sampler(case.temperature)
    reader = model.small if case.is_small else model.reader
    return reader.shown_text(reader.write(case.ids, len(case.answer) + WRITTEN_TOKENS, sampler))


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
    lesson = result.lesson
    yield f"{lesson.number}. {lesson.title}"
    yield lesson.why
    yield f"A: {lesson.works}. B: {lesson.breaks}. Measured: the probability of {lesson.answer}."
    if result.example and is_long:
        for side, prompt, written in zip("AB", result.example.prompts, result.example.written, strict=True):
            end = prompt if len(prompt) <= SHOWN_CHARACTERS else "… " + prompt[-SHOWN_CHARACTERS:]
            yield f"\n{side} ──────────\n{end}"
            yield f"{side} wanted: {result.example.answer.strip()} · it continues: {written.strip() or 'nothing'}"
        yield ""
    yield f"{result.verdict}\n"


def _table(results: list[LessonResult], name: str) -> Listing:
    rows: list[list[object]] = []
    for one in results:
        title = f"{one.lesson.number}. {one.lesson.title}"
        if one.lacking:
            rows.append([title, "–", "–", "–", "–", "not measured"])
            continue
        a, b = one.probabilities
        share = f"{sum(one.wins)} of {len(one.sides)}"
        interval = f"{100 * one.share.low:.0f} – {100 * one.share.high:.0f} %"
        shown = {True: "shown", False: "the opposite", None: "not shown"}[one.is_shown]
        rows.append([title, percent(a), percent(b), share, interval, shown])
    columns = ["lesson", "A", "B", "A works better", "95 % interval", ""]
    note = "A and B: the probability of one token of the answer, the median of the draws."
    return Listing(title=name, columns=columns, rows=rows, note=note)


def percent(probability: float) -> str:
    """Three digits that count."""
    return f"{100 * probability:.3g} %"
