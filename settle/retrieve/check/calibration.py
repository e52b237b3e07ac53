"""The evidence, calibrated on a collection: each generated question is asked with its topic there and left out.

n questions, F features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor, log

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import FEWEST_FAMILIES
from settle.evaluate.calibration import CalibrationReport
from settle.retrieve.answer.evidence import (
    DEPTH,
    FEATURES,
    SHIPPED,
    UNLIKELY,
    EvidenceWeights,
    covered_shares,
    features_of,
    shipped,
)
from settle.retrieve.answer.retrieval import read_best
from settle.retrieve.answer.sentences import sentences
from settle.retrieve.check.synthetic_questions.questions import Question
from settle.retrieve.index.catalogue.records import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import Hit, search

LEAST = 40  # questions: with fewer the shipped weights are better than fitted ones
FALSE_REFUSALS = 0.05  # most of the answerable questions that may be refused, however low their scores
FOLDS = 5
LEFT = 0.85  # weighted share of a question's words from which on one line elsewhere still has its topic
_PRIOR_PRECISION = 5.0  # of each shipped weight, as the mean of the prior
_STEPS = 100
_CONVERGED = 1e-8  # largest change of a weight in the last step


@dataclass(frozen=True)
class Trial:
    """A question that was asked twice. hits: with its topic in the index; rank: of the first hit that answers it, from
    0, or None; there, gone: features (F,) with its topic in the index, and with it left out. is_gone: whether nothing
    else is about the topic; is_judged: whether the trained judge has read its hits."""

    question: Question
    hits: tuple[Hit, ...]
    rank: int | None
    there: np.ndarray
    gone: np.ndarray
    is_gone: bool = True
    is_judged: bool = False


@dataclass(frozen=True)
class Calibration:
    """weights: fitted on all trials, or the shipped ones where those are too few. there, gone: scores (n,) of each
    trial by weights that were fitted without it and its family, nan for one whose topic is left elsewhere; thresholds
    (n,): of those weights."""

    weights: EvidenceWeights
    there: np.ndarray
    gone: np.ndarray
    thresholds: np.ndarray


def run_trials(collection: Collection, questions: Sequence[Question], events: Events) -> list[Trial]:
    """Asks each question twice."""
    trials = []
    for number, question in enumerate(questions, 1):
        trials.append(_run_trial(collection, question))
        events.emit(Progress(what="check", done=number, total=len(questions), unit="questions"))
    return trials


def _run_trial(collection: Collection, question: Question) -> Trial:
    hits, readings = read_best(collection, question.text, search(collection, question.text, DEPTH))
    extra = question.answers if question.without else question.topic  # they may be in other documents too
    left = search(collection, question.text, DEPTH + len(extra), question.without)
    left = [hit for hit in left if hit.passage.id not in question.topic]
    topic = collection.catalogue.passages.get(list(question.topic))
    left, of_left = read_best(collection, question.text, left)
    gone = features_of(collection, question.text, left, list(topic.values()), of_left)
    return Trial(
        question,
        tuple(hits),
        next((rank for rank, hit in enumerate(hits) if hit.passage.id in question.answers), None),
        features_of(collection, question.text, hits, readings=readings),
        gone,
        _best_line(collection, question.text, left, topic.values()) < LEFT,
        bool(readings),
    )


def _best_line(collection: Collection, question: str, hits: Sequence[Hit], without: Iterable[Passage]) -> float:
    """The largest weighted share of a question's words that one line of the hits has, its heading included."""
    lines = [
        " ".join((*hit.passage.headings[-1:], line)) for hit in hits[:DEPTH] for line in sentences(hit.passage.text)
    ]
    return max(covered_shares(collection, question, lines, list(without)), default=0.0)


