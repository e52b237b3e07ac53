"""Embedders on the user's own questions and passages: where the passage that answers comes among all of them.

Legend: Q questions, P passages, W width of a vector.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from settle.base.errors import DataError
from settle.data.layouts import Example
from settle.data.pairs import Pair, read_pairs
from settle.data.split import row_families
from settle.evaluate.compare.in_time import spread
from settle.evaluate.footprint import Measured, peak_bytes
from settle.infer.engine import VectorEngine
from settle.jobs.pick.exam import Exam, Taken
from settle.jobs.pick.needs import Needs
from settle.library.reference import ModelRef
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.embedders.gguf import Gguf

MOST_PASSAGES = 2000  # that a question is searched in: those that answer, and others evenly spread
TIMED = 8  # passages, and questions one by one, of a round


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
            seconds = [_seconds(engine, [text]) for text in asked]
            taken = _seconds(engine, texts)
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


def _seconds(engine: VectorEngine, texts: Sequence[str]) -> float:
    begin = time.perf_counter()
    engine.embed(texts)
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
