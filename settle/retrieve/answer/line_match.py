"""Lines of what was found beside a question: how many of its words they have, and whether they mean the same. A line is
a sentence or what a passage says that it is about."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from settle.retrieve.answer.definitions import definitions
from settle.retrieve.answer.sentences import sentences
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.records import Passage
from settle.retrieve.index.words import spelled

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
    own words that the question has; like: its cosine with the question. A word that another means nearly the same as
    is had in part."""

    text: str
    had: float
    about: float
    like: float = 0.0


def lines(
    vectorizer: Vectorizer,
    meaning: np.ndarray,
    asked: Mapping[str, str],
    tells: Mapping[str, float],
    passages: Sequence[Passage],
) -> list[Line]:
    """Those that have most of a question's words. meaning: of the question, float32 (width,); asked: its words by their
    stems, as `words.spelled` gives them; tells: how much each tells."""
    of_names = dict.fromkeys(name for passage in passages for name in names(passage))
    of_sentences: dict[str, str] = {}
    for passage in passages[:READ]:
        for sentence in _sentences(passage.text):
            of_sentences.setdefault(sentence, title(passage))
    alike = _Alike(vectorizer, asked, tells, [*of_names, *of_sentences, *of_sentences.values()])
    named = [alike.line(name) for name in of_names]
    said = [alike.line(sentence, above) for sentence, above in of_sentences.items()]
    best = sorted(named, key=lambda line: -line.had * (_PARTLY + line.about))[:NAMES]
    best += sorted(said, key=lambda line: -line.had)[:SENTENCES]
    if not best:
        return []
    like = vectorizer.documents([line.text for line in best]) @ meaning
    return [line._replace(like=cosine) for line, cosine in zip(best, like.tolist(), strict=True)]


class _Alike:
    """How like the words of a question are to those of some texts: as their vectors are, and 1 where the stem is the
    same."""

    def __init__(
        self, vectorizer: Vectorizer, asked: Mapping[str, str], tells: Mapping[str, float], texts: Sequence[str]
    ) -> None:
        known = dict(asked)
        for text in texts:
            for stem, word in _spelled(text).items():
                known.setdefault(stem, word)
        self._at = {stem: place for place, stem in enumerate(known)}
        vectors = vectorizer.words(list(known.values()))
        self._like = np.maximum(vectors[: len(asked)] @ vectors.T, 0)  # (words of the question, all words)
        np.fill_diagonal(self._like, 1)
        told = np.array([tells[stem] for stem in asked])
        self._tells = told / max(told.sum(), 1e-9)

    def line(self, text: str, above: str = "") -> Line:
        own, over = (self._like[:, [self._at[stem] for stem in _spelled(part)]] for part in (text, above))
        had = self._tells @ np.maximum(own.max(1, initial=0), over.max(1, initial=0))
        return Line(text, float(had), float(own.max(0, initial=0).mean()) if own.size else 0.0)


@lru_cache(maxsize=16384)
def _spelled(text: str) -> Mapping[str, str]:
    return spelled(text)


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
    return tuple(dict.fromkeys(name for name in found if _spelled(name)))


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


@lru_cache(maxsize=1024)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(sentence[:LONGEST] for sentence in sentences(text))
