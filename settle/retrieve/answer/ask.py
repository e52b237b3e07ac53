"""Answers to questions from a collection: written by a language model or quoted, every sentence checked against the
passage that it cites; or refused, where the documents do not hold an answer."""

import contextlib
import itertools
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from settle.infer.client import LlamaClient
from settle.retrieve.answer.citation_check import Checker
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.answer.evidence import Evidence, judge
from settle.retrieve.answer.extractive import Quote, quotes
from settle.retrieve.answer.write_answer import Prompt, Writing, Written, written
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search.hybrid_search import Hit, search
from settle.retrieve.search.question_normalizer import topic

PASSAGES = 4  # that an answer is made from
JUDGED = 10  # that the evidence is judged by
NEAREST = 3  # passages that a refusal names
DEFAULT = Writing()
UNSUPPORTED = "[not in the documents]"
_FOLLOWING = re.compile(
    r"^(?:and|but|so|then|also|what about|how about|why|why not|really|which one)\b"
    r"|\b(?:it|its|they|them|their|this|that|these|those|he|him|his|she|her|there|one|ones|else|other)\b",
    re.I,
)
_WORD = re.compile(r"\w+")
_SHORT = 3  # telling words, up to which a question may go on from the one before

Kind = Literal["written", "quoted", "refused"]


@dataclass(frozen=True)
class Found:
    """What was found for a question. before: the question that it goes on from, or "". hits: the best first."""

    question: str
    before: str
    hits: tuple[Hit, ...]
    evidence: Evidence

    @property
    def whole(self) -> str:
        """The question with the one before it."""
        return f"{self.before} {self.question}".strip()


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer. start, end: where it stands in the answer's text, without its citation. source, piece:
    what is cited for it, None where no passage supports it. support: 0 to 1. asked: the number that the model gave it.
    differs: numbers, names and negations in which it differs from what comes nearest."""

    text: str
    start: int
    end: int
    source: Source | None
    piece: Piece | None
    support: float
    asked: int | None = None
    differs: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        return f"[{self.source.number}]" if self.source else UNSUPPORTED


@dataclass(frozen=True)
class Answer:
    """text: with its citations. sources: that could be cited; of a refusal the nearest ones. model: whether a model
    wrote it, and what of its tokens is known. dropped: passages for which there was no room in the prompt."""

    question: str
    text: str
    kind: Kind
    evidence: Evidence
    sentences: tuple[Sentence, ...] = ()
    sources: tuple[Source, ...] = ()
    dropped: int = 0
    written: Written | None = None

    @property
    def cited(self) -> list[tuple[Source, Piece]]:
        """The sources that sentences cite, each once with the piece to open; those of a refusal all."""
        if self.kind == "refused":
            return [(source, source.pieces[0]) for source in self.sources]
        found = {s.source.number: (s.source, s.piece) for s in reversed(self.sentences) if s.source and s.piece}
        return [found[number] for number in sorted(found)]

    @property
    def is_supported(self) -> bool:
        """Whether at least one sentence stands in the documents."""
        return any(sentence.source for sentence in self.sentences)

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know beside the text."""
        found = []
        marked = sum(sentence.source is None for sentence in self.sentences)
        if marked:
            found.append(f"{marked} of {len(self.sentences)} sentences are in none of the passages, and are marked")
        if self.dropped:
            found.append(f"{self.dropped} of the passages found had no room beside the question")
        if self.written and self.written.is_cut:
            found.append("the answer was cut off at its longest; what was left of a sentence is not shown")
        return found

    def __str__(self) -> str:
        lines = [f"[{source.number}] {piece.place}" for source, piece in self.cited]
        return "\n".join([self.text, *([""] if lines else []), *lines])

    def to_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "answer": self.text,
            "kind": self.kind,
            "refused": self.kind == "refused",
            "supported": self.is_supported,
            "evidence": {
                "score": round(self.evidence.score, 4),
                "threshold": round(self.evidence.threshold, 4),
                "covered": round(self.evidence.covered, 4),
                "missing": list(self.evidence.missing),
            },
            "sentences": [_sentence(sentence) for sentence in self.sentences],
            "sources": [_source(source) for source in self.sources],
            "dropped": self.dropped,
        }


def look(collection: Collection, question: str, earlier: Sequence[str] = (), k: int = PASSAGES) -> Found:
    """Searches and judges. earlier: the questions before this one, the last of them last. Where the question may go on
    from it, both are looked for, with and without it, and the best of the two searches are taken in turn."""
    hits = search(collection, question, max(k, JUDGED))
    evidence = judge(collection, question, hits)
    if not earlier or not follows(question):
        return Found(question, "", tuple(hits[:k]), evidence)
    both = f"{topic(earlier[-1])} {topic(question)}"
    together = search(collection, both, max(k, JUDGED))
    evidence = max(evidence, judge(collection, both, together), key=lambda e: e.score)
    turns = itertools.chain.from_iterable(itertools.zip_longest(hits, together))
    once = {hit.passage.id: hit for hit in turns if hit is not None}
    return Found(question, earlier[-1], tuple(once.values())[:k], evidence)


def follows(question: str) -> bool:
    """Whether a question may go on from the one before: it is short, or speaks of something that was named there."""
    return len(set(words(question))) <= _SHORT or bool(_FOLLOWING.search(question))


