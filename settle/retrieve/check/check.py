"""How often the right passage is found, and how often a refusal is right.

Questions are generated from the collection's own documents (`questions.py`), so their answers are known; each is asked
with its topic in the index and with it left out. Every share has a 95 % interval.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import Interval, bootstrap_mean, wilson
from settle.evaluate.calibration import CalibrationReport
from settle.infer.client import LlamaClient
from settle.retrieve.answer.ask import finish_answer, stream_answer
from settle.retrieve.answer.evidence import DEPTH, retrieve, store
from settle.retrieve.check.calibration import RefusalTrial, calibrate, families_of, report_of, run_trials
from settle.retrieve.check.groundedness_check import check_groundedness
from settle.retrieve.check.questions import make
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

MOST = 10  # documents that are named
HIT = 5  # hits among which the right passage should be
_SIMILAR = 0.6  # share of a passage's words that another one has, from which on the two are hard to tell apart
_FEW_WORDS = 8  # a passage with no more words is hard to tell from others
_REPETITIVE = 0.15  # a passage with a smaller share of distinct words repeats itself
QUESTIONS = 300
ANSWERED = 40  # questions that a model answers, to check its citations


@dataclass(frozen=True)
class Worst:
    """A document that is found badly."""

    path: str
    asked: int  # how many questions were made from it
    missed: int  # for how many of them no passage was among the first `HIT`
    why: tuple[str, ...]  # in words


def worst(collection: Collection, trials: Sequence[RefusalTrial]) -> list[Worst]:
    """Return at most `MOST` documents that are found badly.

    Unreadable ones come first, then those with the most missed questions, then those that were only partly read.
    """
    by_path: dict[str, list[RefusalTrial]] = defaultdict(list)
    for trial in trials:
        by_path[trial.question.path].append(trial)
    rows = []
    for record in collection.catalogue.documents.all():
        trials_here = by_path.get(record.path, [])
        missed = [trial for trial in trials_here if trial.rank is None or trial.rank >= HIT]
        if record.error or record.notes or missed:
            rows.append((record, trials_here, missed))
    rows.sort(key=lambda one: (not one[0].error, -len(one[2]), len(one[1]), one[0].path))
    found = []
    for record, trials_here, missed in rows[:MOST]:
        reasons = dict.fromkeys(reason for trial in missed for reason in _missing(collection, trial))
        why = (*([record.error] if record.error else []), *record.notes, *reasons)
        found.append(Worst(record.path, len(trials_here), len(missed), why))
    return found


def _missing(collection: Collection, trial: RefusalTrial) -> Iterator[str]:
    passage = collection.catalogue.passages.get([trial.question.passage])[trial.question.passage]
    stems = words(passage.text)
    if trial.rank is not None:
        yield f"found, but only as number {trial.rank + 1}"
    if len(stems) <= _FEW_WORDS:
        yield "a passage of a few words says too little"
    elif len(set(stems)) < _REPETITIVE * len(stems):
        yield "a passage says the same over and over"
    first = trial.hits[0] if trial.hits else None
    if first and _overlap(passage, first.passage) >= _SIMILAR:
        yield f"{first.citation} says nearly the same"
    elif not set(words(trial.question.text)) & set(words(passage.embedded)):
        yield "the question has none of its words"
    elif first and trial.rank is None:
        yield f"{first.citation} is found in its place"
    if passage.tokens > collection.vectors.vectorizer.most:
        yield "a passage is longer than the embedder reads: its end is not found by meaning"


def _overlap(one: Passage, other: Passage) -> float:
    own = set(words(one.text))
    return len(own & set(words(other.text))) / max(1, len(own))


@dataclass(frozen=True)
class CheckResult:
    """The figures of a check."""

    name: str
    questions: int
    recall: dict[int, Interval]  # share of the questions whose passage is among the first k, by k
    mrr: Interval  # mean of 1 ÷ its rank, 0 below the tenth
    refused: Interval  # share of the unanswerable questions that are refused
    false_refusals: Interval  # of the answerable ones
    cited: Interval | None  # share of a model's citations that are of a passage with the answer
    kinds: dict[str, tuple[int, Interval]]  # by what questions were made from, their number and recall at 5
    worst: list[Worst]
    threshold: float  # of the evidence
    # with the topic in the index, one for each question, and with it left out, one for each whose topic is nowhere else
    scores: tuple[list[float], list[float]]
    is_calibrated: bool  # there were enough questions to calibrate the evidence
    seconds: float
    calibration: CalibrationReport | None = None  # of the scores as probabilities

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
    """Check a collection, and store the evidence as calibrated on the way.

    model: writes some of the questions, and answers some. Raises DataError when no question can be generated from the
    documents.
    """
    began = time.monotonic()
    generated = make(collection, questions, seed, model)
    if not generated:
        what = f"no question can be made from the documents of {collection.name}"
        raise DataError(what, "index documents that have text")
    trials = run_trials(collection, generated, events)
    calibration = calibrate(trials)
    weights, is_gone = calibration.weights, ~np.isnan(calibration.gone)
    if weights.questions:
        store(collection.catalogue, weights)
    check_groundedness(collection, events, seed)
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


def _is_found(trial: RefusalTrial, k: int) -> bool:
    return trial.rank is not None and trial.rank < k


def _by_kind(trials: Sequence[RefusalTrial]) -> dict[str, tuple[int, Interval]]:
    """Return the number and recall of each kind of question, the most frequent kind first."""
    by_kind: dict[str, list[bool]] = {}
    for trial in trials:
        by_kind.setdefault(trial.question.kind, []).append(_is_found(trial, HIT))
    return {kind: (len(of), wilson(of)) for kind, of in sorted(by_kind.items(), key=lambda item: -len(item[1]))}


def _cited(collection: Collection, trials: Sequence[RefusalTrial], model: LlamaClient, events: Events) -> list[bool]:
    """Return for each citation in the answers to some questions whether its passage holds the answer."""
    some = trials[:: max(1, len(trials) // ANSWERED)][:ANSWERED]
    right = []
    for number, trial in enumerate(some, 1):
        answer = finish_answer(stream_answer(collection, model, retrieve(collection, trial.question.text)))
        if answer.kind == "written":
            cited = (sentence.piece for sentence in answer.sentences)
            right += [piece.passage.id in trial.question.answers for piece in cited if piece]
        events.emit(Progress(what="answers", done=number, total=len(some), unit="questions"))
    return right
