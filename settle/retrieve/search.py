"""Search by meaning, by words and by the titles of documents: a weighted sum of three scores.

A question is searched for by its topic, without the words that only ask. The first score is the cosine with it. The
other two are BM25 ÷ the sum of the weights of the question's words: about 1 where a passage of average length has each
of them once. Ranks would be easier to combine, but a rank does not say how much better the first is than the second;
docs/search.md has figures.
"""

import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import OSA

from settle.retrieve.index.catalogue import Catalogue, Occurrence, Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

_REMEMBERED = 64  # search, evidence and quotes read the same question
_MOST_ROWS = 12_000  # passages that the stems may occur in, all together: above that the commonest ones are left out
_SUBSTITUTES = 3  # stems that are searched for instead of one that occurs nowhere
_MISSPELLED = 5  # letters of the shortest word that may be misspelled
_LONG = 8  # letters from which on two may be wrong
_PREFIX = 4  # letters of the shortest word that may be the beginning of another
_BEGINNINGS = (
    r"(?:please|so|ok|okay|hi|hello|hey|and|but)\b[,\s]*",
    r"(?:can|could|would|will) (?:you|anyone|anybody|someone|somebody) (?:please )?",
    r"i(?:'d| would)? (?:like|want|need|have to|wish)(?: to know| to learn)?(?: some| a bit of| more)*"
    r"(?: (?:help|information|advice|details))?(?: (?:with|about|on|for|to))?\b",
    r"(?:i(?:'m| am) )?(?:looking|searching) for(?: (?:an?|the))?(?: (?:word|term|name))?(?: for)?\b:?",
    r"i(?:'m| am) trying to\b",
    r"i (?:keep|kept) (?:on )?(?:reading|hearing|seeing) about\b",
    r"how (?:do|can|could|should|would|might|must|does|did) (?:i|we|you|one|people)\b",
    r"how (?:to|do|does|did|is|are|can)\b",
    r"how (?:long|often|soon) (?:do|does|did|is|are|can|will)\b",
    r"is there (?:a|any|some) (?:good |easy )?(?:way|possibility) (?:to|of)\b",
    r"what is the (?:best |right |usual )?way (?:to|of)\b",
    r"what (?:is|are) (?:there to (?:know|say) about|there to|known about|meant by)\b",
    r"what do (?:you|we|people|they) call(?: it)?\b",
    r"(?:what (?:is|are|does|do|did|was|were)|what's)(?: (?:the|a|an))?"
    r"(?: (?:meaning|definition|name|word|term) (?:of|for))?\b",
    r"(?:which|what) (?:word|term|name|page|part|section|chapter|document)"
    r" (?:means|stands for|denotes|is about|describes|explains|is for|tells)\b",
    r"where (?:is|are|can i (?:find|read about)|do i (?:find|read about)|does it say)\b",
    r"(?:tell|show) me(?: more)?(?: (?:about|how to|how|what))?\b",
    r"(?:explain|describe|define)(?: to me)?\b",
    r"(?:the )?(?:meaning|definition) of\b",
    r"(?:what|how) about\b",
)
_BEGINNING = re.compile(rf"\s*(?:{'|'.join(_BEGINNINGS)})", re.I)
_SCOPE = re.compile(r"\s*in [^,?]{2,40},\s", re.I)  # In networking, what is …
_ENDS = {
    "how": r"works?|(?:is|are) used|used",
    "what": r"means?|stands? for|called",
    "where": r"explained|described|defined|documented|found",
}
_END = {first: re.compile(rf"\s+(?:{end})\s*[?.!]*\s*$", re.I) for first, end in _ENDS.items()}
_ASIDE = re.compile(r",? what (?:is|are) (?:it|that|they|this)\s*[?.!]*\s*$", re.I)


@dataclass(frozen=True)
class Query:
    """A question to search for."""

    text: str
    topic: str  # without what it begins and ends with where that only asks
    stems: tuple[str, ...]  # of the topic, each once, in order


@dataclass(frozen=True)
class SearchTerms:
    """The stems to look for in one catalogue."""

    stems: tuple[str, ...]  # the rarest first
    total: float  # the information of them all, in the units of BM25's weights


@lru_cache(_REMEMBERED)
def query(question: str) -> Query:
    """Return the query of a question; the last ones are remembered."""
    topic = topic_of(question)
    return Query(question, topic, tuple(dict.fromkeys(words(topic))))


def topic_of(question: str) -> str:
    """Return a question without the words that only ask, as far as any other word is left."""
    scope = _SCOPE.match(question)
    prefix, left = (scope[0], question[scope.end() :]) if scope else ("", question)
    remainder = left
    while (match := _BEGINNING.match(left)) and match.end():
        left = left[match.end() :]
    if left is remainder:
        return question
    first = re.match(r"\w*", remainder.lstrip().lower())
    end = _END.get(first[0]) if first else None
    left = _ASIDE.sub("", end.sub("", left) if end else left)
    return f"{prefix}{left.lstrip()}".strip() if words(left) else question


def terms(catalogue: Catalogue, question: Query) -> SearchTerms:
    """Return the stems to look for in a catalogue.

    A stem of no passage is replaced by similar ones, and weighs as much as one of a single passage.
    """
    number = catalogue.counts()["passages"]
    frequencies = catalogue.words.frequencies(question.stems)
    groups = {
        stem: {stem: frequencies[stem]} if stem in frequencies else _similar(catalogue, stem) for stem in question.stems
    }
    chosen: list[str] = []
    rows, total = 0, 0.0
    for stem, group in sorted(groups.items(), key=lambda item: sum(item[1].values())):
        frequency = sum(group.values())
        rows += frequency
        if chosen and rows > _MOST_ROWS:
            break
        chosen += group or [stem]  # it may be in a title
        total += max(log((number - frequency + 0.5) / (max(frequency, 1) + 0.5)), 1e-6)
    return SearchTerms(tuple(dict.fromkeys(chosen)), total or 1.0)


def _similar(catalogue: Catalogue, stem: str) -> Mapping[str, int]:
    """Return the most frequent stems that one of no passage may stand for, with their frequencies.

    One or two letters are wrong, not the first two, or the word is cut short.
    """
    if not stem.isalpha() or len(stem) < _PREFIX:
        return {}
    known = catalogue.words.starting_with(stem[:2])
    likely = [term for term in known if term.startswith(stem)]
    if len(stem) >= _MISSPELLED:
        wrong = 2 if len(stem) >= _LONG else 1
        near = process.extract(stem, known, scorer=OSA.distance, score_cutoff=wrong, limit=None)
        least = min((distance for _, distance, _ in near), default=0)
        likely += [term for term, distance, _ in near if distance == least]
    frequencies = catalogue.words.frequencies(likely)
    return dict(sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))[:_SUBSTITUTES])


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
    """A passage that was found."""

    passage: Passage
    occurrences: tuple[Occurrence, ...]  # every place where the passage is
    score: float  # what hits are ordered by
    similarity: float  # cosine with the question
    bm25: float  # of its words, or 0

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
    stems = words(text)
    return {tuple(stems[i : i + _RUN_WORDS]) for i in range(max(1, len(stems) - _RUN_WORDS + 1))}
