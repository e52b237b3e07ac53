"""Whether the passages that were found hold an answer: surely, perhaps, or not.

Features of the question and its hits are weighed and compared with two thresholds. The threshold of refusals, and
without the trained judge the weights, are calibrated on questions generated from the collection's own documents (see
`calibration.py`); until then, and where there are too few documents for that, the ones shipped here are used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from math import exp, log
from typing import Any

import numpy as np

from settle.retrieve.answer.answer_judge import UNREAD, Reading
from settle.retrieve.answer.line_match import Line, lines
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.catalogue.records import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import spelled, words
from settle.retrieve.search.hybrid_search import Hit
from settle.retrieve.search.question_normalizer import topic

VERSION = 12  # of the features: weights of another version are not used
DEPTH = 10  # hits that are examined
UNLIKELY = 0.25  # score below which a question is refused: a wrong refusal counts as much as three wrong answers
SURE = 0.6  # score from which on an answer comes without a warning
ALIKE = 0.7  # cosine from which on a line may be what is asked for
DRIFTED = 0.5  # share of new or removed passages above which a calibration is no longer used
_SETTING = "evidence"

# The weight of a word is its information in nats: the rarer, the more. The length of a question, the share of it that
# occurs nowhere, and the lead of the best hit are no features: they depend on who asks and on the other documents, so
# their weights do not transfer. A line that has most of a question's words and means about the same is an answer, or
# says what one is about; a line that is not alike says nothing, since people ask in other words than documents have.
# The farther the question is from every passage, the less the judge's logit says of a collection that it does not
# know, so it is multiplied by the similarity.
FEATURES = (
    "similarity",  # the nearest hit's cosine with the question
    "covered",  # weighted share of the question's words that one passage has
    "covered_near",  # the largest product of similarity and share of one passage
    "line",  # the largest share that a line has
    "like",  # the largest cosine of a line with the question
    "said",  # the largest product of the two
    "same",  # of these two and the share of the line's own words that the question has
    "judged",  # the trained judge's logit that one passage answers, times the similarity; 0 without a judge
    "alike",  # by how much `like` exceeds `ALIKE`; 0 below it
)
LINE_FEATURES = ("line", "like", "said", "same", "alike")  # those that take reading


@dataclass(frozen=True)
class EvidenceWeights:
    """A logistic model over features that are standardized by `means` and `scales`, (F,) each. threshold: the score
    below which a question is refused; sure: from which on it is answered without a warning. questions: number that it
    was fitted on, 0 for the shipped one. passages, last: their number and the highest id at that time, to see how much
    has changed since. version: of the features.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float
    threshold: float
    sure: float = SURE
    questions: int = 0
    passages: int = 0
    last: int = 0
    version: int = VERSION

    def score(self, features: np.ndarray) -> float:
        """The score from 0 to 1 of features (F,)."""
        logit = float((features - np.array(self.means)) / np.array(self.scales) @ np.array(self.weights)) + self.bias
        return 1 / (1 + exp(-max(-30.0, min(30.0, logit))))


# Fitted on questions about four sets of documents and on others about what was held out of them; scale and bias on the
# dev half of the questions in bench/asked, which are as people ask: see docs/method.md.
SHIPPED_UNREAD = EvidenceWeights(
    means=(0.5731, 0.687, 0.3726, 0.7474, 0.7436, 0.5512, 0.4212, 0.0, 0.0),
    scales=(0.1395, 0.2163, 0.1738, 0.1832, 0.1755, 0.2359, 0.2524, 1.0, 1.0),
    weights=(0.0, 0.1879, 0.0964, 0.5799, 0.2878, 0.7317, 0.6505, 0.0, 0.0),
    bias=2.721,
    threshold=UNLIKELY,
)
# With the judge: fitted by bench/judge_weights.py on the dev halves of seven sets of questions in bench/asked, and of
# two in bench/judge_questions that the judge did not learn from (rental, patience), each counting the same; then, with
# that as it is, the last weight on the dev halves of four dictionaries and manuals by bench/gold.py (seed 2). There
# the judge, which knows prose, sees no answer in an entry whose name says in other words what is asked for.
SHIPPED = EvidenceWeights(
    means=(0.3997, 0.4569, 0.1672, 0.5205, 0.4583, 0.2298, 0.0849, -0.2118, 0.0),
    scales=(0.1368, 0.2337, 0.1324, 0.188, 0.1607, 0.1551, 0.0962, 0.7813, 1.0),
    weights=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.8638, 46.58),
    bias=0.0605,
    threshold=UNLIKELY,
)


@dataclass(frozen=True)
class Evidence:
    """score: the probability that the hits hold an answer, assuming half of all questions are answerable. threshold: a
    question with a lower score is refused; sure: one with a lower score is answered with a warning. covered:
    weighted share of the question's words that the best passage has; missing: its words that none of the passages has.
    """

    score: float
    threshold: float
    sure: float
    covered: float
    missing: tuple[str, ...]

    @property
    def enough(self) -> bool:
        """Whether the question is answered at all."""
        return self.score >= self.threshold

    @property
    def is_sure(self) -> bool:
        """Whether it is answered without a warning."""
        return self.score >= max(self.sure, self.threshold)


