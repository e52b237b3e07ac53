"""The evidence, calibrated on a collection: each generated question is asked with its topic there and left out.

n questions, F features.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import floor, sqrt

import numpy as np

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import FEWEST_FAMILIES
from settle.evaluate.calibration import CalibrationReport
from settle.retrieve.answer.evidence import (
    DEPTH,
    FEATURES,
    SIMILARITY,
    UNLIKELY,
    EvidenceWeights,
    covered_shares,
    features_of,
    read_best,
    shipped,
)
from settle.retrieve.check.questions import CheckQuestion
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences
from settle.retrieve.search import Hit, search

LEAST = 40  # questions: fewer do not calibrate
FALSE_REFUSALS = 0.05  # most of the answerable questions that may be refused, however low their scores
FOLDS = 5
LEFT = 0.85  # weighted share of a question's words from which on one line elsewhere still has its topic


@dataclass(frozen=True)
class RefusalTrial:
    """A question that was asked twice, with its topic in the index and with it left out."""

    question: CheckQuestion
    hits: tuple[Hit, ...]  # with its topic in the index
    rank: int | None  # of the first hit that answers it, from 0
    there: np.ndarray  # features (F,) with its topic in the index
    gone: np.ndarray  # features (F,) with its topic left out
    is_gone: bool = True  # nothing else is about the topic
    is_judged: bool = False  # the trained judge has read its hits


@dataclass(frozen=True)
class EvidenceCalibration:
    """The evidence as calibrated on n trials."""

    weights: EvidenceWeights  # the shipped ones where the trials are too few
    there: np.ndarray  # (n,), the score of each trial with its topic in the index
    gone: np.ndarray  # (n,), with its topic left out; nan for one whose topic is left elsewhere
    thresholds: np.ndarray  # (n,), by the trials of other families


def run_trials(collection: Collection, questions: Sequence[CheckQuestion], events: Events) -> list[RefusalTrial]:
    """Ask each question twice."""
    trials = []
    for number, question in enumerate(questions, 1):
        trials.append(_run_trial(collection, question))
        events.emit(Progress(what="check", done=number, total=len(questions), unit="questions"))
    return trials


def _run_trial(collection: Collection, question: CheckQuestion) -> RefusalTrial:
    hits, readings = read_best(collection, question.text, search(collection, question.text, DEPTH))
    extra = question.answers if question.without else question.topic  # they may be in other documents too
    left = search(collection, question.text, DEPTH + len(extra), question.without)
    left = [hit for hit in left if hit.passage.id not in question.topic]
    topic = collection.catalogue.passages.get(list(question.topic))
    left, of_left = read_best(collection, question.text, left)
    gone = features_of(collection, question.text, left, list(topic.values()), of_left)
    return RefusalTrial(
        question,
        tuple(hits),
        next((rank for rank, hit in enumerate(hits) if hit.passage.id in question.answers), None),
        features_of(collection, question.text, hits, readings=readings),
        gone,
        _best_line(collection, question.text, left, topic.values()) < LEFT,
        bool(readings),
    )


def _best_line(collection: Collection, question: str, hits: Sequence[Hit], without: Iterable[Passage]) -> float:
    """Return the largest weighted share of a question's words that one line of the hits has, its heading included."""
    lines = [
        " ".join((*hit.passage.headings[-1:], line)) for hit in hits[:DEPTH] for line in sentences(hit.passage.text)
    ]
    return max(covered_shares(collection, question, lines, list(without)), default=0.0)


def calibrate(trials: Sequence[RefusalTrial]) -> EvidenceCalibration:
    """Return the shipped weights with a threshold that suits these trials.

    It is `UNLIKELY`, or refuses at most `FALSE_REFUSALS` of the answerable questions. Weights that were fitted to
    generated questions, which repeat the documents' words, were worse on people's, with the trained judge and without.
    """
    there = np.array([trial.there for trial in trials]).reshape(-1, len(FEATURES))
    gone = np.array([trial.gone for trial in trials]).reshape(-1, len(FEATURES))
    is_gone = np.array([trial.is_gone for trial in trials], bool)
    is_judged = any(trial.is_judged for trial in trials)
    weights, is_enough = shipped(is_judged), min(len(trials), 2 * is_gone.sum()) >= LEAST
    if is_enough and not is_judged:
        weights = _standardized(weights, there, gone[is_gone])
    scores_there, scores_gone = (np.array([weights.score(row) for row in rows]) for rows in (there, gone))
    scores_gone[~is_gone] = np.nan
    if not is_enough:
        return EvidenceCalibration(weights, scores_there, scores_gone, np.full(len(trials), weights.threshold))
    _, family = np.unique(families_of(trials), return_inverse=True)
    fold = (np.random.default_rng(0).permutation(family.max() + 1) % FOLDS)[family]  # a family is in one of them
    thresholds = [min(UNLIKELY, threshold(scores_there[fold != n])) for n in range(FOLDS)]
    weights = replace(weights, threshold=min(UNLIKELY, threshold(scores_there)), questions=len(trials))
    return EvidenceCalibration(weights, scores_there, scores_gone, np.array(thresholds)[fold])


def _standardized(weights: EvidenceWeights, there: np.ndarray, gone: np.ndarray) -> EvidenceWeights:
    """Return weights whose cosine is standardized on features (n, F) with an answer and (m, F) without.

    Another embedder's cosines lie elsewhere. Both kinds count the same, as if there were as many of each.
    """
    kinds = [features[:, SIMILARITY] for features in (there, gone)]
    mean = sum(float(kind.mean()) for kind in kinds) / 2
    variance = sum(float(((kind - mean) ** 2).mean()) for kind in kinds) / 2
    means, scales = list(weights.means), list(weights.scales)
    means[SIMILARITY], scales[SIMILARITY] = mean, sqrt(variance) + 1e-6
    return replace(weights, means=tuple(means), scales=tuple(scales))


def report_of(calibration: EvidenceCalibration, families: Sequence[int]) -> CalibrationReport:
    """Return how far the scores, as probabilities of an answer, agree with the outcomes, each trial asked both ways.

    families: one for each trial.
    """
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


def families_of(trials: Sequence[RefusalTrial]) -> list[int]:
    """Return the family of each trial: its document, or its passage where there are few documents.

    Questions of one family are alike. Where there are too few families, each trial is its own.
    """
    ways = [trial.question.document for trial in trials], [trial.question.passage for trial in trials]
    return next((way for way in ways if len(set(way)) >= FEWEST_FAMILIES), list(range(len(trials))))


def threshold(scores: np.ndarray, refused: float = FALSE_REFUSALS) -> float:
    """Return the threshold that refuses the next answerable question with a probability of at most `refused`.

    It is the conformal quantile of scores (n,) of such questions.
    """
    return float(np.sort(scores)[max(0, floor(refused * (len(scores) + 1)) - 1)])
