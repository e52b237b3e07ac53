"""Answers without a language model: the sentences of the passages that say most about a question."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from settle.documents.blocks import with_headings
from settle.retrieve.answer.citation_check import telling
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.answer.sentences import sentences
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words

MOST = 3  # sentences of an answer
NEAR = 0.8  # of the best one's score, from where another is quoted beside it
ABOVE = 0.5  # of a word's weight that counts where it stands in the heading and not in the sentence
SHORTEST = 5  # words, below which a sentence says too little by itself and is taken with the next
CANDIDATES = 64  # sentences whose meaning is compared; those with most of the question's words go first


class Quote(NamedTuple):
    """A sentence of a passage, word for word. score: how much it says about the question, 0 to 1."""

    text: str
    source: Source
    piece: Piece
    score: float


def quotes(collection: Collection, question: str, sources: Sequence[Source]) -> list[Quote]:
    """The sentences that answer best, in the order of the sources."""
    weights = telling(collection, question)
    total = sum(weights.values()) or 1.0
    found: dict[str, Quote] = {}
    for source in sources:
        for piece in source.pieces:
            heading = set(words(" ".join(piece.passage.headings)))
            for text in _whole(sentences(piece.passage.text)):
                own = set(words(text))
                # what a section is about is said in its heading, and not again in each of its sentences
                score = sum(w * (stem in own or ABOVE * (stem in heading)) for stem, w in weights.items())
                if own:
                    found.setdefault(text, Quote(text, source, piece, score / total))
    best = sorted(found.values(), key=lambda quote: -quote.score)[:CANDIDATES]
    if not best:
        return []
    meanings = collection.vectors.vectorizer.documents(
        [with_headings(quote.piece.passage.headings, quote.text) for quote in best]
    )
    near = meanings @ collection.vectors.embed_query(question)
    ranked = [quote._replace(score=(quote.score + max(0.0, float(n))) / 2) for quote, n in zip(best, near, strict=True)]
    ranked.sort(key=lambda quote: -quote.score)
    chosen = [quote for quote in ranked[:MOST] if quote.score >= NEAR * ranked[0].score]
    order = {quote.text: place for place, quote in enumerate(found.values())}
    return sorted(chosen, key=lambda quote: order[quote.text])


def _whole(found: Iterable[str]) -> list[str]:
    """Sentences, the short ones together with what comes after them, or before them at the end."""
    whole: list[str] = []
    is_short = False
    for text in found:
        if is_short:
            text = f"{whole.pop()} {text}"
        whole.append(text)
        is_short = len(text.split()) < SHORTEST
    return [*whole[:-2], " ".join(whole[-2:])] if is_short else whole
