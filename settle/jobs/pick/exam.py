"""What a model takes on this machine, and exams: rows that are answered by a label or by vectors, and not in text.

Legend: Q questions, P passages, W width of a vector.
"""

import functools
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.base.errors import DataError, SettleError
from settle.data.decisions.rows import DecisionRow, decision_rows
from settle.data.layouts import Example
from settle.data.pairs import Pair, read_pairs
from settle.data.split import row_families
from settle.evaluate.compare.candidate import FileModel
from settle.evaluate.compare.cases import Case, spread
from settle.evaluate.compare.compare import longest_answer
from settle.evaluate.footprint import Measured, peak_bytes
from settle.experiment.run import in_turn
from settle.infer.decider import Decider
from settle.infer.engine import VectorEngine
from settle.jobs.pick.prompts import Needs, Prompts, placed_rows
from settle.library.reference import ModelRef
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.embedders.gguf import Gguf

ROUNDS, PROMPTS, WRITTEN = 2, 3, 48  # rounds of so many prompts, with so many tokens written to each
MOST_PASSAGES = 2000  # that a question is searched in: those that answer, and others evenly spread
TIMED = 8  # rows of a round, one after the other


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


def text_round(ref: ModelRef, cases: Sequence[Case], context: int) -> Taken:
    """Measure one round of a model that answers in text. Raises SettleError."""
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


# --- decisions ---


@dataclass(frozen=True)
class Decisions(Exam):
    """Rows of a question about a state each, with the share of every option."""

    title: ClassVar[str] = "accuracy"
    noun: ClassVar[str] = "rows"
    unit: ClassVar[str] = "decisions"
    columns: ClassVar[dict[str, str]] = {
        "prompts": "rows", "first token, s": "a decision, s", "tokens/s": "decisions/s",
    }  # fmt: skip
    tokens: ClassVar[int] = 2048

    rows: Sequence[DecisionRow]
    families: Sequence[int]
    given: int

    @property
    def beside(self) -> str:
        return f"{' or '.join(map(str, sorted({len(row.target) for row in self.rows})))} options"

    def needs(self, context: int, must_take_it: bool, languages: frozenset[str], commercial: bool) -> Needs:
        letters = int(statistics.median(len(row.state) for row in self.rows))
        return Needs(context, must_take_it, languages, letters=letters, decides=True, commercial=commercial)

    def takes(self, ref: ModelRef, tokens: int) -> Taken:
        with Decider(ref.weights, tokens, slots=1) as decider:
            timed = spread(list(self.rows), TIMED)
            decider.decide(timed[0].state, [timed[0].question])  # the first look at a mapped file reads it
            seconds = [_seconds(functools.partial(decider.decide, row.state, [row.question])) for row in timed]
            letters = sum(len(row.state) for row in timed)
            return Taken(
                first_token=Measured.of(seconds),
                speed=Measured.of([len(timed) / sum(seconds)]),
                reading=Measured.of([letters / sum(seconds)]),
                peak_bytes=peak_bytes(decider.pid or 0),
                context=tokens,
                tokens=0,
                longest_answer=1,
            )

    def scores(self, ref: ModelRef, tokens: int) -> list[float]:
        """Return by row the share that the target gives to the option that is likeliest to the model."""
        with Decider(ref.weights, tokens) as decider:
            return [row.target[decider.decide(row.state, [row.question])[0].best] for row in self.rows]


def read_decisions(path: Path, limit: int) -> Decisions:
    """Read the labelled rows of a file or folder, at most `limit`, evenly spread. Raises DataError."""
    if not path.expanduser().exists():
        raise DataError(f"there is no file or folder {path}", "check the path given to --prompts")
    rows = decision_rows(list(placed_rows(path)))
    asked = spread(rows, limit)
    examples = [
        Example("chat", [{"role": "user", "content": row.state}, {"role": "assistant", "content": ""}], single=True)
        for row in asked
    ]
    return Decisions(asked, row_families(examples), len(rows))


# --- search ---