def answer(
    collection: Collection, model: LlamaClient | None, found: Found, writing: Writing = DEFAULT
) -> Generator[str, None, Answer]:
    """Yields the answer's text as its sentences come, each with its citation, and returns the whole. Without a model
    the best sentences of the passages are quoted.

    Raises UsageError when not even one passage fits into the model's context, EngineError when the model fails.
    """
    told = _Told(found)
    if not found.evidence.enough:
        yield told.plain(_refusal(found))
        return told.answer("refused", _apart(found.hits[:NEAREST]))
    if model is None:
        sources = _apart(found.hits)
        yield from told.quoted(quotes(collection, found.whole, sources))
        return told.answer("quoted", sources)
    prompt = Prompt(collection, model, found.question, found.hits, writing, found.before)
    sources = prompt.packed.sources
    with contextlib.closing(written(model, prompt, writing)) as pieces:
        ended = yield from told.checked(pieces, Checker(collection, sources))
    if not any(sentence.source for sentence in told.sentences):
        if told.text:
            yield told.plain("\n\nThe passages themselves say:\n")
        yield from told.quoted(quotes(collection, found.whole, sources))
    return told.answer("written", sources, len(prompt.packed.dropped), ended)


def whole(pieces: Generator[str, None, Answer], tell: Callable[[str], None] = lambda text: None) -> Answer:
    """The answer once it has ended. tell: called with each piece as it comes."""
    with contextlib.closing(pieces):
        while True:
            try:
                tell(next(pieces))
            except StopIteration as ended:
                found: Answer = ended.value
                return found


class _Told:
    """What of an answer was told so far."""

    def __init__(self, found: Found) -> None:
        self._found = found
        self.text = ""
        self.sentences: list[Sentence] = []

    def plain(self, text: str) -> str:
        self.text += text
        return text

    def checked(
        self, pieces: Generator[tuple[str, int], None, Written], checker: Checker
    ) -> Generator[str, None, Written]:
        """What a model wrote, each sentence under what supports it."""
        titles = [frozenset(words(source.title)) for source in checker.sources]
        while True:
            try:
                text, asked = next(pieces)
            except StopIteration as ended:
                found: Written = ended.value
                return found
            if _says_nothing(text, self._found.question, titles):
                continue
            best = checker.best(text, asked)
            cited = (best.source, best.piece) if best.enough else (None, None)
            yield self._sentence(" " * bool(self.text), text, *cited, best.score, asked, best.differs)

    def quoted(self, found: Sequence[Quote]) -> Iterator[str]:
        for quote in found:
            before = "\n" if self.text and not self.text.endswith("\n") else ""
            yield self._sentence(before, f"“{quote.text}”", quote.source, quote.piece, 1.0)

    def _sentence(self, before: str, text: str, *about: Any) -> str:
        start = len(self.text) + len(before)
        sentence = Sentence(text, start, start + len(text), *about)
        self.sentences.append(sentence)
        return self.plain(f"{before}{text} {sentence.mark}")

    def answer(self, kind: Kind, sources: Sequence[Source], dropped: int = 0, written: Written | None = None) -> Answer:
        found = self._found
        return Answer(
            found.question, self.text, kind, found.evidence, tuple(self.sentences), tuple(sources), dropped, written
        )


def _apart(hits: Sequence[Hit]) -> tuple[Source, ...]:
    """Each passage a source of its own, the best first."""
    return tuple(Source(n, (Piece(hit.passage, hit.occurrences[0]),)) for n, hit in enumerate(hits, 1))


def _says_nothing(text: str, question: str, titles: Sequence[frozenset[str]]) -> bool:
    """Whether a sentence only repeats the question, or the title of a passage."""
    said, asked = (" ".join(_WORD.findall(one.lower())) for one in (text, question))
    return f" {said} " in f" {asked} " or any(title.issuperset(words(text)) for title in titles)


def _refusal(found: Found) -> str:
    if not found.hits:
        return "The documents do not answer this: nothing in them comes near it."
    missing = {stem for word in found.evidence.missing for stem in words(word)}
    absent = [word for word in _WORD.findall(found.question) if missing.intersection(words(word))]
    named = ", ".join(f"“{word}”" for word in dict.fromkeys(absent))
    why = f": what comes nearest says nothing of {named}" if named else ""
    return f"The documents do not answer this{why}."


def _sentence(sentence: Sentence) -> dict[str, Any]:
    source, piece = sentence.source, sentence.piece
    return {
        "text": sentence.text,
        "start": sentence.start,
        "end": sentence.end,
        "number": source.number if source else None,
        "asked": sentence.asked,
        "passage": piece.passage.id if piece else None,
        "place": piece.place if piece else None,
        "supported": source is not None,
        "support": round(sentence.support, 4),
        "differs": list(sentence.differs),
    }


def _source(source: Source) -> dict[str, Any]:
    return {
        "number": source.number,
        "title": source.title,
        "path": source.pieces[0].occurrence.path,
        "places": [piece.place for piece in source.pieces],
        "passages": [piece.passage.id for piece in source.pieces],
        "text": "\n\n".join(piece.passage.text for piece in source.pieces),
    }
