"""Finds passages: by meaning and by words, both ranks fused."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import log

from settle.retrieve.catalogue import Passage, Standing
from settle.retrieve.collection import Collection
from settle.retrieve.words import words

CANDIDATES = 50  # of each kind of search
_RANK = 60  # reciprocal rank fusion: 1 / (60 + rank), Cormack et al. 2009


@dataclass(frozen=True)
class Hit:
    """A passage that was found. similarity: cosine with the question, or None where only its words were found; bm25:
    of its words, or 0. standings: all places it stands at.
    """

    passage: Passage
    standings: tuple[Standing, ...]
    score: float
    similarity: float | None
    bm25: float

    @property
    def citation(self) -> str:
        """The place to open."""
        first = self.standings[0]
        return first.place.after(first.path)


def search(collection: Collection, question: str, k: int = 10, without: AbstractSet[int] = frozenset()) -> list[Hit]:
    """The k best passages, the best first. without: documents (by id) that are looked at as if they were not there."""
    vector = collection.vectorizer.query(question)
    catalogue = collection.catalogue
    with catalogue.snapshot():
        near = collection.vectors.near(vector, CANDIDATES)  # after it began: what counts in it was kept before
        by_words = catalogue.search_words(_telling(collection, question), CANDIDATES)
        similarity = dict(zip(near.ids.tolist(), near.similarities.tolist(), strict=True))
        bm25 = dict(by_words)
        passages = catalogue.passages(list({*similarity, *bm25}))
        standings = catalogue.standings(list(passages))
        if without:
            standings = {i: [s for s in at if s.document not in without] for i, at in standings.items()}
            passages = {i: p for i, p in passages.items() if standings[i]}
        scores: dict[int, float] = {}
        for ranking in (near.ids.tolist(), [i for i, _ in by_words]):
            for rank, id in enumerate((i for i in ranking if i in passages), 1):
                scores[id] = scores.get(id, 0.0) + 1 / (_RANK + rank)
        best = sorted(scores, key=lambda i: (-scores[i], i))[:k]
    return [Hit(passages[i], tuple(standings[i]), scores[i], similarity.get(i), bm25.get(i, 0.0)) for i in best]


def _telling(collection: Collection, question: str) -> Sequence[str]:
    """The words of a question that tell passages apart."""
    stems = list(dict.fromkeys(words(question)))
    total = collection.catalogue.counts()["passages"]
    found = collection.catalogue.frequencies(stems)
    weights = {stem: log(total / n) for stem, n in found.items()}
    return [stem for stem in stems if weights.get(stem, 0.0) > 0.0]
