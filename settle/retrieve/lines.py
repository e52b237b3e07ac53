"""Lines of what was found beside a question: how many of its words they have, and whether they mean the same. A line is
a sentence or what a passage says that it is about."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from settle.retrieve.catalogue import Passage
from settle.retrieve.embedders import Vectorizer
from settle.retrieve.phrasing import definitions
from settle.retrieve.sentences import sentences
from settle.retrieve.words import words

NAMES, SENTENCES = 4, 1  # lines that are compared: those with most of the question's words
READ = 3  # passages, the best first, whose sentences are looked at; of the others only what they are about
LONGEST = 200  # characters of a line
_TITLE = 12  # words, at most, of a first line that is a title where there are no headings
_PARTLY = 0.1  # of a line with a question's words among many others, beside one that has no others
_EXPLAINED = 8  # terms of a passage, at most, whose explanations are looked at
_WORDS = 4  # of each name before a dash, at most: tar, gtar – an archiver
_DASH = re.compile(r"\s+[-–—]{1,2}\s+")
_ENDED = re.compile(r"[.!?:;]\s")
_SHORT = re.compile(r"\(([A-Z][A-Za-z0-9/&-]{1,9})\)")
_EARLY = 200  # characters of a passage within which a name's short form stands


class Line(NamedTuple):
    """had: share of what the question's words tell that it has, a sentence together with its title; about: share of its
    own words that the question has; like: its cosine with the question."""

    text: str
    had: float
    about: float
    like: float = 0.0


def lines(
    vectorizer: Vectorizer, meaning: np.ndarray, tells: Mapping[str, float], passages: Sequence[Passage]
) -> list[Line]:
    """Those that have most of a question's words. meaning: of the question, float32 (width,); tells: how much each of
    its words (by stem) tells."""
    told = sum(tells.values()) or 1.0
    named: dict[str, Line] = {}
    said: dict[str, Line] = {}
    for number, passage in enumerate(passages):
        for name in names(passage):
            own = stems(name)
            named.setdefault(name, _line(name, own, own, tells, told))
        above = stems(title(passage))
        for sentence in _sentences(passage.text) if number < READ else ():
            own = stems(sentence)
            said.setdefault(sentence, _line(sentence, own, own | above, tells, told))
    best = sorted(named.values(), key=lambda line: -line.had * (_PARTLY + line.about))[:NAMES]
    best += sorted(said.values(), key=lambda line: -line.had)[:SENTENCES]
    if not best:
        return []
    like = vectorizer.documents([line.text for line in best]) @ meaning
    return [line._replace(like=cosine) for line, cosine in zip(best, like.tolist(), strict=True)]


def _line(text: str, own: frozenset[str], there: frozenset[str], tells: Mapping[str, float], told: float) -> Line:
    had = sum(tell for stem, tell in tells.items() if stem in there) / told
    return Line(text, had, len(own & tells.keys()) / max(1, len(own)))


def title(passage: Passage) -> str:
    """The last heading of a passage; where there are none, a first line that stands alone or with others as short."""
    if passage.headings:
        return passage.headings[-1][:LONGEST]
    first, *others = passage.text.partition("\n\n")[0].split("\n")
    is_title = "\n\n" in passage.text and all(len(line.split()) <= _TITLE for line in (first, *others))
    return first[:LONGEST] if is_title else ""


@lru_cache(maxsize=1024)
def names(passage: Passage) -> tuple[str, ...]:
    """What a passage says that it is about: its title and that with the ones above, the terms that it explains, their
    short forms, and what it says they are."""
    found = (" ".join(name.split())[:LONGEST] for name in _names(passage))
    return tuple(dict.fromkeys(name for name in found if stems(name)))


def _names(passage: Passage) -> Iterator[str]:
    yield title(passage)
    yield ", ".join(reversed(passage.headings))
    yield from _SHORT.findall(passage.text[:_EARLY])
    for term, gloss in definitions(passage.text, is_entry=not passage.headings)[:_EXPLAINED]:
        yield term
        yield gloss
    first = passage.text.strip().partition("\n\n")[0]  # as manual pages have it, over several lines
    if dash := _DASH.search(first):
        before = first[: dash.start()]
        if not _ENDED.search(before) and all(len(name.split()) <= _WORDS for name in before.split(",")):
            yield first[dash.end() :]


@lru_cache(maxsize=16384)
def stems(text: str) -> frozenset[str]:
    return frozenset(words(text))


@lru_cache(maxsize=1024)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(sentence[:LONGEST] for sentence in sentences(text))
