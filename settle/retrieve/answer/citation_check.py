"""Whether a passage supports a sentence: by its words and meaning, and by what the two claim."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import NamedTuple

import numpy as np

from settle.retrieve.answer.claim_check import differences
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences, words

SUPPORTED = 0.6  # score from which on a passage supports a sentence: see bench/support.py
MEANING = 0.7  # weight of the meaning in the score; words have the rest
COMPARED = 3  # lines of a source whose meaning is compared: those that share most words with the sentence
UNRELATED = 64  # passages from which the cosine of unrelated ones is estimated
CLEARER = 0.15  # score margin needed to replace the model's own citation


@dataclass(frozen=True)
class Support:
    """How well a passage supports a sentence.

    score: 0 to 1. differs: the words in which it says something else, see `claim_check`; any of them rules support out.
    line: the nearest sentence of the passage.
    """

    score: float
    differs: tuple[str, ...]
    source: Source
    piece: Piece
    line: str

    @property
    def enough(self) -> bool:
        return self.score >= SUPPORTED and not self.differs


class _Line(NamedTuple):
    """A sentence of a passage."""

    text: str
    piece: Piece
    stems: frozenset[str]

    def shares(self, weights: Mapping[str, float]) -> float:
        """Return the total weight of those of a sentence's words (stem → weight) that this line has."""
        return sum(weight for stem, weight in weights.items() if stem in self.stems)


class Checker:
    """Checks sentences against sources: against the lines of each source that share most words with the sentence."""

    def __init__(self, collection: Collection, sources: Sequence[Source]) -> None:
        self._collection, self.sources = collection, sources
        self._lines = {source.number: [*_lines(source)] for source in sources}
        self._meanings: dict[str, np.ndarray] = {}
        self._floor = _floor(collection)

    def best(self, sentence: str, cited: int) -> Support:
        """Return the support of the source to cite: the model's own, unless another supports it more clearly."""
        weights = word_weights(self._collection, sentence)
        lines = {
            number: sorted(lines, key=lambda line: -line.shares(weights))[:COMPARED]
            for number, lines in self._lines.items()
        }
        self._embed([sentence, *(line.text for some in lines.values() for line in some)])
        supports = [self._supported(sentence, weights, source, lines[source.number]) for source in self.sources]
        best = max(supports, key=lambda s: (s.enough, s.score))
        own = next(support for support in supports if support.source.number == cited)
        is_clearer = (best.enough and not own.enough) or best.score > own.score + CLEARER
        return best if is_clearer else own

    def _supported(
        self, sentence: str, weights: Mapping[str, float], source: Source, lines: Sequence[_Line]
    ) -> Support:
        there = frozenset().union(*(line.stems for line in self._lines[source.number]))
        there |= {stem for piece in source.pieces for stem in words(_about(piece))}
        lexical = sum(w for stem, w in weights.items() if stem in there) / (sum(weights.values()) or 1)
        meaning = self._meanings[sentence]
        near = [(float(self._meanings[line.text] @ meaning) - self._floor) / (1 - self._floor) for line in lines]
        about = " ".join(_about(piece) for piece in source.pieces)
        agrees = [not differences(sentence, [line.text], about) for line in lines]
        nearest = lines[max(range(len(lines)), key=lambda n: (agrees[n], near[n]))]
        score = (1 - MEANING) * lexical + MEANING * max(0.0, *near)
        differs = differences(sentence, [line.text for line in self._lines[source.number]], about)
        return Support(score, differs, source, nearest.piece, nearest.text)

    def _embed(self, texts: Sequence[str]) -> None:
        """Embed those texts that were not embedded before."""
        new = [text for text in dict.fromkeys(texts) if text not in self._meanings]
        self._meanings |= zip(new, self._collection.vectors.vectorizer.documents(new), strict=True)


def _lines(source: Source) -> Iterator[_Line]:
    for piece in source.pieces:
        for text in sentences(piece.passage.text):
            yield _Line(text, piece, frozenset(words(text)))


def _floor(collection: Collection) -> float:
    """Return the cosine of unrelated passages of this collection, which depends on the embedder: 0.1 or 0.8."""
    ids = [passage.id for passage in collection.catalogue.passages.page(limit=UNRELATED)]
    vectors = np.array(list(collection.catalogue.passages.vectors(ids).values()))
    if len(vectors) < 2:
        return 0.0
    return float(np.median((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]))


def word_weights(collection: Collection, text: str) -> dict[str, float]:
    """Return the stems of a text, each with its weight in a collection: the rarer, the higher."""
    stems = set(words(text))
    frequencies, total = (
        collection.catalogue.words.frequencies(stems),
        max(2, collection.catalogue.counts()["passages"]),
    )
    return {stem: log(1 + total / frequencies.get(stem, 1)) for stem in stems}


def _about(piece: Piece) -> str:
    """Return the words that say what a passage is about, other than its text: the file's name and the headings."""
    return " ".join((Path(piece.occurrence.path).name, *piece.passage.headings))
