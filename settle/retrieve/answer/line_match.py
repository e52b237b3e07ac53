"""Lines of passages compared with a question: how many of its words they have, and whether they mean the same. A line
is a sentence, or a name that says what a passage is about."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from settle.retrieve.answer.definitions import definitions
from settle.retrieve.answer.sentences import sentences
from settle.retrieve.index.catalogue.records import Passage
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.words import spelled

NAMES, SENTENCES = 4, 1  # lines whose meaning is compared: those that share most words with the question
READ = 3  # best passages whose sentences are compared; of the others only the names
LONGEST = 200  # characters of a line
_TITLE_WORDS = 12  # at most, of a first line that is a title where there are no headings
_PARTIAL = 0.1  # rank of a line with the question's words among many others, relative to one with no others
_MOST_TERMS = 8  # explained terms of a passage that are compared
_NAME_WORDS = 4  # of each name before a dash, at most: tar, gtar – an archiver
_DASH = re.compile(r"\s+[-–—]{1,2}\s+")
_ENDED = re.compile(r"[.!?:;]\s")
_SHORT = re.compile(r"\(([A-Z][A-Za-z0-9/&-]{1,9})\)")
_EARLY = 200  # first characters of a passage, which may introduce an abbreviation


class Line(NamedTuple):
    """had: weighted share of the question's words that the line has, a sentence together with its title; about: share
    of its own words that the question has; like: its cosine with the question. A near synonym counts in part."""

    text: str
    had: float
    about: float
    like: float = 0.0


def lines(
    vectorizer: Vectorizer,
    meaning: np.ndarray,
    question_words: Mapping[str, str],
    weight_of: Mapping[str, float],
    passages: Sequence[Passage],
) -> list[Line]:
    """The lines that share most words with a question. meaning: the question's vector, float32 (width,);
    question_words: by their stems, as `words.spelled` gives them; weight_of: of each stem."""
    of_names = dict.fromkeys(name for passage in passages for name in names(passage))
    of_sentences: dict[str, str] = {}
    for passage in passages[:READ]:
        for sentence in _sentences(passage.text):
            of_sentences.setdefault(sentence, title(passage))
    alike = _Alike(vectorizer, question_words, weight_of, [*of_names, *of_sentences, *of_sentences.values()])
    name_lines = [alike.line(name) for name in of_names]
    sentence_lines = [alike.line(sentence, above) for sentence, above in of_sentences.items()]
    best = sorted(name_lines, key=lambda line: -line.had * (_PARTIAL + line.about))[:NAMES]
    best += sorted(sentence_lines, key=lambda line: -line.had)[:SENTENCES]
    if not best:
        return []
    like = vectorizer.documents([line.text for line in best]) @ meaning
    return [line._replace(like=cosine) for line, cosine in zip(best, like.tolist(), strict=True)]


class _Alike:
    """Similarity of a question's words to those of some texts: the cosine of their vectors, and 1 for the same stem."""

    def __init__(
        self,
        vectorizer: Vectorizer,
        question_words: Mapping[str, str],
        weight_of: Mapping[str, float],
        texts: Sequence[str],
    ) -> None:
        known = dict(question_words)
        for text in texts:
            for stem, word in _spelled(text).items():
                known.setdefault(stem, word)
        self._at = {stem: place for place, stem in enumerate(known)}
        vectors = vectorizer.words(list(known.values()))
        self._like = np.maximum(vectors[: len(question_words)] @ vectors.T, 0)  # (words of the question, all words)
        np.fill_diagonal(self._like, 1)
        weights = np.array([weight_of[stem] for stem in question_words])
        self._weights = weights / max(weights.sum(), 1e-9)

    def line(self, text: str, above: str = "") -> Line:
        own, over = (self._like[:, [self._at[stem] for stem in _spelled(part)]] for part in (text, above))
        had = self._weights @ np.maximum(own.max(1, initial=0), over.max(1, initial=0))
        return Line(text, float(had), float(own.max(0, initial=0).mean()) if own.size else 0.0)


@lru_cache(maxsize=16384)
def _spelled(text: str) -> Mapping[str, str]:
    return spelled(text)


def title(passage: Passage) -> str:
    """The last heading of a passage; where there are none, a first line that stands alone or with others as short."""
    if passage.headings:
        return passage.headings[-1][:LONGEST]
    first, *others = passage.text.partition("\n\n")[0].split("\n")
    is_title = "\n\n" in passage.text and all(len(line.split()) <= _TITLE_WORDS for line in (first, *others))
    return first[:LONGEST] if is_title else ""


@lru_cache(maxsize=1024)
def names(passage: Passage) -> tuple[str, ...]:
    """What a passage says it is about: its title, alone and with the headings above, the terms that it explains, their
    abbreviations, and what it says they are."""
    candidates = (" ".join(name.split())[:LONGEST] for name in _names(passage))
    return tuple(dict.fromkeys(name for name in candidates if _spelled(name)))


def _names(passage: Passage) -> Iterator[str]:
    yield title(passage)
    yield ", ".join(reversed(passage.headings))
    yield from _SHORT.findall(passage.text[:_EARLY])
    for term, gloss in definitions(passage.text, is_entry=not passage.headings)[:_MOST_TERMS]:
        yield term
        yield gloss
    first = passage.text.strip().partition("\n\n")[0]  # in manual pages it may be several lines
    if dash := _DASH.search(first):
        before = first[: dash.start()]
        if not _ENDED.search(before) and all(len(name.split()) <= _NAME_WORDS for name in before.split(",")):
            yield first[dash.end() :]


@lru_cache(maxsize=1024)
def _sentences(text: str) -> tuple[str, ...]:
    return tuple(sentence[:LONGEST] for sentence in sentences(text))
