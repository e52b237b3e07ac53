"""Answers to questions from a collection: written by a language model or quoted, or refused.

Each sentence is checked against the passage that it cites. Where the documents may not answer, the passages are quoted
with a warning.
"""

import contextlib
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from settle.infer.client import LlamaClient
from settle.retrieve.answer.answer import CitedAnswer, Generation, Kind, Piece, Sentence, Source
from settle.retrieve.answer.answering_model import AnsweringModel
from settle.retrieve.answer.citation_check import Checker
from settle.retrieve.answer.evidence import PASSAGES, Retrieval, retrieve
from settle.retrieve.answer.extractive import Quote, quotes
from settle.retrieve.answer.write_answer import AnswerOptions, Prompt, generate
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import words
from settle.retrieve.search import Hit

NEAREST = 3  # passages that a refusal names
PERHAPS = "The documents may not answer this. What comes nearest:\n"
DEFAULT_OPTIONS = AnswerOptions()
_WORD = re.compile(r"\w+")


def stream_answer(
    collection: Collection, model: LlamaClient | None, retrieval: Retrieval, options: AnswerOptions = DEFAULT_OPTIONS
) -> Generator[str, None, CitedAnswer]:
    """Yield the answer's text sentence by sentence, each with its citation, and return the whole.

    Without a model, and where the documents may not answer, the best sentences of the passages are quoted. Raises
    UsageError when not even one passage fits into the model's context, EngineError when the model fails.
    """
    builder = _Builder(retrieval)
    if not retrieval.evidence.enough:
        yield builder.add_text(_refusal(retrieval))
        return builder.answer("refused", _one_source_a_place(retrieval.hits[:NEAREST]))
    if model is None or not retrieval.evidence.is_sure:
        if not retrieval.evidence.is_sure:
            yield builder.add_text(PERHAPS)
        sources = _one_source_a_place(retrieval.hits)
        yield from builder.add_quotes(quotes(collection, retrieval.whole_question, sources, retrieval.readings))
        return builder.answer("quoted", sources)
    prompt = Prompt(collection, model, retrieval.question, retrieval.hits, options, retrieval.before)
    sources = prompt.packed.sources
    with contextlib.closing(generate(model, prompt, options)) as pieces:
        generation = yield from builder.add_checked(pieces, Checker(collection, sources))
    if not any(sentence.source for sentence in builder.sentences):
        if builder.text:
            yield builder.add_text("\n\nThe passages themselves say:\n")
        yield from builder.add_quotes(quotes(collection, retrieval.whole_question, sources[::-1], retrieval.readings))
    return builder.answer("written", sources, len(prompt.packed.dropped), generation)


def finish_answer(
    pieces: Generator[str, None, CitedAnswer], on_text: Callable[[str], None] = lambda text: None
) -> CitedAnswer:
    """Return the answer once it is complete. on_text: called with each piece of it."""
    with contextlib.closing(pieces):
        while True:
            try:
                on_text(next(pieces))
            except StopIteration as ended:
                answer: CitedAnswer = ended.value
                return answer


class _Builder:
    """Puts an answer together, sentence by sentence."""

    def __init__(self, retrieval: Retrieval) -> None:
        self._retrieval = retrieval
        self.text = ""
        self.sentences: list[Sentence] = []

    def add_text(self, text: str) -> str:
        self.text += text
        return text

    def add_checked(
        self, pieces: Generator[tuple[str, int], None, Generation], checker: Checker
    ) -> Generator[str, None, Generation]:
        """Add what a model writes, each sentence with the citation that supports it."""
        titles = [frozenset(words(source.title)) for source in checker.sources]
        while True:
            try:
                text, cited = next(pieces)
            except StopIteration as ended:
                generation: Generation = ended.value
                return generation
            if _is_empty_talk(text, self._retrieval.question, titles):
                continue
            best = checker.best(text, cited)
            source, piece, line = (best.source, best.piece, best.line) if best.enough else (None, None, "")
            start = len(self.text) + bool(self.text)
            yield self._add_sentence(Sentence(text, start, source, piece, best.score, cited, best.differs, line))

    def add_quotes(self, chosen: Sequence[Quote]) -> Iterator[str]:
        for quote in chosen:
            text = f"“{quote.text}”"
            start = len(self.text) + (bool(self.text) and not self.text.endswith("\n"))
            yield self._add_sentence(Sentence(text, start, quote.source, quote.piece, 1.0), separator="\n")

    def _add_sentence(self, sentence: Sentence, separator: str = " ") -> str:
        self.sentences.append(sentence)
        return self.add_text(f"{separator * (sentence.start - len(self.text))}{sentence.text} {sentence.mark}")

    def answer(
        self, kind: Kind, sources: Sequence[Source], dropped: int = 0, generation: Generation | None = None
    ) -> CitedAnswer:
        question, evidence = self._retrieval.question, self._retrieval.evidence
        return CitedAnswer(
            question, self.text, kind, evidence, tuple(self.sentences), tuple(sources), dropped, generation
        )


def _one_source_a_place(hits: Sequence[Hit]) -> tuple[Source, ...]:
    """Return a source for each place, the best first: several passages may be at one."""
    by_place: dict[str, list[Piece]] = {}
    for hit in hits:
        by_place.setdefault(hit.citation, []).append(Piece(hit.passage, hit.occurrences[0]))
    return tuple(
        Source(number, tuple(sorted(pieces, key=lambda piece: piece.occurrence.ordinal)))
        for number, pieces in enumerate(by_place.values(), 1)
    )


def _is_empty_talk(text: str, question: str, titles: Sequence[frozenset[str]]) -> bool:
    """Return whether a sentence only repeats the question, or the title of a passage."""
    sentence, whole = (" ".join(_WORD.findall(one.lower())) for one in (text, question))
    return f" {sentence} " in f" {whole} " or any(title.issuperset(words(text)) for title in titles)


def _refusal(retrieval: Retrieval) -> str:
    if not retrieval.hits:
        return "The documents do not answer this: nothing in them comes near it."
    missing = {stem for word in retrieval.evidence.missing for stem in words(word)}
    absent = [word for word in _WORD.findall(retrieval.question) if missing.intersection(words(word))]
    named = ", ".join(f"“{word}”" for word in dict.fromkeys(absent))
    why = f": what comes nearest does not mention {named}" if named else ""
    return f"The documents do not answer this{why}."


class AskableCollection(Collection):
    """An opened collection and the language model that answers from it."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        super().__init__(name, folder)
        self._model: AnsweringModel | None = None

    def ask(
        self, question: str, model: str | None = None, earlier: Sequence[str] = (), k: int = PASSAGES
    ) -> CitedAnswer:
        """Return the answer with its citations, as `settle ask` gives it; `str()` of it is for reading.

        model: a run, a model of the store or a .gguf file, loaded at the first question and kept until `close`; `none`
        only quotes. earlier: questions that this one may refer to. Raises SettleError.
        """
        if self._model is not None and self._model.requested != model:
            self._model.close()
            self._model = None
        self._model = self._model or AnsweringModel(self, model)
        retrieval = retrieve(self, question, earlier, k)
        engine = self._model.engine() if retrieval.evidence.is_sure else None
        return finish_answer(stream_answer(self, engine, retrieval))

    def close(self) -> None:
        if self._model is not None:
            self._model.close()
            self._model = None
        super().close()
