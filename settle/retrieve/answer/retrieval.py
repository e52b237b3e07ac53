"""From a question, and those before it, to ranked passages and the evidence that they hold an answer."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from settle.retrieve.answer.answer_judge import UNREAD, JudgeReading, answer_judge
from settle.retrieve.answer.evidence import Evidence, judge
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.hybrid_search import Hit, search
from settle.retrieve.search.query import query

PASSAGES = 4  # that an answer is made from
JUDGED = 10  # that the evidence is judged by
RERANKED = 4  # that the trained judge reads
JUDGE_WEIGHT = 0.5  # of what the judge thinks likely, relative to a cosine of 1
_REFERRING = re.compile(
    r"^(?:and|but|so|then|also|what about|how about|why|why not|really|which one)\b"
    r"|\b(?:it|its|they|them|their|this|that|these|those|he|him|his|she|her|there|one|ones|else|other)\b",
    re.I,
)
_FEW_WORDS = 3  # a question with no more stems than this may refer to the one before


@dataclass(frozen=True)
class Retrieval:
    """The passages for a question.

    before: the question that it refers to, or "". hits: the best first. readings: what the trained judge read in the
    best of them, by the passage's id.
    """

    question: str
    before: str
    hits: tuple[Hit, ...]
    evidence: Evidence
    readings: Mapping[int, JudgeReading] = field(default_factory=lambda: UNREAD)

    @property
    def whole_question(self) -> str:
        """The question with the one before it."""
        return f"{self.before} {self.question}".strip()


def retrieve(collection: Collection, question: str, earlier: Sequence[str] = (), k: int = PASSAGES) -> Retrieval:
    """Search for a question, and judge the evidence.

    earlier: the questions before this one, in order. Where the question may refer to the last of them, it is searched
    for with and without it, and the two rankings are interleaved.
    """
    hits, readings = read_best(collection, question, search(collection, question, max(k, JUDGED)))
    evidence = judge(collection, question, hits, readings)
    if not earlier or not may_refer_back(question):
        return Retrieval(question, "", tuple(hits[:k]), evidence, readings)
    both = f"{query(earlier[-1]).topic} {query(question).topic}"
    hits_of_both, of_both = read_best(collection, both, search(collection, both, max(k, JUDGED)))
    evidence = max(evidence, judge(collection, both, hits_of_both, of_both), key=lambda e: e.score)
    interleaved = itertools.chain.from_iterable(itertools.zip_longest(hits, hits_of_both))
    by_passage = {hit.passage.id: hit for hit in interleaved if hit is not None}
    return Retrieval(question, earlier[-1], tuple(by_passage.values())[:k], evidence, {**of_both, **readings})


def read_best(collection: Collection, question: str, hits: Sequence[Hit]) -> tuple[list[Hit], dict[int, JudgeReading]]:
    """Let the trained judge, if there is one, read the first `RERANKED` hits.

    Returns the hits, these in its order, and what it read, by the passage's id.
    """
    first, others, reader = hits[:RERANKED], hits[RERANKED:], answer_judge(collection)
    if reader is None or not first:
        return list(hits), {}
    readings = reader.read(question, [hit.passage for hit in first])
    likely = 1 / (1 + np.exp([-reading.logit for reading in readings]))
    scores = [hit.score + JUDGE_WEIGHT * float(share) for hit, share in zip(first, likely, strict=True)]
    order = sorted(range(len(first)), key=lambda place: -scores[place])
    by_passage = {hit.passage.id: reading for hit, reading in zip(first, readings, strict=True)}
    return [*(first[place] for place in order), *others], by_passage


def may_refer_back(question: str) -> bool:
    """Return whether a question may refer to the one before: it is short, or has a word that points back."""
    return len(set(words(question))) <= _FEW_WORDS or bool(_REFERRING.search(question))
