"""Whether what was found answers the question at all.

What speaks for it is measured on the question and its hits, weighed, and held against a threshold. Weights and
threshold are fitted on questions made from the collection's own documents (see `calibration.py`); until then, and where
there are too few documents for that, those shipped here count.
"""

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import exp, log

import numpy as np

from settle.retrieve.catalogue import Catalogue, Passage
from settle.retrieve.collection import Collection
from settle.retrieve.embedders import Vectorizer
from settle.retrieve.search import Hit
from settle.retrieve.words import words

VERSION = 1  # of what is measured: weights of another version are not used
DEPTH = 10  # hits that are looked at
DRIFTED = 0.5  # share of the passages that are new, or gone, above which a calibration says nothing any more
_SETTING = "evidence"
_BACKGROUND = 3  # hits from here on are what any question of its kind would find
_LONGEST = 200  # characters of a heading that are compared
_TITLE = 8  # words, at most, of a first line that stands alone: a title where there are no headings

# What a word tells is in nats: the rarer, the more. How long a question is, and how much of it stands nowhere, are no
# features: they say how somebody asks, and weights for them do not carry over to somebody else.
FEATURES = (
    "similarity",  # the nearest hit's cosine with the question
    "covered",  # share of what the question's words tell that one passage has
    "covered_lead",  # how much more that is than the fourth best has
    "covered_nearest",  # the share that the nearest passage has
    "covered_near",  # the largest product of similarity and share of one passage
    "headed",  # the share that one passage has in its headings
    "titled",  # the largest product of that by the last heading alone, and of what the question has of this heading
    "named",  # the largest cosine of a last heading with the question
    "agreement",  # whether the nearest passage is also the best by words
)


@dataclass(frozen=True)
class Weighing:
    """What each feature counts: of the features less `means` over `scales`, (F,) each. threshold: of the score, below
    which a question is not answered. questions: it was fitted on, 0 for the one shipped. passages, last: how many there
    were and the highest id, to see how much has changed since. version: of the features.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    questions: int = 0
    passages: int = 0
    last: int = 0
    version: int = VERSION

    def score(self, features: np.ndarray) -> float:
        """From 0 to 1, of features (F,)."""
        logit = float((features - np.array(self.means)) / np.array(self.scales) @ np.array(self.weights)) + self.bias
        return 1 / (1 + exp(-max(-30.0, min(30.0, logit))))


# Fitted on questions about four sets of documents and on others about what was held out of them: see docs/check.md.
SHIPPED = Weighing(
    means=(0.5225, 0.4578, 0.1691, 0.3077, 0.2094, 0.2348, 0.1458, 0.5091, 0.2646),
    scales=(0.1126, 0.1812, 0.1583, 0.1917, 0.115, 0.1385, 0.1062, 0.1336, 0.4411),
    weights=(0.0617, 0.1412, 0.4788, 0.5109, 0.0787, 0.0472, 0.0645, 0.5357, 0.1583),
    bias=0.0465,
    threshold=0.2479,
)


@dataclass(frozen=True)
class Evidence:
    """score: how likely the hits hold an answer, 0 to 1, were as many questions without one as with one. threshold:
    below it a question is not answered. covered: share of what the question's words tell that the best passage has;
    missing: its words that tell something and that none of the passages has.
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
    weighing = weighing_of(collection.catalogue)
    features = measured(collection, question, hits)
    there = {stem for hit in hits[:DEPTH] for stem in _stems_of(hit.passage.embedded)}
    missing = (word.strip(".,;:?!\"'()") for word in question.split() if not there.issuperset(words(word)))
    covered = float(features[FEATURES.index("covered")])
    return Evidence(weighing.score(features), weighing.threshold, covered, tuple(dict.fromkeys(missing)))


def measured(collection: Collection, question: str, hits: Sequence[Hit], without: Sequence[Passage] = ()) -> np.ndarray:
    """The features (F,) of a question and its hits. without: passages that were left out of the search: words tell what
    they would were these not there."""
    hits, catalogue = hits[:DEPTH], collection.catalogue
    total = max(2, catalogue.counts()["passages"] - len(without))
    stems = list(dict.fromkeys(words(question)))
    found = Counter(catalogue.frequencies(stems))
    found.subtract(stem for passage in without for stem in _stems_of(passage.embedded).intersection(stems))
    tells = {stem: log(1 + (total - found[stem] + 0.5) / (found[stem] + 0.5)) for stem in stems}
    told = sum(tells.values()) or 1.0

    def share(of: AbstractSet[str]) -> float:
        return sum(tell for stem, tell in tells.items() if stem in of) / told

    covered = [share(_stems_of(hit.passage.embedded)) for hit in hits] or [0.0]
    headed = [share(_stems_of(" ".join(_headings(hit.passage)))) for hit in hits] or [0.0]
    titles = ["".join(_headings(hit.passage)[-1:])[:_LONGEST] for hit in hits]
    titled = [(share(own), own) for own in map(_stems_of, titles) if own]
    near = [hit.similarity or 0.0 for hit in hits] or [0.0]
    bm25 = [hit.bm25 for hit in hits] or [0.0]
    nearest = near.index(max(near))
    return np.array(
        [
            near[nearest],
            max(covered),
            _lead(covered),
            covered[nearest],
            max(s * c for s, c in zip(near, covered, strict=True)),
            max(headed),
            max((part * len(own.intersection(stems)) / len(own) for part, own in titled), default=0.0),
            _named(collection.vectorizer, question, titles),
            float(bm25[nearest] == max(bm25) > 0),
        ]
    )


def _named(vectorizer: Vectorizer, question: str, titles: Sequence[str]) -> float:
    """The largest cosine of a question with a title."""
    there = [title for title in dict.fromkeys(titles) if title]
    return float((vectorizer.documents(there) @ vectorizer.query(question)).max()) if there else 0.0


def _lead(values: Sequence[float]) -> float:
    """How far the best is before the fourth."""
    ordered = sorted(values, reverse=True)
    return ordered[0] - (ordered[_BACKGROUND] if len(ordered) > _BACKGROUND else 0.0)


def _headings(passage: Passage) -> tuple[str, ...]:
    """Of a passage; where there are none, a first line that is short and stands alone."""
    first, _, rest = passage.text.partition("\n")
    return passage.headings or ((first,) if rest[:1] == "\n" and len(first.split()) <= _TITLE else ())


@lru_cache(maxsize=8192)
def _stems_of(text: str) -> frozenset[str]:
    return frozenset(words(text))


def weighing_of(catalogue: Catalogue) -> Weighing:
    """What counts for a collection: what was fitted on it, unless its documents are mostly others by now."""
    kept = catalogue.setting(_SETTING)
    if not kept or kept["version"] != VERSION:
        return SHIPPED
    weighing = Weighing(**{name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()})
    return SHIPPED if is_stale(catalogue, weighing) else weighing


def is_stale(catalogue: Catalogue, weighing: Weighing) -> bool:
    """Whether so many passages are new or gone since it was fitted that it says nothing of those that are there."""
    new = (catalogue.setting("next_id") or 0) - weighing.last
    gone = weighing.passages + new - catalogue.counts()["passages"]
    return max(new, gone) > DRIFTED * weighing.passages


def keep(catalogue: Catalogue, weighing: Weighing) -> Weighing:
    """Keeps a weighing, as of the documents that are there now."""
    kept = replace(weighing, passages=catalogue.counts()["passages"], last=catalogue.setting("next_id") or 0)
    catalogue.keep_setting(_SETTING, asdict(kept))
    return kept
