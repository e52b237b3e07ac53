"""The words that a question is looked for by: its own, and what stands in the documents for those it misspells.

All are stems as `words.py` gives them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from rapidfuzz import process
from rapidfuzz.distance import OSA

from settle.retrieve.catalogue import Catalogue
from settle.retrieve.words import words

_ROWS = 12_000  # passages that the words may stand in, all together: above that the commonest of them are left out
_LIKE = 3  # words that are looked for instead of one that stands nowhere
_SPELLED = 5  # letters of the shortest word that may be misspelled
_LONG = 8  # letters from which on two may be wrong
_BEGUN = 4  # letters of the shortest word that may be the beginning of another
_PAIR = re.compile(r"\b(?=([A-Za-z]{2,})[ -]([A-Za-z]{2,})\b)")


@dataclass(frozen=True)
class Terms:
    """stems: the rarest first; total: what they tell all together, in the units of BM25's weights."""

    stems: tuple[str, ...]
    total: float


def terms(catalogue: Catalogue, question: str) -> Terms:
    """The words to look for in the passages of a catalogue. Words of no passage tell as much as those of one."""
    stems = list(dict.fromkeys(words(question)))
    number = catalogue.counts()["passages"]
    joined = [stem for a, b in _PAIR.findall(question) for stem in words(a + b)]
    found = catalogue.frequencies([*stems, *joined])
    instead = {stem: like for stem in stems if stem not in found and (like := _spelled_like(catalogue, stem))}
    found |= {stem: frequency for like in instead.values() for stem, frequency in like}
    groups = [[s for s, _ in instead[stem]] if stem in instead else [stem] for stem in stems]
    groups += [[stem] for stem in joined if stem in found and stem not in stems]
    taken: list[str] = []
    rows, total = 0, 0.0
    for group in sorted(groups, key=lambda group: sum(found.get(stem, 0) for stem in group)):
        frequency = sum(found.get(stem, 0) for stem in group)
        rows += frequency
        if taken and rows > _ROWS:
            break
        taken += group
        total += max(log((number - frequency + 0.5) / (max(frequency, 1) + 0.5)), 1e-6)
    return Terms(tuple(dict.fromkeys(taken)), total or 1.0)


def _spelled_like(catalogue: Catalogue, stem: str) -> Sequence[tuple[str, int]]:
    """(word, in how many passages) of the most frequent words that a word which stands nowhere may be meant for: one or
    two letters are wrong, not the first two, or it is cut short."""
    if not stem.isalpha() or len(stem) < _BEGUN:
        return []
    known = catalogue.vocabulary(stem[:2])
    likely = [term for term in known if term.startswith(stem)]
    if len(stem) >= _SPELLED:
        wrong = 2 if len(stem) >= _LONG else 1
        near = process.extract(stem, known, scorer=OSA.distance, score_cutoff=wrong, limit=None)
        least = min((distance for _, distance, _ in near), default=0)
        likely += [term for term, distance, _ in near if distance == least]
    frequencies = catalogue.frequencies(likely)
    return sorted(frequencies.items(), key=lambda item: (-item[1], item[0]))[:_LIKE]
