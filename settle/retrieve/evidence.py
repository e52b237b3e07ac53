"""Whether what was found answers the question at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from settle.retrieve.collection import Collection
from settle.retrieve.search import Hit
from settle.retrieve.words import words

_BIAS, _SIMILARITY, _COVERAGE = -6.0, 10.0, 4.0


@dataclass(frozen=True)
class Evidence:
    """score: how likely the documents hold an answer, 0 to 1. threshold: below it a question is not answered.
    covered: share of what the question's words tell that the best passages have; missing: its telling words that they
    have not.
    """

    score: float
    threshold: float
    covered: float
    missing: tuple[str, ...]

    @property
    def enough(self) -> bool:
        return self.score >= self.threshold


def judge(collection: Collection, question: str, hits: Sequence[Hit]) -> Evidence:
    """The evidence for an answer in the hits of a question, the best first."""
    stems = list(dict.fromkeys(words(question)))
    total = max(2, collection.catalogue.counts()["passages"])
    found = collection.catalogue.frequencies(stems)
    weight = {stem: log(total / found.get(stem, 1)) + 0.1 for stem in stems}
    there = {stem for hit in hits[:5] for stem in words(hit.passage.embedded)}
    covered = sum(w for stem, w in weight.items() if stem in there) / (sum(weight.values()) or 1)
    similarity = max((hit.similarity or 0.0 for hit in hits), default=0.0)
    score = 1 / (1 + exp(-(_BIAS + _SIMILARITY * similarity + _COVERAGE * covered)))
    return Evidence(score, 0.5, covered, tuple(stem for stem in stems if stem not in there))
