"""The passages for a question, and whether they hold an answer: surely, perhaps, or not.

A logistic model weighs what the trained judge read and the nearest cosine; without the judge the cosine, and the share
of the question's words that a passage has. Its score is compared with two thresholds. What `--check` calibrates on a
collection is the threshold of refusals, and without the judge where the embedder's cosines lie (see `calibration.py`);
the weights are the shipped ones everywhere.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import exp, log

import numpy as np

from settle.retrieve.answer.answer_judge import UNREAD, JudgeReading, answer_judge
from settle.retrieve.answer.pair_models import PairModel, pair_model
from settle.retrieve.index.catalogue import Catalogue, Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search import Hit, query, search

VERSION = 13  # of the features: weights of another version are not used
DEPTH = 10  # hits that are examined
UNLIKELY = 0.22  # score below which a question is refused: a wrong refusal counts as much as 3.5 wrong answers
SURE = 0.7  # score from which on an answer comes without a warning
DRIFTED = 0.5  # share of new or removed passages above which a calibration is no longer used
_SETTING = "evidence"

# Each of them speaks for an answer, and they are added with weights that are not negative: no feature can make another
# one count for less. The length of a question, the share of it that occurs nowhere, and the lead of the best hit are no
# features: they depend on who asks and on the other documents, so their weights do not transfer.
FEATURES = (
    "similarity",  # the nearest hit's cosine with the question
    "covered",  # weighted share of the question's words that one passage has
    "judged",  # the largest logit of the trained judge that a passage answers; 0 without a judge
)
SIMILARITY, COVERED, JUDGED = range(len(FEATURES))


@dataclass(frozen=True)
class EvidenceWeights:
    """A logistic model over standardized features, and its thresholds.

    Legend: F features.
    """

    means: tuple[float, ...]  # (F,)
    scales: tuple[float, ...]  # (F,)
    weights: tuple[float, ...]  # (F,)
    bias: float
    threshold: float  # score below which a question is refused
    sure: float = SURE  # score from which on it is answered without a warning
    floor: float = 0.0  # value of `limiting` below which a question is refused, whatever else is known
    near: float = 0.0  # value of `limiting` below which no answer is sure; there is no limit where it equals `floor`
    limiting: int = SIMILARITY  # a feature
    questions: int = 0  # that it was calibrated on; 0 for the shipped one
    passages: int = 0  # of the collection when it was calibrated
    last: int = 0  # highest id of a passage at that time
    version: int = VERSION  # of the features

    def score(self, features: np.ndarray) -> float:
        """Return the score from 0 to 1 of features (F,). It does not fall when one of them rises."""
        logit = float((features - np.array(self.means)) / np.array(self.scales) @ np.array(self.weights)) + self.bias
        score = 1 / (1 + exp(-max(-30.0, min(30.0, logit))))
        if self.floor == self.near:
            return score
        # the most that the limiting feature allows: `UNLIKELY` at `floor`, `SURE` at `near`
        share = (float(features[self.limiting]) - self.floor) / (self.near - self.floor)
        return min(score, max(0.0, min(1.0, UNLIKELY + share * (SURE - UNLIKELY))))


# Fitted by bench/judge_weights.py on the dev halves of questions as people ask them, each collection counting the same,
# and three tenths of the unanswerable ones being off-topic: see docs/method.md.
SHIPPED_UNREAD = EvidenceWeights(
    means=(0.3792, 0.4399, 0.0),
    scales=(0.1633, 0.2614, 1.0),
    weights=(0.644, 0.2805, 0.0),
    bias=0.0128,
    threshold=UNLIKELY,
    floor=0.05,  # where cosines may lie anywhere, a passage has to have some of the question's words
    near=0.3,
    limiting=COVERED,
)
# With the judge, the words that a passage has tell no more. Of the questions it was fitted on, 0.4 % of the answerable
# ones lie below the floor and 36 % of the off-topic ones; above `near` lie 8 % of the off-topic ones.
SHIPPED = EvidenceWeights(
    means=(0.3792, 0.4399, -1.3045),
    scales=(0.1633, 0.2614, 2.0059),
    weights=(0.4153, 0.0, 1.328),
    bias=0.0304,
    threshold=UNLIKELY,
    floor=0.13,
    near=0.25,
)


@dataclass(frozen=True)
class Evidence:
    """How likely the hits of a question hold an answer."""

    score: float  # the probability of an answer, were half of all questions answerable
    threshold: float  # a question with a lower score is refused
    sure: float  # one with a lower score is answered with a warning
    covered: float  # weighted share of the question's words that the best passage has
    missing: tuple[str, ...]  # the question's words that no passage has

    @property
    def enough(self) -> bool:
        """Return whether the question is answered at all."""
        return self.score >= self.threshold

    @property
    def is_sure(self) -> bool:
        """Return whether it is answered without a warning."""
        return self.score >= max(self.sure, self.threshold)


def judge(
    collection: Collection, question: str, hits: Sequence[Hit], readings: Mapping[int, JudgeReading] = UNREAD
) -> Evidence:
    """Return the evidence for an answer in the hits of a question, the best first.

    readings: what the trained judge read in some of them, by the passage's id; none where there is no judge.
    """
    weights = weights_for(collection.catalogue, bool(readings))
    features = features_of(collection, question, hits, readings=readings)
    there = {stem for hit in hits[:DEPTH] for stem in _stems(hit.passage.embedded)}
    missing = (word.strip(".,;:?!\"'()") for word in question.split() if not there.issuperset(words(word)))
    covered = float(features[COVERED])
    return Evidence(weights.score(features), weights.threshold, weights.sure, covered, tuple(dict.fromkeys(missing)))


def features_of(
    collection: Collection,
    question: str,
    hits: Sequence[Hit],
    without: Sequence[Passage] = (),
    readings: Mapping[int, JudgeReading] = UNREAD,
) -> np.ndarray:
    """Return the features (F,) of a question and its hits.

    without: passages that were left out of the search, and of the words' frequencies. readings: as of `judge`.
    """
    shares = covered_shares(collection, question, [hit.passage.embedded for hit in hits[:DEPTH]], without)
    judged = max((reading.logit for reading in readings.values()), default=0.0)
    return np.array([max((hit.similarity for hit in hits[:DEPTH]), default=0.0), max(shares, default=0.0), judged])


def covered_shares(
    collection: Collection, question: str, texts: Sequence[str], without: Sequence[Passage] = ()
) -> list[float]:
    """Return the share of a question's words that each text has, weighted by their information in nats.

    without: as of `features_of`.
    """
    total = max(2, collection.catalogue.counts()["passages"] - len(without))
    own = set(query(question).stems)
    frequencies = Counter(collection.catalogue.words.frequencies(own))
    frequencies.subtract(stem for passage in without for stem in _stems(passage.embedded).intersection(own))
    weight_of = {stem: log(1 + (total - frequencies[stem] + 0.5) / (frequencies[stem] + 0.5)) for stem in own}
    total_weight = sum(weight_of.values()) or 1.0
    return [sum(weight_of[stem] for stem in own & _stems(text)) / total_weight for text in texts]


@lru_cache(maxsize=16384)
def _stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


def weights_for(catalogue: Catalogue, is_judged: bool = True) -> EvidenceWeights:
    """Return the weights for a collection: those calibrated on it, unless they are outdated.

    is_judged: whether the trained judge has read the hits.
    """
    return _calibrated(catalogue) or shipped(is_judged)


def shipped(is_judged: bool) -> EvidenceWeights:
    """Return the weights that settle comes with."""
    return SHIPPED if is_judged else SHIPPED_UNREAD


def is_outdated(catalogue: Catalogue) -> bool:
    """Return whether a collection has a calibration that is no longer used."""
    return bool(catalogue.settings.get(_SETTING, dict)) and _calibrated(catalogue) is None


def store(catalogue: Catalogue, weights: EvidenceWeights) -> EvidenceWeights:
    """Store weights with the collection, as calibrated on its present documents, and return them."""
    stored = replace(weights, passages=catalogue.counts()["passages"], last=catalogue.ids.last)
    catalogue.settings.set(_SETTING, asdict(stored))
    return stored


def _calibrated(catalogue: Catalogue) -> EvidenceWeights | None:
    """Return the weights calibrated on a collection; None where there are none that are still of use."""
    record = catalogue.settings.get(_SETTING, dict)
    if not record or record["version"] != VERSION:
        return None
    lists = {key: tuple(record[key]) for key in ("means", "scales", "weights")}
    weights = EvidenceWeights(**{**record, **lists})
    new = catalogue.ids.last - weights.last
    gone = weights.passages + new - catalogue.counts()["passages"]
    return None if max(new, gone) > DRIFTED * weights.passages else weights


PASSAGES = 4  # that an answer is made from
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
    """The passages for a question."""

    question: str
    before: str  # the question that it refers to, or ""
    hits: tuple[Hit, ...]  # the best first
    evidence: Evidence
    readings: Mapping[int, JudgeReading] = field(default_factory=lambda: UNREAD)  # of the best of them, by passage

    @property
    def whole_question(self) -> str:
        """The question with the one before it."""
        return f"{self.before} {self.question}".strip()


def retrieve(collection: Collection, question: str, earlier: Sequence[str] = (), k: int = PASSAGES) -> Retrieval:
    """Search for a question, and judge the evidence.

    earlier: the questions before this one, in order. Where the question may refer to the last of them, it is searched
    for with and without it, and the two rankings are interleaved.
    """
    hits, readings = read_best(collection, question, search(collection, question, max(k, DEPTH)))
    evidence = judge(collection, question, hits, readings)
    if not earlier or not may_refer_back(question):
        return Retrieval(question, "", tuple(hits[:k]), evidence, readings)
    both = f"{query(earlier[-1]).topic} {query(question).topic}"
    hits_of_both, of_both = read_best(collection, both, search(collection, both, max(k, DEPTH)))
    evidence = max(evidence, judge(collection, both, hits_of_both, of_both), key=lambda e: e.score)
    interleaved = itertools.chain.from_iterable(itertools.zip_longest(hits, hits_of_both))
    by_passage = {hit.passage.id: hit for hit in interleaved if hit is not None}
    return Retrieval(question, earlier[-1], tuple(by_passage.values())[:k], evidence, {**of_both, **readings})


def read_best(collection: Collection, question: str, hits: Sequence[Hit]) -> tuple[list[Hit], dict[int, JudgeReading]]:
    """Let a reranker of the store order the first `DEPTH` hits, and the trained judge read the first `RERANKED`.

    Returns the hits, these in the reranker's order, or else the judge's, and what that read, by the passage's id.
    """
    reranker, reader = pair_model("rerank"), answer_judge(collection)
    if reranker is not None:
        hits = reordered(reranker, question, hits)
    first, others = hits[:RERANKED], hits[RERANKED:]
    if reader is None or not first:
        return list(hits), {}
    readings = reader.read(question, [hit.passage for hit in first])
    likely = 1 / (1 + np.exp([-reading.logit for reading in readings]))
    scores = [hit.score + JUDGE_WEIGHT * float(share) for hit, share in zip(first, likely, strict=True)]
    order = sorted(range(len(first)), key=lambda place: 0 if reranker else -scores[place])
    by_passage = {hit.passage.id: reading for hit, reading in zip(first, readings, strict=True)}
    return [*(first[place] for place in order), *others], by_passage


def reordered(reranker: PairModel, question: str, hits: Sequence[Hit]) -> list[Hit]:
    """Return hits with the first `DEPTH` in the order in which a reranker finds that they answer."""
    first = hits[:DEPTH]
    logits = reranker.logits([(question, hit.passage.embedded) for hit in first])
    order = sorted(range(len(first)), key=lambda place: -logits[place])
    return [*(first[place] for place in order), *hits[DEPTH:]]


def may_refer_back(question: str) -> bool:
    """Return whether a question may refer to the one before: it is short, or has a word that points back."""
    return len(set(words(question))) <= _FEW_WORDS or bool(_REFERRING.search(question))
