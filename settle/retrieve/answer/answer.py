"""An answer: its sentences with their citations, or a refusal; as text, and as JSON."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from settle.base.visible import html_text, visible, visible_line
from settle.retrieve.answer.evidence import Evidence
from settle.retrieve.index.catalogue import Occurrence, Passage

UNSUPPORTED = "[not in the documents]"
_BREAK = re.compile("\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_REFERENCE = re.compile(r"\[(\d+)\]")

Kind = Literal["written", "quoted", "refused"]


def hanging(text: str) -> str:
    """Return a text with all lines but the first indented, so that none can be taken for the source of a citation."""
    return _BREAK.sub("\n    ", text)


class Piece(NamedTuple):
    """A passage at one of its places."""

    passage: Passage
    occurrence: Occurrence

    @property
    def place(self) -> str:
        """The place to open."""
        return self.occurrence.place.after(self.occurrence.path)


@dataclass(frozen=True)
class Source:
    """The adjoining passages of a document, in order, that one citation number refers to."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """The headings that all of its passages are under."""
        levels = zip(*(piece.passage.headings for piece in self.pieces), strict=False)
        same = itertools.takewhile(lambda level: len(set(level)) == 1, levels)
        return tuple(level[0] for level in same)

    @property
    def title(self) -> str:
        """Its headings, or the name of its file, on one line."""
        return visible_line(" › ".join(self.headings) or Path(self.pieces[0].occurrence.path).name)

    @property
    def texts(self) -> tuple[str, str]:
        """The number and the text in a prompt: only citations are numbers in brackets there, others get parentheses."""
        lines, above = [*([" › ".join(self.headings)] if self.headings else [])], self.headings
        for piece in self.pieces:
            if piece.passage.headings != above:
                lines += piece.passage.headings[-1:]
            lines.append(piece.passage.text)
            above = piece.passage.headings
        text = "\n".join(lines)
        return f"[{self.number}]", _REFERENCE.sub(r"(\1)", f" {text}\n\n")


@dataclass(frozen=True)
class Sentence:
    """One sentence of an answer."""

    text: str
    start: int  # its first character in the answer's text
    source: Source | None  # that is cited for it, None where no passage supports it
    piece: Piece | None
    support: float  # 0 to 1
    cited_number: int | None = None  # that the model wrote
    differs: tuple[str, ...] = ()  # words in which it deviates from the nearest passage
    quote: str = ""  # the passage's sentence that supports it, "" where it is itself one

    @property
    def end(self) -> int:
        """The character after its last one, without its citation."""
        return self.start + len(self.text)

    @property
    def mark(self) -> str:
        return f"[{self.source.number}]" if self.source else UNSUPPORTED


@dataclass(frozen=True)
class Generation:
    """How a model's answer ended."""

    prompt_tokens: int
    new_tokens: int
    is_cut: bool  # its last sentence was cut off, and is left out
    stop: str = ""  # the text that ended it


@dataclass(frozen=True, repr=False)
class CitedAnswer:
    """An answer with its citations, or a refusal."""

    question: str
    text: str  # with its citations
    kind: Kind
    evidence: Evidence
    sentences: tuple[Sentence, ...] = ()
    sources: tuple[Source, ...] = ()  # that could be cited; of a refusal the nearest passages
    dropped: int = 0  # passages that had no room in the prompt
    generation: Generation | None = None  # of the model that wrote it, None where none did

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

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        lines = [f"[{source.number}] {piece.place}" for source, piece in self.cited]
        text = self.text
        for sentence in reversed(self.sentences):
            text = f"{text[: sentence.start]}{hanging(sentence.text)}{text[sentence.end :]}"
        return visible("\n".join([text, *([""] if lines else []), *lines]))

    def _repr_html_(self) -> str:
        """For a notebook: the answer, and each passage that it cites, with its place."""
        passages = [f"[{source.number}] {piece.place}\n{piece.passage.text}" for source, piece in self.cited]
        return "".join(map(html_text, [self.text, *(f"! {warning}" for warning in self.warnings), *passages]))

    def to_json(self) -> dict[str, object]:
        """Return the record that `settle ask --json` prints."""
        sentences = [
            {
                "text": one.text,
                "start": one.start,
                "end": one.end,
                "number": one.source.number if one.source else None,
                "asked": one.cited_number,
                "passage": one.piece.passage.id if one.piece else None,
                "place": one.piece.place if one.piece else None,
                "supported": one.source is not None,
                "support": round(one.support, 4),
                "differs": list(one.differs),
                "quote": one.quote or None,
            }
            for one in self.sentences
        ]
        sources = [
            {
                "number": source.number,
                "title": source.title,
                "path": source.pieces[0].occurrence.path,
                "places": [piece.place for piece in source.pieces],
                "passages": [piece.passage.id for piece in source.pieces],
                "text": "\n\n".join(piece.passage.text for piece in source.pieces),
            }
            for source in self.sources
        ]
        measures = ("score", "threshold", "sure", "covered")
        evidence = {name: round(getattr(self.evidence, name), 4) for name in measures}
        return {
            "question": self.question,
            "answer": self.text,
            "kind": self.kind,
            "refused": self.kind == "refused",
            "perhaps": self.is_uncertain,
            "supported": self.is_supported,
            "evidence": evidence | {"missing": list(self.evidence.missing)},
            "sentences": sentences,
            "sources": sources,
            "dropped": self.dropped,
        }