def judge(
    collection: Collection, question: str, hits: Sequence[Hit], readings: Mapping[int, Reading] = UNREAD
) -> Evidence:
    """The evidence for an answer in the hits of a question, the best first. readings: what the trained judge read in
    some of them, by the passage's id; none where there is no judge."""
    weights = weights_for(collection.catalogue, bool(readings))
    reads_lines = any(weights.weights[FEATURES.index(name)] for name in LINE_FEATURES)
    features = features_of(collection, question, hits, readings=readings, reads_lines=reads_lines)
    there = {stem for hit in hits[:DEPTH] for stem in _stems(hit.passage.embedded)}
    missing = (word.strip(".,;:?!\"'()") for word in question.split() if not there.issuperset(words(word)))
    covered = float(features[FEATURES.index("covered")])
    return Evidence(weights.score(features), weights.threshold, weights.sure, covered, tuple(dict.fromkeys(missing)))


def features_of(
    collection: Collection,
    question: str,
    hits: Sequence[Hit],
    without: Sequence[Passage] = (),
    readings: Mapping[int, Reading] = UNREAD,
    reads_lines: bool = True,
) -> np.ndarray:
    """The features (F,) of a question and its hits. without: passages that were left out of the search, and of the
    words' frequencies. readings: as of `judge`. reads_lines: whether lines are compared; else those features are 0."""
    hits, catalogue = hits[:DEPTH], collection.catalogue
    total = max(2, catalogue.counts()["passages"] - len(without))
    subject = topic(question)
    own = spelled(subject)
    frequencies = Counter(catalogue.words.frequencies(own))
    frequencies.subtract(stem for passage in without for stem in _stems(passage.embedded).intersection(own))
    weight_of = {stem: log(1 + (total - frequencies[stem] + 0.5) / (frequencies[stem] + 0.5)) for stem in own}
    total_weight = sum(weight_of.values()) or 1.0

    def share(of: AbstractSet[str]) -> float:
        return sum(weight for stem, weight in weight_of.items() if stem in of) / total_weight

    covered = [share(_stems(hit.passage.embedded)) for hit in hits] or [0.0]
    near = [hit.similarity for hit in hits] or [0.0]
    read: list[Line] = []
    if reads_lines:
        meaning, passages = collection.vectors.embed_query(subject), [hit.passage for hit in hits]
        read = lines(collection.vectors.vectorizer, meaning, own, weight_of, passages)
    read = read or [Line("", 0.0, 0.0)]
    like = max(line.like for line in read)
    return np.array(
        [
            max(near),
            max(covered),
            max(s * c for s, c in zip(near, covered, strict=True)),
            max(line.had for line in read),
            like,
            max(line.had * line.like for line in read),
            max(line.had * line.about * line.like for line in read),
            max(0.0, *near) * _answered_logit(readings),
            max(0.0, like - ALIKE),
        ]
    )


def _answered_logit(readings: Mapping[int, Reading]) -> float:
    """The logit that one of the passages answers; 0, which says nothing, where none was read."""
    return float(np.logaddexp.reduce([reading.logit for reading in readings.values()])) if readings else 0.0


@lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


def weights_for(catalogue: Catalogue, is_judged: bool = True) -> EvidenceWeights:
    """The weights for a collection: those fitted on it, unless they are outdated. is_judged: by the trained judge."""
    record = catalogue.settings.get(_SETTING, dict)
    return _weights(record) if record and not is_outdated(catalogue) else shipped(is_judged)


def shipped(is_judged: bool) -> EvidenceWeights:
    """The weights that settle comes with."""
    return SHIPPED if is_judged else SHIPPED_UNREAD


def is_outdated(catalogue: Catalogue) -> bool:
    """Whether weights were fitted to a collection that cannot be used any more: most of its documents are others by
    now, or other features are computed."""
    record = catalogue.settings.get(_SETTING, dict)
    if not record:
        return False
    return record["version"] != VERSION or is_stale(catalogue, _weights(record))


def _weights(record: Mapping[str, Any]) -> EvidenceWeights:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return EvidenceWeights(**values)


def is_stale(catalogue: Catalogue, weights: EvidenceWeights) -> bool:
    """Whether so many passages are new or gone since the fit that it no longer describes the collection."""
    new = catalogue.ids.last - weights.last
    gone = weights.passages + new - catalogue.counts()["passages"]
    return max(new, gone) > DRIFTED * weights.passages


def store(catalogue: Catalogue, weights: EvidenceWeights) -> EvidenceWeights:
    """Stores weights with the collection, as fitted on its present documents."""
    stored = replace(weights, passages=catalogue.counts()["passages"], last=catalogue.ids.last)
    catalogue.settings.set(_SETTING, asdict(stored))
    return stored
