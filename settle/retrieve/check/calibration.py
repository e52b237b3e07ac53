"""The evidence, fitted to a collection: questions made from its documents, asked with their topic there and left out.

n questions, F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, log

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.retrieve.answer.evidence import DEPTH, FEATURES, SHIPPED, UNLIKELY, Weighing, keep, measured
from settle.retrieve.check.synthetic_questions.questions import Question, make
from settle.retrieve.index.collection import Collection
from settle.retrieve.search.hybrid_search import Hit, search

QUESTIONS = 200
LEAST = 40  # questions, below which the shipped weights are better than fitted ones
FALSE_REFUSALS = 0.1  # share of the questions with an answer that may be refused at most, be they ever so unlikely
FOLDS = 5
LEFT = 0.85  # share of what a question's words tell, from which on one line elsewhere says what was left out
_TRUST = 100.0  # how much the shipped weights count against what is fitted: as a prior's precision, per feature
_STEPS = 100
_NEAR = 1e-8  # a step that changes nothing any more


@dataclass(frozen=True)
class Trial:
    """A question that was asked twice. hits: with its topic there; rank: of the first of them that answers it, from 0,
    or None; there, gone: features (F,) with its topic there, and with it left out. is_gone: whether nothing else speaks
    of it."""

    question: Question
    hits: tuple[Hit, ...]
    rank: int | None
    there: np.ndarray
    gone: np.ndarray
    is_gone: bool = True


@dataclass(frozen=True)
class Fitted:
    """weighing: fitted on all trials, or the shipped one where they are too few. there, gone: scores (n,) of each trial
    by a weighing that was fitted without it, nan for one whose topic something else speaks of; thresholds (n,): of that
    weighing."""

    weighing: Weighing
    there: np.ndarray
    gone: np.ndarray
    thresholds: np.ndarray


def calibrate(collection: Collection, events: Events, questions: int = QUESTIONS) -> Weighing | None:
    """Fits the evidence to a collection and keeps it there. None where its documents give too few questions: then the
    shipped one stays."""
    weighing = fitted(tried(collection, make(collection, questions), events)).weighing
    return keep(collection.catalogue, weighing) if weighing.questions else None


def tried(collection: Collection, questions: Sequence[Question], events: Events) -> list[Trial]:
    """Asks each question."""
    trials = []
    for number, question in enumerate(questions, 1):
        trials.append(_tried(collection, question))
        events.emit(Progress(what="check", done=number, total=len(questions), unit="questions"))
    return trials


def _tried(collection: Collection, question: Question) -> Trial:
    hits = search(collection, question.text, DEPTH)
    still_found = question.answers if question.without else question.topic  # as they stand in other documents too
    left = search(collection, question.text, DEPTH + len(still_found), question.without)
    left = [hit for hit in left if hit.passage.id not in question.topic]
    topic = collection.catalogue.passages.get(list(question.topic))
    gone = measured(collection, question.text, left, list(topic.values()))
    return Trial(
        question,
        tuple(hits),
        next((rank for rank, hit in enumerate(hits) if hit.passage.id in question.answers), None),
        measured(collection, question.text, hits),
        gone,
        bool(gone[FEATURES.index("line")] < LEFT),
    )


def fitted(trials: Sequence[Trial]) -> Fitted:
    """Weights by logistic regression, drawn towards the shipped ones; a threshold of `UNLIKELY`, or one that refuses at
    most `FALSE_REFUSALS` of the questions that have an answer, on those left out of the fit."""
    there = np.array([trial.there for trial in trials]).reshape(-1, len(FEATURES))
    gone = np.array([trial.gone for trial in trials]).reshape(-1, len(FEATURES))
    is_gone = np.array([trial.is_gone for trial in trials], bool)
    if min(len(trials), 2 * is_gone.sum()) < LEAST:
        usual = [np.array([SHIPPED.score(row) for row in features]) for features in (there, gone)]
        usual[1][~is_gone] = np.nan
        return Fitted(SHIPPED, usual[0], usual[1], np.full(len(trials), SHIPPED.threshold))
    fold = np.random.default_rng(0).permutation(len(trials)) % FOLDS
    scores = np.zeros((2, len(trials)))
    for n in range(FOLDS):
        weighing = fit(there[fold != n], gone[(fold != n) & is_gone])
        for kind, features in enumerate((there, gone)):
            scores[kind, fold == n] = [weighing.score(row) for row in features[fold == n]]
    scores[1, ~is_gone] = np.nan
    by_fold = [min(UNLIKELY, threshold(scores[0, fold != n])) for n in range(FOLDS)]
    thresholds = np.array(by_fold)[fold]
    found = fit(there, gone[is_gone])
    weighing = replace(found, threshold=min(UNLIKELY, threshold(scores[0])), questions=len(trials))
    return Fitted(weighing, scores[0], scores[1], thresholds)


def threshold(scores: np.ndarray, refused: float = FALSE_REFUSALS) -> float:
    """So that the next question with an answer falls below with a chance of at most `refused`: the conformal quantile
    of scores (n,) of such questions."""
    return float(np.sort(scores)[max(0, floor(refused * (len(scores) + 1)) - 1)])


def fit(
    there: np.ndarray, gone: np.ndarray, prior: Sequence[float] = SHIPPED.weights, trust: float = _TRUST
) -> Weighing:
    """Of features (n, F) and (m, F), by the penalised likelihood; trust: how much the prior's weights (F,) count. What
    speaks for an answer never counts against it: no weight is negative."""
    features = np.concatenate([there, gone])
    answered = np.repeat([1.0, 0.0], [len(there), len(gone)])
    means, scales = features.mean(0), features.std(0) + 1e-6
    z = np.column_stack([(features - means) / scales, np.ones(len(features))])
    drawn, precision = np.array([*prior, 0.0]), np.array([trust] * len(prior) + [1e-6])
    kept = np.ones(len(drawn), bool)
    while True:
        w = np.zeros(len(drawn))
        w[kept] = _newton(z[:, kept], answered, drawn[kept], precision[kept])
        if (w[:-1] >= 0).all():
            break
        kept[int(np.argmin(w[:-1]))] = False
    bias = float(w[-1]) - log(len(there) / len(gone))  # as if there were as many of each
    return Weighing(tuple(means.tolist()), tuple(scales.tolist()), tuple(w[:-1].tolist()), bias, UNLIKELY)


def _newton(z: np.ndarray, answered: np.ndarray, drawn: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """The weights (F,) of features (n, F) that are likeliest, drawn towards some (F,) by precisions (F,)."""

    def loss(w: np.ndarray) -> float:
        logits = z @ w
        return float(np.logaddexp(0, logits).sum() - answered @ logits + precision @ (w - drawn) ** 2 / 2)

    w = drawn.copy()
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (p - answered) + precision * (w - drawn)
        step = np.linalg.solve((z.T * (p * (1 - p))) @ z + np.diag(precision), slope)
        while loss(w - step) > loss(w) and np.abs(step).max() > _NEAR:
            step /= 2  # where the curve is flat the step goes too far
        w -= step
        if np.abs(step).max() <= _NEAR:
            break
    return w
