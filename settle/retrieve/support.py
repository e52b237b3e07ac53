"""Whether a passage says what a sentence says: by its words, numbers and names, and by meaning."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np

from settle.retrieve.collection import Collection
from settle.retrieve.packing import Piece, Source
from settle.retrieve.sentences import sentences
from settle.retrieve.words import words

SUPPORTED = 0.6  # of the score, from where a passage counts as saying a sentence
CLEARER = 0.15  # by so much another passage has to say it more clearly to be cited in the place of the one that was
ALIKE = 0.6  # of a sentence's words that another one has to have to be about the same
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_NAME = re.compile(r"`[^`]+`|\b\w*[a-z]+[A-Z]\w*|\b\w+_\w+|(?<=[\w,;:] )[A-Z][\w-]*")
_NEGATION = re.compile(r"\b(?:no|not|never|none|nothing|nobody|cannot|without|neither|nor)\b|n['’]t\b", re.I)


@dataclass(frozen=True)
class Support:
    """How well a passage says a sentence. score: 0 to 1. differs: numbers and names of the sentence that are not in it,
    or a negation that only one of the two has; one of them is enough for the sentence not to be supported."""

    score: float
    differs: tuple[str, ...]
    source: Source
    piece: Piece

    @property
    def enough(self) -> bool:
        return self.score >= SUPPORTED and not self.differs


class Checker:
    """Checks sentences against some sources; what is known of those is looked up once."""

    def __init__(self, collection: Collection, sources: Sequence[Source]) -> None:
        self._collection, self.sources = collection, sources
        pieces = [piece for source in sources for piece in source.pieces]
        self._vectors = collection.catalogue.vectors(list({piece.passage.id for piece in pieces}))
        self._words = {piece.passage.id: frozenset(words(_all_of(piece))) for piece in pieces}

    def best(self, sentence: str, cited: int) -> Support:
        """The support of the source that is to be cited: the one that was, unless another says it more clearly."""
        meaning = self._collection.vectorizer.documents([sentence])[0]
        weights = telling(self._collection, sentence)
        found = [self._supported(sentence, weights, meaning, source) for source in self.sources]
        best = max(found, key=lambda s: (s.enough, s.score))
        own = next(support for support in found if support.source.number == cited)
        is_clearer = (best.enough and not own.enough) or best.score > own.score + CLEARER
        return best if is_clearer else own

    def _supported(self, sentence: str, weights: dict[str, float], meaning: np.ndarray, source: Source) -> Support:
        there = frozenset().union(*(self._words[piece.passage.id] for piece in source.pieces))
        text = "\n".join(map(_all_of, source.pieces))
        lexical = sum(w for stem, w in weights.items() if stem in there) / (sum(weights.values()) or 1)
        near = [float(self._vectors[p.passage.id] @ meaning) for p in source.pieces if p.passage.id in self._vectors]
        piece = max(source.pieces, key=lambda p: sum(weights.get(stem, 0.0) for stem in self._words[p.passage.id]))
        differs = _missing(sentence, text, there) or _negated(sentence, text, weights)
        return Support((lexical + max([0.0, *near])) / 2, differs, source, piece)


def telling(collection: Collection, text: str) -> dict[str, float]:
    """Each stem of a text, and how much it tells in a collection."""
    stems = set(words(text))
    found, total = collection.catalogue.frequencies(stems), max(2, collection.catalogue.counts()["passages"])
    return {stem: log(1 + total / found.get(stem, 1)) for stem in stems}


def _all_of(piece: Piece) -> str:
    return f"{Path(piece.standing.path).name}\n\n{piece.passage.embedded}"


def _missing(sentence: str, text: str, there: frozenset[str]) -> tuple[str, ...]:
    """Numbers and names of a sentence that a text has not."""
    numbers = {_plain(n) for n in _NUMBER.findall(text)}
    missing = [n for n in _NUMBER.findall(sentence) if _plain(n) not in numbers]
    missing += [name for name in _NAME.findall(sentence) if not there.issuperset(words(name))]
    return tuple(dict.fromkeys(missing))


def _negated(sentence: str, text: str, weights: dict[str, float]) -> tuple[str, ...]:
    """The negation that stands in one of the two only: in a sentence, or in that of a text which says most of it."""

    def said(other: str) -> float:
        return sum(weights.get(stem, 0.0) for stem in set(words(other)))

    closest = max(sentences(text), key=said, default="")
    ours, theirs = _NEGATION.search(sentence), _NEGATION.search(closest)
    if bool(ours) == bool(theirs) or said(closest) < ALIKE * sum(weights.values()):
        return ()
    return ((ours or theirs)[0],)  # type: ignore[index]


def _plain(number: str) -> str:
    """Without what only groups its digits."""
    return re.sub(r",(?=\d{3}\b)", "", number)