def cross_validate(trials: Sequence[Trial]) -> Calibration:
    """A threshold of `UNLIKELY`, or one that refuses at most `FALSE_REFUSALS` of the answerable questions left out of
    the fit. With the trained judge the weights are the shipped ones: fitted to generated questions, which repeat the
    documents' words, they were worse on people's in each of six collections. Without it, where an embedder's cosines
    may lie elsewhere, weights of the same features by logistic regression with the shipped ones as prior."""
    there = np.array([trial.there for trial in trials]).reshape(-1, len(FEATURES))
    gone = np.array([trial.gone for trial in trials]).reshape(-1, len(FEATURES))
    is_gone = np.array([trial.is_gone for trial in trials], bool)
    is_judged = any(trial.is_judged for trial in trials)
    usual = shipped(is_judged)
    is_used = np.array(usual.weights) > 0
    there, gone = there * is_used, gone * is_used

    def fitted(some: np.ndarray) -> EvidenceWeights:
        if is_judged:
            return usual
        own = fit(there[some], gone[some & is_gone], usual.weights)
        return replace(own, floor=usual.floor, near=usual.near, limiting=usual.limiting)

    if min(len(trials), 2 * is_gone.sum()) < LEAST:
        few = [np.array([usual.score(row) for row in features]) for features in (there, gone)]
        few[1][~is_gone] = np.nan
        return Calibration(usual, few[0], few[1], np.full(len(trials), usual.threshold))
    _, family = np.unique(families_of(trials), return_inverse=True)
    fold = (np.random.default_rng(0).permutation(family.max() + 1) % FOLDS)[family]  # a family is in one of them
    scores = np.zeros((2, len(trials)))
    for n in range(FOLDS):
        weights = fitted(fold != n)
        for kind, features in enumerate((there, gone)):
            scores[kind, fold == n] = [weights.score(row) for row in features[fold == n]]
    scores[1, ~is_gone] = np.nan
    by_fold = [min(UNLIKELY, threshold(scores[0, fold != n])) for n in range(FOLDS)]
    thresholds = np.array(by_fold)[fold]
    limit = min(UNLIKELY, threshold(scores[0]))
    weights = replace(fitted(np.ones(len(trials), bool)), threshold=limit, questions=len(trials))
    return Calibration(weights, scores[0], scores[1], thresholds)


def report_of(calibration: Calibration, families: Sequence[int]) -> CalibrationReport:
    """Whether the scores mean what they say: as probabilities of an answer, each trial asked both ways. families: one
    for each trial."""
    kinds = (calibration.there, calibration.gone)
    known = [~np.isnan(scores) for scores in kinds]
    scores = np.concatenate([scores[own] for scores, own in zip(kinds, known, strict=True)])
    there = np.repeat([1.0, 0.0], [int(own.sum()) for own in known])
    own_families = [
        family for own in known for family, is_known in zip(families, own.tolist(), strict=True) if is_known
    ]
    return CalibrationReport.of(
        np.column_stack([1 - scores, scores]), np.column_stack([1 - there, there]), own_families
    )


def families_of(trials: Sequence[Trial]) -> list[int]:
    """The family of each trial: questions about one document are alike, or about one passage where there are few
    documents; else each stands for itself."""
    ways = [trial.question.document for trial in trials], [trial.question.passage for trial in trials]
    return next((way for way in ways if len(set(way)) >= FEWEST_FAMILIES), list(range(len(trials))))


def threshold(scores: np.ndarray, refused: float = FALSE_REFUSALS) -> float:
    """The threshold that refuses the next answerable question with a probability of at most `refused`: the conformal
    quantile of scores (n,) of such questions."""
    return float(np.sort(scores)[max(0, floor(refused * (len(scores) + 1)) - 1)])


def fit(
    there: np.ndarray, gone: np.ndarray, prior: Sequence[float] = SHIPPED.weights, trust: float = _PRIOR_PRECISION
) -> EvidenceWeights:
    """Weights for features (n, F) with an answer and (m, F) without, by penalised likelihood. prior: (F,), with the
    precision `trust`. No weight is negative: every feature speaks for an answer."""
    features = np.concatenate([there, gone])
    answered = np.repeat([1.0, 0.0], [len(there), len(gone)])
    means, scales = features.mean(0), features.std(0) + 1e-6
    z = np.column_stack([(features - means) / scales, np.ones(len(features))])
    drawn, precision = np.array([*prior, 0.0]), np.array([trust] * len(prior) + [1e-6])
    is_free = np.ones(len(drawn), bool)
    while True:
        w = np.zeros(len(drawn))
        w[is_free] = _newton(z[:, is_free], answered, drawn[is_free], precision[is_free])
        if (w[:-1] >= 0).all():
            break
        is_free[int(np.argmin(w[:-1]))] = False
    bias = float(w[-1]) - log(len(there) / len(gone))  # as if there were as many of each
    return EvidenceWeights(tuple(means.tolist()), tuple(scales.tolist()), tuple(w[:-1].tolist()), bias, UNLIKELY)


def _newton(z: np.ndarray, answered: np.ndarray, drawn: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The likeliest weights (F,) for features (n, F), with a normal prior: means `drawn` (F,), precisions (F,)."""

    def loss(w: np.ndarray) -> float:
        logits = z @ w
        return float(np.logaddexp(0, logits).sum() - answered @ logits + precision @ (w - drawn) ** 2 / 2)

    w = drawn.copy()
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (p - answered) + precision * (w - drawn)
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + np.diag(precision), slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > _CONVERGED:
            step /= 2  # where the curve is flat the step goes too far
        w -= step
        if np.abs(step).max() <= _CONVERGED:
            break
    return w
