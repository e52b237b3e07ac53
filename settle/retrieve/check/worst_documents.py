"""The documents that are found worst, and why: the notes of their reader, and what was found in their place."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from settle.retrieve.check.calibration import Trial
from settle.retrieve.index.catalogue.records import DocumentRecord, Passage
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

MOST = 10  # documents that are named
HIT = 5  # hits among which the right passage should be
_SIMILAR = 0.6  # share of a passage's words that another one has, from which on the two are hard to tell apart
_FEW_WORDS = 8  # a passage with no more words is hard to tell from others
_REPETITIVE = 0.15  # a passage with a smaller share of distinct words repeats itself


@dataclass(frozen=True)
class Worst:
    """A document. asked, missed: how many questions were made from it, and of how many no passage was among the first
    `HIT`; why: in words."""

    path: str
    asked: int
    missed: int
    why: tuple[str, ...]


def worst(collection: Collection, trials: Sequence[Trial]) -> list[Worst]:
    """At most `MOST` documents: unreadable ones first, then those with the most missed questions, then those that were
    only partly read."""
    by_path: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_path[trial.question.path].append(trial)
    rows = []
    for record in collection.catalogue.documents.all():
        trials_here = by_path.get(record.path, [])
        missed = [trial for trial in trials_here if trial.rank is None or trial.rank >= HIT]
        if record.error or record.notes or missed:
            rows.append((record, trials_here, missed))
    rows.sort(key=lambda one: (not one[0].error, -len(one[2]), len(one[1]), one[0].path))
    return [
        Worst(k.path, len(trials_here), len(missed), tuple(_why(collection, k, missed)))
        for k, trials_here, missed in rows[:MOST]
    ]


def _why(collection: Collection, record: DocumentRecord, missed: Iterable[Trial]) -> Iterator[str]:
    if record.error:
        yield record.error
    yield from record.notes
    yield from dict.fromkeys(reason for trial in missed for reason in _missing(collection, trial))


def _missing(collection: Collection, trial: Trial) -> Iterator[str]:
    """Why a question's passage was not among the first."""
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
    """Share of the words of one that the other has."""
    own = set(words(one.text))
    return len(own & set(words(other.text))) / max(1, len(own))
