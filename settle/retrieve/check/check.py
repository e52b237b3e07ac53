"""How often a collection's right passage is found, and how often it says rightly that it does not know.

Questions are made from its own documents (`questions.py`), so their answers are known; each is asked with its topic
there and with it left out. Every share has its 95 % interval.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import Interval, bootstrap_mean, wilson
from settle.infer.client import LlamaClient
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.evidence import DEPTH, keep
from settle.retrieve.answer.retrieval import retrieve
from settle.retrieve.check.calibration import Trial, fitted, tried
from settle.retrieve.check.synthetic_questions.questions import make
from settle.retrieve.check.worst_documents import HIT, Worst, worst
from settle.retrieve.index.collection import Collection

QUESTIONS = 300
ANSWERED = 40  # questions that a model answers, to see whether its citations are right


@dataclass(frozen=True)
class Checked:
    """What a check found.

    recall: share of the questions whose passage is among the first k, by k; mrr: mean of 1 ÷ its rank, 0 below the
    tenth. refused: share of the questions about what is not there that are refused; false_refusals: of those with an
    answer. cited: share of a model's citations that are of a passage with the answer, None without a model. kinds: by
    what questions were made from, their number and recall at 5. threshold: of the evidence, and scores: with the topic
    there, one for each question, and with it left out, one for each that nothing else speaks of. is_calibrated: whether
    the evidence was fitted on these documents, which takes enough questions.
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

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        record |= {k: v.to_json() for k, v in vars(self).items() if isinstance(v, Interval)}
        record["recall"] = {str(k): share.to_json() for k, share in self.recall.items()}
        record["kinds"] = {kind: {"questions": n, "recall": share.to_json()} for kind, (n, share) in self.kinds.items()}
        del record["scores"]
        return record


def check(
    collection: Collection, events: Events, questions: int = QUESTIONS, model: LlamaClient | None = None, seed: int = 0
) -> Checked:
    """Checks a collection, and keeps the evidence that is calibrated on the way. model: asks some of the questions, and
    answers some. Raises DataError when no question can be made from the documents."""
    began = time.monotonic()
    asked = make(collection, questions, seed, model)
    if not asked:
        raise DataError(f"no question can be made from the documents of {collection.name}", "index some that have text")
    trials = tried(collection, asked, events)
    weighed = fitted(trials)
    weighing, is_gone = weighed.weighing, ~np.isnan(weighed.gone)
    if weighing.questions:
        keep(collection.catalogue, weighing)
    cited = _cited(collection, trials, model, events) if model else None
    return Checked(
        name=collection.name,
        questions=len(trials),
        recall={k: wilson([_is_found(trial, k) for trial in trials]) for k in range(1, DEPTH + 1)},
        mrr=bootstrap_mean([0.0 if trial.rank is None else 1 / (trial.rank + 1) for trial in trials]),
        refused=wilson((weighed.gone < weighed.thresholds)[is_gone].tolist()),
        false_refusals=wilson((weighed.there < weighed.thresholds).tolist()),
        cited=wilson(cited) if cited is not None else None,
        kinds=_by_kind(trials),
        worst=worst(collection, trials),
        threshold=weighing.threshold,
        scores=(weighed.there.tolist(), weighed.gone[is_gone].tolist()),
        is_calibrated=weighing.questions > 0,
        seconds=time.monotonic() - began,
    )


def _is_found(trial: Trial, k: int) -> bool:
    return trial.rank is not None and trial.rank < k


def _by_kind(trials: Sequence[Trial]) -> dict[str, tuple[int, Interval]]:
    """The most frequent one first."""
    found: dict[str, list[bool]] = {}
    for trial in trials:
        found.setdefault(trial.question.kind, []).append(_is_found(trial, HIT))
    return {kind: (len(of), wilson(of)) for kind, of in sorted(found.items(), key=lambda item: -len(item[1]))}


def _cited(collection: Collection, trials: Sequence[Trial], model: LlamaClient, events: Events) -> list[bool]:
    """Of each citation in the answers to some questions, whether its passage holds the answer."""
    some = trials[:: max(1, len(trials) // ANSWERED)][:ANSWERED]
    right = []
    for number, trial in enumerate(some, 1):
        told = finish_answer(stream_answer(collection, model, retrieve(collection, trial.question.text)))
        if told.kind == "written":
            cited = (sentence.piece for sentence in told.sentences)
            right += [piece.passage.id in trial.question.answers for piece in cited if piece]
        events.emit(Progress(what="answers", done=number, total=len(some), unit="questions"))
    return right