@dataclass(frozen=True)
class Search(Exam):
    """Questions (Q), passages (P), and by question the passages that answer it."""

    title: ClassVar[str] = "reciprocal rank"
    noun: ClassVar[str] = "questions"
    unit: ClassVar[str] = "passages"
    columns: ClassVar[dict[str, str]] = {
        "prompts": "questions", "first token, s": "a question, s", "tokens/s": "passages/s",
    }  # fmt: skip
    tokens: ClassVar[int] = 512

    questions: Sequence[str]
    passages: Sequence[str]
    answers: Sequence[frozenset[int]]
    families: Sequence[int]
    given: int

    @property
    def beside(self) -> str:
        return f"{len(self.passages):,} passages"

    def needs(self, context: int, must_take_it: bool, languages: frozenset[str], commercial: bool) -> Needs:
        letters = int(statistics.median(map(len, self.passages)))
        return Needs(context, must_take_it, languages, letters=letters, vectors=True, commercial=commercial)

    def takes(self, ref: ModelRef, tokens: int) -> Taken:
        """Measure the seconds of one question, and the passages a second, in llama.cpp."""
        with _opened(ref, tokens) as vectorizer:
            texts = [next(iter(vectorizer.parts(text))) for text in spread(list(self.passages), TIMED)]
            asked = [next(iter(vectorizer.parts(text))) for text in spread(list(self.questions), TIMED)]
            lengths, most = vectorizer.count(texts), vectorizer.most
        with VectorEngine(ref.weights, tokens) as engine:
            engine.embed(asked[:1])  # the first look at a mapped file reads it
            seconds = [_seconds(functools.partial(engine.embed, [text])) for text in asked]
            taken = _seconds(functools.partial(engine.embed, texts))
            return Taken(
                first_token=Measured.of(seconds),
                speed=Measured.of([len(texts) / taken]),
                reading=Measured.of([sum(lengths) / taken]),
                peak_bytes=peak_bytes(engine.pid or 0),
                context=most,
                tokens=max(lengths),
                longest_answer=0,
            )

    def scores(self, ref: ModelRef, tokens: int) -> list[float]:
        """Return by question (Q) one over the place of the first passage that answers it.

        Passages that are as near share the places. A long passage is as near as its nearest part.
        """
        with _opened(ref, tokens) as vectorizer:
            questions = np.stack([vectorizer.query(text) for text in self.questions])  # (Q, W)
            parts = [list(vectorizer.parts(text)) for text in self.passages]
            vectors = vectorizer.documents([part for of in parts for part in of])
        begin = np.cumsum([0, *(len(of) for of in parts[:-1])])
        nearness = np.maximum.reduceat(questions @ vectors.T, begin, axis=1)  # (Q, P)
        ranks = []
        for row, right in zip(nearness, self.answers, strict=True):
            best = row[list(right)].max()
            others = np.delete(row, list(right))
            ranks.append(1 / (1 + (others > best).sum() + (others == best).sum() / 2))
        return [float(rank) for rank in ranks]


def read_search(path: Path, limit: int) -> Search:
    """Read the questions of a file or folder, at most `limit`, evenly spread, and all its passages.

    Raises DataError for rows that are no pairs, and where nothing could be told apart.
    """
    if not path.expanduser().exists():
        raise DataError(f"there is no file or folder {path}", "check the path given to --prompts")
    pairs = read_pairs([str(path.expanduser())])
    by_question: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_question.setdefault(_plain(pair.question), []).append(pair)
    answered = [rows for rows in by_question.values() if any(pair.answers for pair in rows)]
    asked = spread(answered, limit)
    passages = _passages(pairs, {_plain(p.passage) for rows in asked for p in rows if p.answers})
    if not asked or len(passages) < 2:
        raise DataError(
            f"{path} holds {len(asked)} questions with an answer and {len(passages)} passages",
            "give rows of a question and the passage that answers it, of two different passages or more",
        )
    place = {_plain(text): number for number, text in enumerate(passages)}
    return Search(
        questions=[rows[0].question for rows in asked],
        passages=passages,
        answers=[frozenset(place[_plain(p.passage)] for p in rows if p.answers) for rows in asked],
        families=_families(asked),
        given=len(answered),
    )


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _opened(ref: ModelRef, tokens: int) -> Vectorizer:
    return Gguf.model_validate({"model": str(ref.weights), "most": tokens}).open()


def _passages(pairs: Sequence[Pair], needed: set[str]) -> list[str]:
    """Return each passage once: those that are needed, and of the others as many as there is room for."""
    texts = {_plain(pair.passage): pair.passage for pair in pairs}
    others = [text for key, text in texts.items() if key not in needed]
    return [texts[key] for key in sorted(needed)] + spread(others, max(0, MOST_PASSAGES - len(needed)))


def _families(asked: Sequence[Sequence[Pair]]) -> list[int]:
    """Group questions that are no independent samples: near duplicates, of one passage, or of one group."""
    rows = [
        Example("chat", [{"role": "user", "content": r[0].question}, {"role": "assistant", "content": ""}], single=True)
        for r in asked
    ]
    families = list(row_families(rows))
    first: dict[str, int] = {}
    for number, pairs in enumerate(asked):
        for pair in pairs:
            for key in (f"group {pair.group}", f"passage {_plain(pair.passage)}" if pair.answers else ""):
                other = first.setdefault(key, families[number]) if key else families[number]
                families = [other if family == families[number] else family for family in families]
    return families


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
