"""Finds passages: by meaning, by their words and by the titles of their documents, three scores put together.

The first is the cosine with the question. The others are BM25 ÷ the sum of the weights of the question's words: about 1
where a passage of average length has each of them once. Ranks would be put together more easily, but a rank does not
say how much better the first is than the second; docs/search.md has figures.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from settle.retrieve.index.catalogue import Passage, Standing
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.question_normalizer import topic
from settle.retrieve.search.terms import terms

CANDIDATES = 50  # by meaning, and by words
WORDS = 0.7  # what all of a question's words in a passage count against a cosine of 1
TITLE = 0.5  # and in the title of its document
SCORED = 1000  # passages whose words are scored: those that are near by meaning are mostly among them
_TITLED = 10  # documents whose first passages are candidates because of their title
_FIRST = 3
_SAME = 0.9  # share of common runs of words from which on two passages say the same
_RUN = 4  # words
_NEAR = 0.02  # difference of their cosines with the question that two such passages have at most


@dataclass(frozen=True)
class Hit:
    """A passage that was found. score: what hits are ordered by; similarity: cosine with the question; bm25: of its
    words, or 0. standings: all places it stands at.
    """

    passage: Passage
    standings: tuple[Standing, ...]
    score: float
    similarity: float
    bm25: float

    @property
    def citation(self) -> str:
        """The place to open."""
        first = self.standings[0]
        return first.place.after(first.path)


def search(collection: Collection, question: str, k: int = 10, without: AbstractSet[int] = frozenset()) -> list[Hit]:
    """The k best passages, the best first; of some that say nearly the same, the best one.

    without: documents (by id) that are looked at as if they were not there.
    """
    vector = collection.meaning(topic(question))
    with collection.catalogue.snapshot():
        found = _found(collection, question, vector, max(k, CANDIDATES), without)
    return _different(sorted(found, key=lambda hit: (-hit.score, hit.passage.id)), k)


def _found(
    collection: Collection, question: str, vector: np.ndarray, number: int, without: AbstractSet[int]
) -> list[Hit]:
    """Candidates, at least `number` of each kind of search where there are so many."""
    catalogue = collection.catalogue
    near = collection.seek(vector, number)
    asked = terms(catalogue, question)
    bm25 = dict(catalogue.search_words(asked.stems, SCORED))
    titles = dict(catalogue.search_titles(asked.stems, SCORED))
    titled = catalogue.beginnings([d for d in titles if d not in without][:_TITLED], _FIRST)
    similarity = near()
    ids = list(dict.fromkeys([*similarity, *list(bm25)[:number], *titled]))
    standings = catalogue.standings(ids)
    if without:
        standings = {i: left for i, at in standings.items() if (left := [s for s in at if s.document not in without])}
        full = len(similarity) == number or len(bm25) > number
        if len(standings) < number and full and number < SCORED:
            return _found(collection, question, vector, 4 * number, without)
    passages = catalogue.passages(list(standings))
    others = catalogue.vectors([i for i in passages if i not in similarity])
    similarity |= {i: float(v @ vector) for i, v in others.items()}
    hits = []
    for id, passage in passages.items():
        title = max(titles.get(standing.document, 0.0) for standing in standings[id])
        score = similarity[id] + (WORDS * bm25.get(id, 0.0) + TITLE * title) / asked.total
        hits.append(Hit(passage, tuple(standings[id]), score, similarity[id], bm25.get(id, 0.0)))
    return hits


def _different(hits: Sequence[Hit], k: int) -> list[Hit]:
    """The first k, without those that say what an earlier one says."""
    kept: list[Hit] = []
    runs: dict[int, set[tuple[str, ...]]] = {}

    def same(one: Hit, other: Hit) -> bool:
        if abs(one.similarity - other.similarity) > _NEAR:
            return False
        for hit in (one, other):
            if hit.passage.id not in runs:
                runs[hit.passage.id] = _runs(hit.passage.embedded)
        a, b = runs[one.passage.id], runs[other.passage.id]
        return len(a & b) >= _SAME * len(a | b)

    for hit in hits:
        if len(kept) == k:
            break
        if not any(same(hit, other) for other in kept):
            kept.append(hit)
    return kept


def _runs(text: str) -> set[tuple[str, ...]]:
    """Every run of words."""
    found = words(text)
    return {tuple(found[i : i + _RUN]) for i in range(max(1, len(found) - _RUN + 1))}
