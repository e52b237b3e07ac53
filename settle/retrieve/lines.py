"""Lines of what was found beside a question: how many of its words they have, and whether they mean the same. A line is
a title or a sentence."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from settle.retrieve.catalogue import Passage
from settle.retrieve.embedders import Vectorizer
from settle.retrieve.sentences import sentences
from settle.retrieve.words import words

TITLES, SENTENCES = 3, 1  # lines that are compared: those with most of the question's words
READ = 3  # passages, the best first, whose sentences are looked at; of the others only the title
LONGEST = 200  # characters of a line
_TITLE = 12  # words, at most, of a first line that is a title where there are no headings


class Line(NamedTuple):
    """had: share of what the question's words tell that it has, a sentence together with its title; about: share of its
    own words that the question has; like: its cosine with the question."""

    text: str
    is_title: bool
    had: float
    about: float
    like: float = 0.0


def lines(
    vectorizer: Vectorizer, meaning: np.ndarray, tells: Mapping[str, float], passages: Sequence[Passage]
) -> list[Line]:
    """Those that have most of a question's words. meaning: of the question, float32 (width,); tells: how much each of
    its words (by stem) tells."""
    told = sum(tells.values()) or 1.0
    titles: dict[str, Line] = {}
    others: dict[str, Line] = {}
    for number, passage in enumerate(passages):
        above = title(passage)
        own = stems(above)
        if own:
            titles.setdefault(above, _line(above, True, own, own, tells, told))
        for sentence in _sentences(passage.text) if number < READ else ():
            said = stems(sentence)
            others.setdefault(sentence, _line(sentence, False, said, said | own, tells, told))
    best = sorted(titles.values(), key=lambda line: -line.had * line.about)[:TITLES]
    best += sorted(others.values(), key=lambda line: -line.had)[:SENTENCES]
    if not best:
        return []
    like = vectorizer.documents([line.text for line in best]) @ meaning
    return [line._replace(like=cosine) for line, cosine in zip(best, like.tolist(), strict=True)]


def _line(
    text: str, is_title: bool, own: frozenset[str], there: frozenset[str], tells: Mapping[str, float], told: float
) -> Line:
    had = sum(tell for stem, tell in tells.items() if stem in there) / told
    return Line(text, is_title, had, len(own & tells.keys()) / max(1, len(own)))


def title(passage: Passage) -> str:
    """The last heading of a passage; where there are none, a first line that stands alone or with others as short."""
    if passage.headings:
        return passage.headings[-1][:LONGEST]
    first, *others = passage.text.partition("\n\n")[0].split("\n")
    is_title = "\n\n" in passage.text and all(len(line.split()) <= _TITLE for line in (first, *others))
    return first[:LONGEST] if is_title else ""


@lru_cache(maxsize=16384)
def stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


@lru_cache(maxsize=1024)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(sentence[:LONGEST] for sentence in sentences(text))
