"""An answer: its sentences with their citations, or a refusal; as text, and as JSON."""

import re
from dataclasses import dataclass
from typing import Literal

from settle.base.visible import visible
from settle.retrieve.answer.context import Piece, Source
from settle.retrieve.answer.evidence import Evidence
from settle.retrieve.answer.write_answer import Generation

UNSUPPORTED = "[not in the documents]"
_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")

Kind = Literal["written", "quoted", "refused"]


def hanging(text: str) -> str:
    """Return a text with all lines but the first indented, so that none can be taken for the source of a citation."""
    return _BREAK.sub("\n    ", text)


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer.

    start, end: its characters in the answer's text, without its citation. source, piece: what is cited for it, None
    where no passage supports it. support: 0 to 1. cited_number: the one that the model wrote. differs: the words in
    which it deviates from the nearest passage. quote: the passage's sentence that supports it, "" where it is itself
    one.
    """

    text: str
    start: int
    end: int
    source: Source | None
    piece: Piece | None
    support: float
    cited_number: int | None = None
    differs: tuple[str, ...] = ()
    quote: str = ""

    @property
    def mark(self) -> str:
        return f"[{self.source.number}]" if self.source else UNSUPPORTED


@dataclass(frozen=True)
class CitedAnswer:
    """An answer with its citations, or a refusal.

    text: with its citations. sources: what could be cited; of a refusal the nearest passages. dropped: number of
    passages that had no room in the prompt. generation: of the model that wrote it, None where none did.
    """

    question: str
    text: str
    kind: Kind
    evidence: Evidence
    sentences: tuple[Sentence, ...] = ()
    sources: tuple[Source, ...] = ()
    dropped: int = 0
    generation: Generation | None = None

    @property
    def cited(self) -> list[tuple[Source, Piece]]:
        """The sources that sentences cite, each once with the piece to open; all sources of a refusal."""
        if self.kind == "refused":
            return [(source, source.pieces[0]) for source in self.sources]
        by_number = {s.source.number: (s.source, s.piece) for s in reversed(self.sentences) if s.source and s.piece}
        return [by_number[number] for number in sorted(by_number)]

    def quotes(self, source: Source) -> list[str]:
        """Return the sentences of a source that support what a model wrote and cited it for."""
        return list(dict.fromkeys(s.quote for s in self.sentences if s.quote and s.source == source))

    @property
    def is_uncertain(self) -> bool:
        """Return whether the documents may not answer: the nearest passages are quoted, with a warning."""
        return self.kind != "refused" and not self.evidence.is_sure

    @property
    def is_supported(self) -> bool:
        """Return whether the documents support at least one sentence."""
        return any(sentence.source for sentence in self.sentences)

    @property
    def warnings(self) -> list[str]:
        """Warnings to show beside the text."""
        warnings = []
        unsupported = [sentence for sentence in self.sentences if sentence.source is None]
        if unsupported:
            differing = dict.fromkeys(word for sentence in unsupported for word in sentence.differs)
            words = f" ({', '.join(differing)} differs)" if differing else ""
            number = f"{len(unsupported)} of {len(self.sentences)} sentences"
            warnings.append(f"{number} are not supported by any passage, and are marked{words}")
        if self.dropped:
            warnings.append(f"{self.dropped} of the passages found did not fit beside the question")
        if self.generation and self.generation.is_cut:
            warnings.append("the answer was cut off at its longest; the unfinished sentence is not shown")
        return warnings

    def __str__(self) -> str:
        lines = [f"[{source.number}] {piece.place}" for source, piece in self.cited]
        text = self.text
        for sentence in reversed(self.sentences):
            text = f"{text[: sentence.start]}{hanging(sentence.text)}{text[sentence.end :]}"
        return visible("\n".join([text, *([""] if lines else []), *lines]))

    def to_json(self) -> dict[str, object]:
        """Return the record that `settle ask --json` prints."""
        return {
            "question": self.question,
            "answer": self.text,
            "kind": self.kind,
            "refused": self.kind == "refused",
            "perhaps": self.is_uncertain,
            "supported": self.is_supported,
            "evidence": {
                "score": round(self.evidence.score, 4),
                "threshold": round(self.evidence.threshold, 4),
                "sure": round(self.evidence.sure, 4),
                "covered": round(self.evidence.covered, 4),
                "missing": list(self.evidence.missing),
            },
            "sentences": [_sentence(sentence) for sentence in self.sentences],
            "sources": [_source(source) for source in self.sources],
            "dropped": self.dropped,
        }


def _sentence(sentence: Sentence) -> dict[str, object]:
    source, piece = sentence.source, sentence.piece
    return {
        "text": sentence.text,
        "start": sentence.start,
        "end": sentence.end,
        "number": source.number if source else None,
        "asked": sentence.cited_number,
        "passage": piece.passage.id if piece else None,
        "place": piece.place if piece else None,
        "supported": source is not None,
        "support": round(sentence.support, 4),
        "differs": list(sentence.differs),
        "quote": sentence.quote or None,
    }


def _source(source: Source) -> dict[str, object]:
    return {
        "number": source.number,
        "title": source.title,
        "path": source.pieces[0].occurrence.path,
        "places": [piece.place for piece in source.pieces],
        "passages": [piece.passage.id for piece in source.pieces],
        "text": "\n\n".join(piece.passage.text for piece in source.pieces),
    }
