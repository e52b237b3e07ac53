"""Answers without a language model: the sentences of the passages that fit a question best."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from settle.documents.blocks import with_headings
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.answer.sentences import sentences
from settle.retrieve.answer.support.citation_check import word_weights
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

MOST = 3  # sentences of an answer
NEAR = 0.8  # share of the best sentence's score from which on another is quoted beside it
HEADING = 0.5  # share of a word's weight that counts where only the heading has it
SHORTEST = 5  # words: a shorter sentence is quoted together with the next
CANDIDATES = 64  # sentences whose meaning is compared: those that share most words with the question


class Quote(NamedTuple):
    """A sentence of a passage, word for word. score: how well it fits the question, 0 to 1."""

    text: str
    source: Source
    piece: Piece
    score: float


def quotes(collection: Collection, question: str, sources: Sequence[Source]) -> list[Quote]:
    """The sentences that answer best, in the order of the sources."""
    weights = word_weights(collection, question)
    total = sum(weights.values()) or 1.0
    by_text: dict[str, Quote] = {}
    for source in sources:
        for piece in source.pieces:
            heading = set(words(" ".join(piece.passage.headings)))
            for text in _joined(sentences(piece.passage.text)):
                own = set(words(text))
                # a section's heading names its topic, and its sentences do not repeat it
                score = sum(w * (stem in own or HEADING * (stem in heading)) for stem, w in weights.items())
                if own:
                    by_text.setdefault(text, Quote(text, source, piece, score / total))
    best = sorted(by_text.values(), key=lambda quote: -quote.score)[:CANDIDATES]
    if not best:
        return []
    meanings = collection.vectors.vectorizer.documents(
        [with_headings(quote.piece.passage.headings, quote.text) for quote in best]
    )
    near = meanings @ collection.vectors.embed_query(question)
    ranked = [quote._replace(score=(quote.score + max(0.0, float(n))) / 2) for quote, n in zip(best, near, strict=True)]
    ranked.sort(key=lambda quote: -quote.score)
    chosen = [quote for quote in ranked[:MOST] if quote.score >= NEAR * ranked[0].score]
    order = {quote.text: place for place, quote in enumerate(by_text.values())}
    return sorted(chosen, key=lambda quote: order[quote.text])


def _joined(texts: Iterable[str]) -> list[str]:
    """Sentences, each short one joined with the next, or with the one before it at the end."""
    joined: list[str] = []
    is_short = False
    for text in texts:
        if is_short:
            text = f"{joined.pop()} {text}"
        joined.append(text)
        is_short = len(text.split()) < SHORTEST
    return [*joined[:-2], " ".join(joined[-2:])] if is_short else joined
