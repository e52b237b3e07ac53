"""The words that a question is looked for by: its own, and what the documents have like those that stand nowhere.

All are stems as `words.py` gives them.
"""

from dataclasses import dataclass
from math import log

from rapidfuzz import process
from rapidfuzz.distance import OSA

from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.words import words
from settle.retrieve.search.question_normalizer import topic

_ROWS = 12_000  # passages that the words may stand in, all together: above that the commonest of them are left out
_LIKE = 3  # words that are looked for instead of one that stands nowhere
_SPELLED = 5  # letters of the shortest word that may be misspelled
_LONG = 8  # letters from which on two may be wrong
_BEGUN = 4  # letters of the shortest word that may be the beginning of another


@dataclass(frozen=True)
class Terms:
    """stems: the rarest first; total: what they tell all together, in the units of BM25's weights."""

    stems: tuple[str, ...]
    total: float


def terms(catalogue: Catalogue, question: str) -> Terms:
    """The words to look for in a catalogue: not those that only ask. A word of no passage tells as much as one of a
    single passage."""
    number = catalogue.counts()["passages"]
    stems = list(dict.fromkeys(words(topic(question))))
    frequencies = catalogue.words.frequencies(stems)
    groups = {
        stem: {stem: frequencies[stem]} if stem in frequencies else _spelled_like(catalogue, stem) for stem in stems
    }
    chosen: list[str] = []
    rows, total = 0, 0.0
    for stem, group in sorted(groups.items(), key=lambda item: sum(item[1].values())):
        frequency = sum(group.values())
        rows += frequency
        if chosen and rows > _ROWS:
            break
        chosen += group or [stem]  # it may stand in a title
        total += max(log((number - frequency + 0.5) / (max(frequency, 1) + 0.5)), 1e-6)
    return Terms(tuple(dict.fromkeys(chosen)), total or 1.0)


def _spelled_like(catalogue: Catalogue, stem: str) -> dict[str, int]:
    """The most frequent words that one of no passage may be meant for, and in how many they stand: one or two letters
    are wrong, not the first two, or it is cut short."""
    if not stem.isalpha() or len(stem) < _BEGUN:
        return {}
    known = catalogue.words.starting_with(stem[:2])
    likely = [term for term in known if term.startswith(stem)]
    if len(stem) >= _SPELLED:
        wrong = 2 if len(stem) >= _LONG else 1
        near = process.extract(stem, known, scorer=OSA.distance, score_cutoff=wrong, limit=None)
        least = min((distance for _, distance, _ in near), default=0)
        likely += [term for term, distance, _ in near if distance == least]
    frequencies = catalogue.words.frequencies(likely)
    return dict(sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))[:_LIKE])
