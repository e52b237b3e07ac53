"""What a model takes on this machine, and what candidates are asked that answer otherwise than in text."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

from settle.base.errors import SettleError
from settle.evaluate.compare.candidate import FileModel
from settle.evaluate.compare.cases import Case
from settle.evaluate.compare.compare import longest_answer
from settle.evaluate.footprint import Measured, peak_bytes
from settle.experiment.run import in_turn
from settle.jobs.pick.needs import Needs
from settle.jobs.pick.prompts import Prompts
from settle.library.reference import ModelRef

ROUNDS, PROMPTS, WRITTEN = 2, 3, 48  # rounds of so many prompts, with so many tokens written to each


@dataclass(frozen=True)
class Taken:
    """What a model takes.

    Attributes:
        peak_bytes: of the child's memory, with the cache of `context` tokens, which llama.cpp fills with zeros at once.
    """

    first_token: Measured  # seconds until it is there, at the user's prompts with nothing cached
    speed: Measured  # tokens written a second
    reading: Measured  # tokens read a second
    peak_bytes: int
    context: int
    tokens: int  # of the longest prompt
    longest_answer: int  # of nearly all wanted answers

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def together(cls, rounds: Sequence["Taken"]) -> "Taken":
        """Return several rounds as one: medians, with the least and most of all, and the highest peak."""

        def median(of: str) -> Measured:
            values: list[Measured] = [getattr(one, of) for one in rounds]
            return Measured(
                statistics.median(v.median for v in values), min(v.least for v in values), max(v.most for v in values)
            )

        peak = max(one.peak_bytes for one in rounds)
        return replace(
            rounds[-1],
            first_token=median("first_token"),
            speed=median("speed"),
            reading=median("reading"),
            peak_bytes=peak,
        )


def measure(
    refs: Sequence[ModelRef], cases: Sequence[Case], context: int, on_progress: Callable[[int], None]
) -> list[Taken | SettleError]:
    """Measure what each model takes that answers in text, as `in_turns`."""
    return in_turns(refs, lambda ref: _round(ref, cases, context), on_progress)


def in_turns(
    refs: Sequence[ModelRef], one_round: Callable[[ModelRef], Taken], on_progress: Callable[[int], None]
) -> list[Taken | SettleError]:
    """Measure what each model takes, in turns; return an error in place of one that could not be measured.

    on_progress: called with 1 after each turn.
    """
    rounds: list[list[Taken] | SettleError] = [[] for _ in refs]
    for number in range(ROUNDS):
        for i in in_turn(range(len(refs)), number):
            taken = rounds[i]
            if isinstance(taken, list):
                try:
                    taken.append(one_round(refs[i]))
                except SettleError as e:
                    rounds[i] = e
            on_progress(1)
    return [Taken.together(taken) if isinstance(taken, list) else taken for taken in rounds]


def _round(ref: ModelRef, cases: Sequence[Case], context: int) -> Taken:
    with FileModel.open(ref.weights, ref.name, ref.adapter, context, slots=1) as model:
        prompts = sorted((model.prompt(case) for case in cases), key=len)
        fitting = [prompt for prompt in prompts if len(prompt) < model.context] or [prompts[0][: model.context // 2]]
        # a short, a usual and a long one
        chosen = [fitting[(2 * i + 1) * len(fitting) // (2 * PROMPTS)] for i in range(PROMPTS)]
        model.timings(chosen[0][:8], 2)  # the first look at a mapped file reads it
        timings = [model.timings(p, min(WRITTEN, max(2, model.context - len(p)))) for p in chosen]
        return Taken(
            first_token=Measured.of([t["prompt_ms"] / 1e3 for t in timings]),
            # the first token comes out of reading the prompt
            speed=Measured.of([(t["predicted_n"] - 1) / t["predicted_ms"] * 1e3 for t in timings]),
            reading=Measured.of([t["prompt_n"] / t["prompt_ms"] * 1e3 for t in timings]),
            peak_bytes=peak_bytes(model.pid or 0),
            context=model.context,
            tokens=len(prompts[-1]),
            longest_answer=longest_answer(model, cases),
        )


class Exam(ABC):
    """Rows that every candidate answers, all of them, and the score of each row."""

    title: ClassVar[str]  # of the score
    noun: ClassVar[str]  # of its rows
    unit: ClassVar[str]  # what a second brings
    columns: ClassVar[Mapping[str, str]]  # names in the table where they differ
    tokens: ClassVar[int]  # of a text that is read whole, where none are asked for
    families: Sequence[int]  # the same number for rows that belong together
    given: int  # rows that the files hold

    @property
    @abstractmethod
    def beside(self) -> str:
        """Further facts about the rows, in a few words."""

    @abstractmethod
    def needs(self, context: int, must_take_it: bool, languages: frozenset[str], commercial: bool) -> Needs:
        """Return what it asks of a model."""

    @abstractmethod
    def takes(self, ref: ModelRef, tokens: int) -> Taken:
        """Measure one round of time and memory. Raises SettleError."""

    @abstractmethod
    def scores(self, ref: ModelRef, tokens: int) -> list[float]:
        """Return the score of every row, from 0 to 1. Raises SettleError."""

    @property
    def prompts(self) -> Prompts:
        """The rows as `pick` counts them."""
        return Prompts([], self.families, True, self.given)
