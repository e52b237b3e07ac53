"""Answers without a language model: what the passages say that fits a question best, with what belongs to it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from settle.documents.blocks import with_headings
from settle.retrieve.answer.answer_judge import UNREAD, Reading
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.answer.excerpts import excerpts
from settle.retrieve.answer.support.citation_check import word_weights
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

MOST = 2  # excerpts of an answer
NEAR = 0.7  # share of the best one's score from which on another is quoted beside it
LATER = 0.03  # score that an excerpt loses for each passage that was found before its own
READ = 0.1  # that the unit gains which the trained judge has read the answer in
HEADING = 0.5  # share of a word's weight that counts where only the heading has it
CANDIDATES = 64  # sentences whose meaning is compared: those that share most words with the question
LONGEST = 400  # characters of a unit that are compared


class Quote(NamedTuple):
    """An excerpt of a passage, word for word. score: how well it fits the question, 0 to 1."""

    text: str
    source: Source
    piece: Piece
    score: float


class _Candidate(NamedTuple):
    """A unit of a passage. at: its number there."""

    source: Source
    piece: Piece
    at: int
    score: float

    @property
    def text(self) -> str:
        return excerpts(self.piece.passage.text).units[self.at].text[:LONGEST]


def quotes(
    collection: Collection, question: str, sources: Sequence[Source], readings: Mapping[int, Reading] = UNREAD
) -> list[Quote]:
    """The excerpts that answer best, in the order of the sources. sources: the best passage first. readings: what the
    trained judge read, by the passage's id."""
    best = _by_words(collection, question, sources)
    if not best:
        return []
    meanings = collection.vectors.vectorizer.documents(
        [with_headings(one.piece.passage.headings, one.text) for one in best]
    )
    order = {source.number: place for place, source in enumerate(sources)}
    near = meanings @ collection.vectors.embed_query(question)
    ranked = [
        one._replace(
            score=(one.score + max(0.0, float(n))) / 2
            - LATER * order[one.source.number]
            + READ * _is_read(one, readings.get(one.piece.passage.id))
        )
        for one, n in zip(best, near, strict=True)
    ]
    ranked.sort(key=lambda one: -one.score)
    chosen: list[Quote] = []
    quoted: set[tuple[int, int]] = set()
    for one in ranked:
        passage = one.piece.passage
        if len(chosen) == MOST or one.score < NEAR * ranked[0].score:
            break
        if (passage.id, one.at) not in quoted:
            text, units = excerpts(passage.text).excerpt(one.at)
            quoted |= {(passage.id, at) for at in units}
            chosen.append(Quote(text, one.source, one.piece, one.score))
    return sorted(chosen, key=lambda quote: quote.source.number)


def _is_read(one: _Candidate, reading: Reading | None) -> bool:
    return reading is not None and excerpts(one.piece.passage.text).unit_at(reading.at) == one.at


def _by_words(collection: Collection, question: str, sources: Sequence[Source]) -> list[_Candidate]:
    """The units that share most words with a question, by the share of the words' weight that they have."""
    weights = word_weights(collection, question)
    total = sum(weights.values()) or 1.0
    by_text: dict[str, _Candidate] = {}
    for source in sources:
        for piece in source.pieces:
            headings = set(words(" ".join(piece.passage.headings)))
            units = excerpts(piece.passage.text).units
            asked: set[str] = set()  # by the sentence before: what follows answers it
            for at, unit in enumerate(units):
                own = set(words(unit.text))
                if unit.text.rstrip().endswith("?") and at + 1 < len(units):
                    asked = own
                    continue
                heading, asked = headings | asked, set()
                # a section's heading names its topic, and its sentences do not repeat it
                score = sum(w * (stem in own or HEADING * (stem in heading)) for stem, w in weights.items())
                if own:
                    by_text.setdefault(unit.text, _Candidate(source, piece, at, score / total))
    return sorted(by_text.values(), key=lambda one: -one.score)[:CANDIDATES]
