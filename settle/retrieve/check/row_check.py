"""Whether a passage answers a question that was made from it, judged without what made it.

The question is asked of the whole collection: the passage has to be among the first that are found, the answer judge
has to hold that it answers, and what the judge points at has to be what the answer was taken from.
"""

import re
from dataclasses import dataclass
from math import exp, log
from typing import NamedTuple

from settle.retrieve.answer.answer_judge import answer_judge
from settle.retrieve.answer.extractive import excerpts
from settle.retrieve.check.facts import NAMED, Fact
from settle.retrieve.check.phrases import WORD
from settle.retrieve.check.questions import weights
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import STOP, words
from settle.retrieve.search import search

FOUND = 3  # passages among which the one that the question was made from has to be
ALIKE = 0.5  # share of what the judge points at, or of the answer, that both have
TELLS, TELLS_OF_NAMES = 1.2, 0.5  # of what naming one passage takes, that a question's words have to tell together
LEFT = 0.5  # of an answer's own words, from which on what remains of a passage may still say it


@dataclass(frozen=True)
class RowProof:
    """How a row was verified."""

    rank: int  # of its passage, among all of the collection; from 1
    probability: float | None  # that the passage answers, by the judge; None where there is none for this collection
    quote: str  # what the judge points at, "" without one


class Checked(NamedTuple):
    """The proof of a row, or why there is none."""

    proof: RowProof | None
    why: str = ""


class RowChecker:
    """Checks rows against a collection."""

    def __init__(self, collection: Collection) -> None:
        self._collection, self._judge = collection, answer_judge(collection)
        self._total = max(2, collection.catalogue.counts()["passages"])

    def check(self, fact: Fact, question: str, passage: Passage, least: float) -> Checked:
        """Return the proof that a passage answers a question, or why there is none.

        least: probability from which on the judge's word is taken.
        """
        if self.telling(question) < (TELLS_OF_NAMES if fact.kind in NAMED else TELLS):
            return Checked(None, "the question names nothing that only a few passages have")
        hits = search(self._collection, question, FOUND)
        rank = next((n for n, hit in enumerate(hits, 1) if _says(hit.passage, passage, fact)), 0)
        if not rank:
            return Checked(None, f"its passage is not among the first {FOUND} that are found")
        if self._judge is None:
            why = "" if rank == 1 else "its passage is not the first that is found"
            return Checked(None if why else RowProof(1, None, ""), why)
        (reading,) = self._judge.read(question, [passage])
        probability = _sigmoid(reading.logit)
        if probability < least:
            return Checked(None, "the judge doubts that the passage answers")
        quoting = excerpts(passage.text)
        unit = quoting.unit_at(reading.at)
        quote = quoting.excerpt(unit)[0] if unit is not None else ""
        if fact.kind not in NAMED and max(_share(fact.stated, quote), _share(quote, fact.stated)) < ALIKE:
            return Checked(None, "the judge points at another sentence")
        return Checked(RowProof(rank, probability, quote))

    def probability(self, question: str, passage: Passage) -> float | None:
        """Return how likely the judge holds an answer in a passage; None without a judge."""
        return _sigmoid(self._judge.read(question, [passage])[0].logit) if self._judge else None

    def is_unanswered(self, fact: Fact, question: str, remaining: Passage) -> bool:
        """Return whether what remains of a passage without a fact no longer answers a question, as far as can be seen.

        The judge has to hold that too, so without one no passage is known to be silent.
        """
        own = set(words(fact.answer)) - set(words(question))
        if not own or any(_held(own, part) >= LEFT for part in re.split(r"(?<=[.!?])\s+|\n", remaining.text)):
            return False
        probability = self.probability(question, remaining)
        return probability is not None and probability < 0.5

    def telling(self, question: str) -> float:
        """Return what a question's words tell, where 1 is what names one passage of the collection."""
        tells = weights(self._collection.catalogue.words, self._total, set(words(question)))
        return sum(tells.values()) / log(self._total)


def span_of(stated: str, text: str) -> tuple[int, int] | None:
    """Return where a passage says something: characters, marks between the words left out. None where it does not."""
    spaced = r"\W{1,12}?".join(re.findall(r"\w+", stated))
    match = re.search(spaced, text) if spaced else None
    return match.span() if match else None


def _says(hit: Passage, passage: Passage, fact: Fact) -> bool:
    return hit.id == passage.id or span_of(fact.stated, hit.text) is not None


def _share(text: str, of: str) -> float:
    """Return the share of a text's words that another one has."""
    own = {word.lower() for word in WORD.findall(text)} - STOP
    return len(own & {word.lower() for word in WORD.findall(of)}) / max(1, len(own))


def _held(own: set[str], text: str) -> float:
    return len(own.intersection(words(text))) / len(own)


def _sigmoid(logit: float) -> float:
    return 1 / (1 + exp(-logit))
