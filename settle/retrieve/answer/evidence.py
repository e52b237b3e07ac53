"""Whether what was found answers the question at all.

What speaks for it is measured on the question and its hits, weighed, and held against a threshold. Weights and
threshold are fitted on questions made from the collection's own documents (see `calibration.py`); until then, and where
there are too few documents for that, those shipped here count.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import exp, log
from typing import Any

import numpy as np

from settle.retrieve.answer.line_match import Line, lines
from settle.retrieve.index.catalogue import Catalogue
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.records import Passage
from settle.retrieve.index.words import spelled, words
from settle.retrieve.search.hybrid_search import Hit
from settle.retrieve.search.question_normalizer import topic

VERSION = 4  # of what is measured: weights of another version are not used
DEPTH = 10  # hits that are looked at
UNLIKELY = 0.25  # score, below which there is no answer: a wrong refusal counts as much as three wrong answers
DRIFTED = 0.5  # share of the passages that are new, or gone, above which a calibration says nothing any more
_SETTING = "evidence"

# What a word tells is in nats: the rarer, the more. How long a question is, how much of it stands nowhere, and how far
# the best hit stands out are no features: they say how somebody asks, and what else there is, and weights for them do
# not carry over. A line that has most of a question's words and means about the same is an answer, or says what one is
# about.
FEATURES = (
    "similarity",  # the nearest hit's cosine with the question
    "covered",  # share of what the question's words tell that one passage has
    "covered_near",  # the largest product of similarity and share of one passage
    "line",  # the largest share that a line has
    "like",  # the largest cosine of a line with the question
    "said",  # the largest product of the two
    "same",  # of these two and the share of the line's own words that the question has
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
    means=(0.5731, 0.687, 0.3726, 0.7474, 0.7436, 0.5512, 0.4212),
    scales=(0.1395, 0.2163, 0.1738, 0.1832, 0.1755, 0.2359, 0.2524),
    weights=(0.0, 0.2498, 0.1282, 0.7709, 0.3826, 0.9727, 0.8647),
    bias=1.304,
    threshold=UNLIKELY,
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
    there = {stem for hit in hits[:DEPTH] for stem in _stems(hit.passage.embedded)}
    missing = (word.strip(".,;:?!\"'()") for word in question.split() if not there.issuperset(words(word)))
    covered = float(features[FEATURES.index("covered")])
    return Evidence(weighing.score(features), weighing.threshold, covered, tuple(dict.fromkeys(missing)))


def measured(collection: Collection, question: str, hits: Sequence[Hit], without: Sequence[Passage] = ()) -> np.ndarray:
    """The features (F,) of a question and its hits. without: passages that were left out of the search: words tell what
    they would were these not there."""
    hits, catalogue = hits[:DEPTH], collection.catalogue
    total = max(2, catalogue.counts()["passages"] - len(without))
    asked = topic(question)
    own = spelled(asked)
    found = Counter(catalogue.words.frequencies(own))
    found.subtract(stem for passage in without for stem in _stems(passage.embedded).intersection(own))
    tells = {stem: log(1 + (total - found[stem] + 0.5) / (found[stem] + 0.5)) for stem in own}
    told = sum(tells.values()) or 1.0

    def share(of: AbstractSet[str]) -> float:
        return sum(tell for stem, tell in tells.items() if stem in of) / told

    covered = [share(_stems(hit.passage.embedded)) for hit in hits] or [0.0]
    near = [hit.similarity for hit in hits] or [0.0]
    meaning, passages = collection.vectors.embed_query(asked), [hit.passage for hit in hits]
    read = lines(collection.vectors.vectorizer, meaning, own, tells, passages) or [Line("", 0.0, 0.0)]
    return np.array(
        [
            max(near),
            max(covered),
            max(s * c for s, c in zip(near, covered, strict=True)),
            max(line.had for line in read),
            max(line.like for line in read),
            max(line.had * line.like for line in read),
            max(line.had * line.about * line.like for line in read),
        ]
    )


@lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


def weighing_of(catalogue: Catalogue) -> Weighing:
    """What counts for a collection: what was fitted on it, unless that says nothing any more."""
    record = catalogue.settings.get(_SETTING, dict)
    return _weighing(record) if record and not is_outdated(catalogue) else SHIPPED


def is_outdated(catalogue: Catalogue) -> bool:
    """Whether weights were fitted to a collection that cannot be used any more: most of its documents are others by
    now, or other features are measured."""
    record = catalogue.settings.get(_SETTING, dict)
    if not record:
        return False
    return record["version"] != VERSION or is_stale(catalogue, _weighing(record))


def _weighing(record: Mapping[str, Any]) -> Weighing:
    return Weighing(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})


def is_stale(catalogue: Catalogue, weighing: Weighing) -> bool:
    """Whether so many passages are new or gone since it was fitted that it says nothing of those that are there."""
    new = (catalogue.settings.get("next_id", int) or 0) - weighing.last
    gone = weighing.passages + new - catalogue.counts()["passages"]
    return max(new, gone) > DRIFTED * weighing.passages


def keep(catalogue: Catalogue, weighing: Weighing) -> Weighing:
    """Keeps a weighing, as of the documents that are there now."""
    kept = replace(weighing, passages=catalogue.counts()["passages"], last=catalogue.settings.get("next_id", int) or 0)
    catalogue.settings.set(_SETTING, asdict(kept))
    return kept
