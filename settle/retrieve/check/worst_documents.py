"""The documents that are found worst, and why: what was said when they were read, and what was found in their place."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from settle.retrieve.check.calibration import Trial
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.records import DocumentRecord, Passage
from settle.retrieve.index.words import words

MOST = 10  # documents that are named
HIT = 5  # hits among which the right passage should be
_ALIKE = 0.6  # share of a passage's words that another one has, from which on they can hardly be told apart
_FEW = 8  # words of a passage, up to which it says too little to be told from others
_THIN = 0.15  # of a passage's words that are different ones, below which it repeats itself


@dataclass(frozen=True)
class Worst:
    """A document. asked, missed: how many questions were made from it, and of how many no passage was among the first
    `HIT`; why: in words."""

    path: str
    asked: int
    missed: int
    why: tuple[str, ...]


def worst(collection: Collection, trials: Sequence[Trial]) -> list[Worst]:
    """Documents that nothing could be read of first, then those with the most missed questions, then those that were
    only partly read. At most `MOST`."""
    by_path: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        by_path[trial.question.path].append(trial)
    found = []
    for known in collection.catalogue.documents.all():
        asked = by_path.get(known.path, [])
        missed = [trial for trial in asked if trial.rank is None or trial.rank >= HIT]
        if known.error or known.notes or missed:
            found.append((known, asked, missed))
    found.sort(key=lambda one: (not one[0].error, -len(one[2]), len(one[1]), one[0].path))
    return [
        Worst(k.path, len(asked), len(missed), tuple(_why(collection, k, missed))) for k, asked, missed in found[:MOST]
    ]


def _why(collection: Collection, known: DocumentRecord, missed: Iterable[Trial]) -> Iterator[str]:
    if known.error:
        yield known.error
    yield from known.notes
    yield from dict.fromkeys(reason for trial in missed for reason in _missing(collection, trial))


def _missing(collection: Collection, trial: Trial) -> Iterator[str]:
    """Why a question's passage was not among the first."""
    passage = collection.catalogue.passages.get([trial.question.passage])[trial.question.passage]
    said = words(passage.text)
    if trial.rank is not None:
        yield f"found, but only as number {trial.rank + 1}"
    if len(said) <= _FEW:
        yield "a passage of a few words says too little"
    elif len(set(said)) < _THIN * len(said):
        yield "a passage says the same over and over"
    first = trial.hits[0] if trial.hits else None
    if first and _alike(passage, first.passage) >= _ALIKE:
        yield f"{first.citation} says nearly the same"
    elif not set(words(trial.question.text)) & set(words(passage.embedded)):
        yield "asked in words that it has none of"
    elif first and trial.rank is None:
        yield f"{first.citation} is found in its place"
    if passage.tokens > collection.vectors.vectorizer.most:
        yield "a passage is longer than the embedder reads: its end is not found by meaning"


def _alike(one: Passage, other: Passage) -> float:
    """Share of the words of one that the other has."""
    own = set(words(one.text))
    return len(own & set(words(other.text))) / max(1, len(own))
