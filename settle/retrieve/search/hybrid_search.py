"""Search by meaning, by words and by the titles of documents: a weighted sum of three scores.

The first is the cosine with the question. The other two are BM25 ÷ the sum of the weights of the question's words:
about 1 where a passage of average length has each of them once. Ranks would be easier to combine, but a rank does not
say how much better the first is than the second; docs/search.md has figures.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from settle.retrieve.index.catalogue.records import Occurrence, Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.query import Query, query, terms

CANDIDATES = 50  # by meaning, and by words
WORDS_WEIGHT = 0.7  # of all of a question's words in a passage, relative to a cosine of 1
TITLE_WEIGHT = 0.5  # of all of them in the title of its document
SCORED = 1000  # passages whose words are scored: most of those that are near by meaning are among them
_TITLED_DOCUMENTS = 10  # whose first passages are candidates because of their title
_FIRST_PASSAGES = 3
_DUPLICATE_OVERLAP = 0.9  # share of common runs of words from which on two passages are duplicates
_RUN_WORDS = 4
_DUPLICATE_COSINE_GAP = 0.02  # between the cosines of two duplicates with the question, at most


@dataclass(frozen=True)
class Hit:
    """A passage that was found.

    score: what hits are ordered by. similarity: cosine with the question. bm25: of its words, or 0. occurrences: every
    place where the passage is.
    """

    passage: Passage
    occurrences: tuple[Occurrence, ...]
    score: float
    similarity: float
    bm25: float

    @property
    def citation(self) -> str:
        """The place to open."""
        first = self.occurrences[0]
        return first.place.after(first.path)


def search(collection: Collection, question: str, k: int = 10, without: AbstractSet[int] = frozenset()) -> list[Hit]:
    """Return the k best passages, the best first; of near duplicates only the best one.

    without: ids of documents that are searched as if they were not there.
    """
    asked = query(question)
    vector = collection.vectors.embed_query(asked.topic)
    with collection.catalogue.snapshot():
        hits = _candidates(collection, asked, vector, max(k, CANDIDATES), without)
    return _distinct(sorted(hits, key=lambda hit: (-hit.score, hit.passage.id)), k)


def _candidates(
    collection: Collection,
    question: Query,
    vector: np.ndarray,
    number: int,
    without: AbstractSet[int],
    fetched: int | None = None,
) -> list[Hit]:
    """Return at least `number` candidates, as far as there are so many.

    vector: float32 (width,). fetched: of each kind of search, `number` of them at first.
    """
    catalogue, fetched = collection.catalogue, fetched or number
    nearest = collection.vectors.nearest(vector, fetched)
    wanted = terms(catalogue, question)
    bm25 = dict(catalogue.words.search(wanted.stems, SCORED))
    titles = dict(catalogue.words.search_titles(wanted.stems, SCORED))
    titled_documents = [document for document in titles if document not in without][:_TITLED_DOCUMENTS]
    titled = catalogue.passages.first_of(titled_documents, _FIRST_PASSAGES)
    similarity = nearest()
    ids = list(dict.fromkeys([*similarity, *list(bm25)[:fetched], *titled]))
    occurrences = catalogue.passages.occurrences(ids)
    if without:
        left = {i: [o for o in places if o.document not in without] for i, places in occurrences.items()}
        occurrences = {i: places for i, places in left.items() if places}
        may_be_more = len(similarity) == fetched or len(bm25) > fetched
        if len(occurrences) < number and may_be_more and fetched < SCORED:
            return _candidates(collection, question, vector, number, without, 4 * fetched)
    passages = catalogue.passages.get(list(occurrences))
    others = catalogue.passages.vectors([i for i in passages if i not in similarity])
    similarity |= {i: float(other @ vector) for i, other in others.items()}
    hits = []
    for passage_id, passage in passages.items():
        places = occurrences[passage_id]
        title = max(titles.get(place.document, 0.0) for place in places)
        words_score = bm25.get(passage_id, 0.0)
        score = similarity[passage_id] + (WORDS_WEIGHT * words_score + TITLE_WEIGHT * title) / wanted.total
        hits.append(Hit(passage, tuple(places), score, similarity[passage_id], words_score))
    return hits


def _distinct(hits: Sequence[Hit], k: int) -> list[Hit]:
    """Return the first k, without those that repeat an earlier one."""
    distinct: list[Hit] = []
    runs: dict[int, set[tuple[str, ...]]] = {}

    def is_duplicate(one: Hit, other: Hit) -> bool:
        if abs(one.similarity - other.similarity) > _DUPLICATE_COSINE_GAP:
            return False
        for hit in (one, other):
            if hit.passage.id not in runs:
                runs[hit.passage.id] = _runs(hit.passage.embedded)
        a, b = runs[one.passage.id], runs[other.passage.id]
        return len(a & b) >= _DUPLICATE_OVERLAP * len(a | b)

    for hit in hits:
        if len(distinct) == k:
            break
        if not any(is_duplicate(hit, other) for other in distinct):
            distinct.append(hit)
    return distinct


def _runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of words."""
    stems = words(text)
    return {tuple(stems[i : i + _RUN_WORDS]) for i in range(max(1, len(stems) - _RUN_WORDS + 1))}
