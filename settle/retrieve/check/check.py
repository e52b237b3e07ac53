"""How often the right passage is found, and how often a refusal is right.

Questions are generated from the collection's own documents (`questions.py`), so their answers are known; each is asked
with its topic in the index and with it left out. Every share has a 95 % interval.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import Interval, bootstrap_mean, wilson
from settle.evaluate.calibration import CalibrationReport
from settle.infer.client import LlamaClient
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.evidence import DEPTH, store
from settle.retrieve.answer.retrieval import retrieve
from settle.retrieve.check.calibration import Trial, calibrate, families_of, report_of, run_trials
from settle.retrieve.check.synthetic_questions.questions import make
from settle.retrieve.check.worst_documents import HIT, Worst, worst
from settle.retrieve.index.collection import Collection

QUESTIONS = 300
ANSWERED = 40  # questions that a model answers, to check its citations


@dataclass(frozen=True)
class CheckResult:
    """The figures of a check.

    recall: share of the questions whose passage is among the first k, by k; mrr: mean of 1 ÷ its rank, 0 below the
    tenth. refused: share of the unanswerable questions that are refused; false_refusals: of the answerable ones. cited:
    share of a model's citations that are of a passage with the answer, None without a model. kinds: by what questions
    were made from, their number and recall at 5. threshold: of the evidence; scores: with the topic in the index, one
    for each question, and with it left out, one for each whose topic is nowhere else. is_calibrated: whether the
    evidence was, on these documents, which takes enough questions. calibration: of the scores as probabilities.
    """

    name: str
    questions: int
    recall: dict[int, Interval]
    mrr: Interval
    refused: Interval
    false_refusals: Interval
    cited: Interval | None
    kinds: dict[str, tuple[int, Interval]]
    worst: list[Worst]
    threshold: float
    scores: tuple[list[float], list[float]]
    is_calibrated: bool
    seconds: float
    calibration: CalibrationReport | None = None

    def to_json(self) -> dict[str, object]:
        record = asdict(self)
        record |= {k: v.to_json() for k, v in vars(self).items() if isinstance(v, Interval)}
        record["recall"] = {str(k): share.to_json() for k, share in self.recall.items()}
        record["kinds"] = {kind: {"questions": n, "recall": share.to_json()} for kind, (n, share) in self.kinds.items()}
        record["calibration"] = self.calibration.to_json() if self.calibration else None
        del record["scores"]
        return record


def check(
    collection: Collection, events: Events, questions: int = QUESTIONS, model: LlamaClient | None = None, seed: int = 0
) -> CheckResult:
    """Checks a collection, and stores the evidence as calibrated on the way. model: writes some of the questions, and
    answers some. Raises DataError when no question can be generated from the documents."""
    began = time.monotonic()
    generated = make(collection, questions, seed, model)
    if not generated:
        raise DataError(
            f"no question can be made from the documents of {collection.name}", "index documents that have text"
        )
    trials = run_trials(collection, generated, events)
    calibration = calibrate(trials)
    weights, is_gone = calibration.weights, ~np.isnan(calibration.gone)
    if weights.questions:
        store(collection.catalogue, weights)
    cited = _cited(collection, trials, model, events) if model else None
    families = families_of(trials)
    gone = [family for family, is_left_out in zip(families, is_gone.tolist(), strict=True) if is_left_out]
    return CheckResult(
        name=collection.name,
        questions=len(trials),
        recall={k: wilson([_is_found(trial, k) for trial in trials], families) for k in range(1, DEPTH + 1)},
        mrr=bootstrap_mean([0.0 if trial.rank is None else 1 / (trial.rank + 1) for trial in trials]),
        refused=wilson((calibration.gone < calibration.thresholds)[is_gone].tolist(), gone),
        false_refusals=wilson((calibration.there < calibration.thresholds).tolist(), families),
        cited=wilson(cited) if cited is not None else None,
        kinds=_by_kind(trials),
        worst=worst(collection, trials),
        threshold=weights.threshold,
        scores=(calibration.there.tolist(), calibration.gone[is_gone].tolist()),
        is_calibrated=weights.questions > 0,
        seconds=time.monotonic() - began,
        calibration=report_of(calibration, families),
    )


def _is_found(trial: Trial, k: int) -> bool:
    return trial.rank is not None and trial.rank < k


def _by_kind(trials: Sequence[Trial]) -> dict[str, tuple[int, Interval]]:
    """The number and recall of each kind of question, the most frequent kind first."""
    by_kind: dict[str, list[bool]] = {}
    for trial in trials:
        by_kind.setdefault(trial.question.kind, []).append(_is_found(trial, HIT))
    return {kind: (len(of), wilson(of)) for kind, of in sorted(by_kind.items(), key=lambda item: -len(item[1]))}


def _cited(collection: Collection, trials: Sequence[Trial], model: LlamaClient, events: Events) -> list[bool]:
    """Whether the passage of each citation holds the answer, in the answers to some questions."""
    some = trials[:: max(1, len(trials) // ANSWERED)][:ANSWERED]
    right = []
    for number, trial in enumerate(some, 1):
        answer = finish_answer(stream_answer(collection, model, retrieve(collection, trial.question.text)))
        if answer.kind == "written":
            cited = (sentence.piece for sentence in answer.sentences)
            right += [piece.passage.id in trial.question.answers for piece in cited if piece]
        events.emit(Progress(what="answers", done=number, total=len(some), unit="questions"))
    return right
