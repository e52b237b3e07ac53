"""Answers without a language model: what the passages say that fits a question best, with what belongs to it."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from settle.documents.blocks import with_headings
from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.answer_judge import UNREAD, JudgeReading
from settle.retrieve.answer.citation_check import word_weights
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences, words

Kind = Literal["sentence", "item", "row", "listing"]
FOLLOWING = 2  # sentences after the one that fits
WORDS = 60  # of an excerpt, from which on nothing more is added
LINES = 12  # of a listing that are quoted
ITEMS = 8  # of a list that a sentence introduces
SHORTEST = 5  # words: a sentence with fewer says too little without the one before it
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_RULE = re.compile(r"[\s|:+=-]+")  # the line below the header of a table
_SIGNS = re.compile(r"[{}<>=;\\$]|--\w|\w\(|\w[/_]\w|^\s*#\s?\w")  # signs of code in a line
_PROSE_END = re.compile(r"[.!?:…]['\"”’)\]]*$")
_REFERRING = re.compile(
    r"(?:This|That|These|Those|It|Its|They|Their|He|She|Such|So|However|Therefore|Thus|Hence|Otherwise|Instead|Also|Then"
    r"|But|And|In this|For this|As a result|Here)\b"
)
MOST = 2  # excerpts of an answer
NEAR = 0.7  # share of the best one's score from which on another is quoted beside it
LATER = 0.03  # score that an excerpt loses for each passage that was found before its own
READ = 0.1  # that the unit gains which the trained judge has read the answer in
HEADING = 0.5  # share of a word's weight that counts where only the heading has it
CANDIDATES = 64  # sentences whose meaning is compared: those that share most words with the question
LONGEST = 400  # characters of a unit that are compared


class Unit(NamedTuple):
    """A part of a passage that is compared with a question."""

    text: str
    kind: Kind
    paragraph: int  # its number in the passage


class Excerpts:
    """The units of one passage, in order, and what is quoted for each."""

    def __init__(self, text: str) -> None:
        self._text, self._flat = text, " ".join(text.split())
        self._headers: dict[int, str] = {}
        self.units = tuple(
            unit for number, paragraph in enumerate(_paragraphs(text)) for unit in self._of(paragraph, number)
        )

    def _of(self, paragraph: str, number: int) -> Iterator[Unit]:
        lines = [line for line in paragraph.split("\n") if line.strip()]
        if len(lines) > 1 and all("|" in line for line in lines):
            self._headers[number] = lines[0]
            yield from (Unit(line, "row", number) for line in lines[1:] if not _RULE.fullmatch(line))
        elif sum(map(bool, map(_ITEM.match, lines))) * 3 >= len(lines) and _ITEM.match(lines[0]):
            yield from (Unit(item, "item", number) for item in _items(lines))
        elif is_listing(lines):
            yield Unit("\n".join(lines), "listing", number)
        else:
            yield from (Unit(sentence, "sentence", number) for sentence in sentences(paragraph))

    def unit_at(self, place: int) -> int | None:
        """Return the unit that the character `place` of the text is in, or that follows it; None after the last."""
        read = len(" ".join(self._text[:place].split()))
        end = 0
        for number, unit in enumerate(self.units):
            text = " ".join(unit.text.split())
            begin = self._flat.find(text, end)
            end = begin + len(text) if begin >= 0 else end
            if end > read:
                return number
        return None

    def excerpt(self, at: int) -> tuple[str, range]:
        """Return what is quoted for a unit, and the units that it is made of."""
        unit = self.units[at]
        if unit.kind == "row":
            return f"{self._headers[unit.paragraph]}\n{unit.text}", range(at, at + 1)
        first, last = at, at
        if unit.kind in ("item", "listing"):
            first = self._introduction(at)
        elif at and self._needs_the_one_before(at):
            first -= 1
        while last + 1 < len(self.units) and self._is_continued(at, first, last):
            last += 1
        begin = at if unit.kind == "item" else first
        return self._joined(dict.fromkeys((first, *range(begin, last + 1)))), range(first, last + 1)

    def _introduction(self, at: int) -> int:
        """Return the sentence that introduces a listing, or a list; `at` itself where there is none."""
        before = at - 1
        while before >= 0 and self.units[before].paragraph == self.units[at].paragraph:
            before -= 1
        if before < 0 or self.units[before].kind != "sentence":
            return at
        introduces = self.units[at].kind == "listing" or self.units[before].text.rstrip().endswith(":")
        return before if introduces else at

    def _needs_the_one_before(self, at: int) -> bool:
        before, text = self.units[at - 1], self.units[at].text.rstrip()
        is_short = len(text.split()) < SHORTEST and not text.endswith(":")
        return before.kind == "sentence" and (is_short or bool(_REFERRING.match(text)))

    def _is_continued(self, at: int, first: int, last: int) -> bool:
        """Return whether the unit after `last` belongs to an excerpt too."""
        unit, following = self.units[last], self.units[last + 1]
        words = sum(len(self.units[i].text.split()) for i in range(at, last + 1))
        if unit.kind == "sentence":
            if unit.text.rstrip().endswith(":"):
                return True  # what it introduces
            is_title = following.paragraph != unit.paragraph and not _PROSE_END.search(following.text.rstrip())
            is_title = is_title and len(following.text.split()) < SHORTEST  # such as the next term of a list
            return following.kind == "sentence" and last - at < FOLLOWING and words < WORDS and not is_title
        is_introduced = self.units[at].kind == "sentence" and following.paragraph == unit.paragraph
        return is_introduced and last - at < ITEMS and unit.kind in ("item", "row")

    def _joined(self, numbers: Iterable[int]) -> str:
        text, before = "", None
        for unit in (self.units[number] for number in numbers):
            shown = unit.text
            if unit.kind == "listing":
                shown = "\n".join(shown.split("\n")[:LINES])
            is_prose = before is not None and before.kind == unit.kind == "sentence"
            if unit.kind == "row" and (before is None or before.paragraph != unit.paragraph):
                text += f"\n{self._headers[unit.paragraph]}"
            text += f"{' ' if is_prose else chr(10)}{shown}" if text else shown
            before = unit
        return text.strip("\n")


@lru_cache(maxsize=256)
def excerpts(text: str) -> Excerpts:
    """Return the excerpts of a passage's text."""
    return Excerpts(text)


def is_listing(lines: list[str]) -> bool:
    """Return whether lines are code, or a program's output: most have signs of that, and few end as sentences do."""
    others = [line.rstrip() for line in lines if not _SIGNS.search(line)]
    ends = sum(_PROSE_END.search(line) is not None for line in others)
    return 2 * len(others) <= len(lines) and 3 * ends <= len(lines)


def _paragraphs(text: str) -> Iterator[str]:
    """Yield the parts between blank lines; a list below a paragraph without a blank line is one of its own."""
    for part in re.split(r"\n\s*\n", text):
        open_lines: list[str] = []
        for line in part.split("\n"):
            if open_lines and _ITEM.match(line) and not _ITEM.match(open_lines[0]):
                yield "\n".join(open_lines)
                open_lines = []
            open_lines.append(line)
        if any(line.strip() for line in open_lines):
            yield "\n".join(open_lines)


def _items(lines: list[str]) -> Iterator[str]:
    """Yield the items of a list, each with the lines below its marker."""
    item: list[str] = []
    for line in lines:
        if item and _ITEM.match(line):
            yield " ".join(item)
            item = []
        item.append(" ".join(line.split()))
    yield " ".join(item)


class Quote(NamedTuple):
    """An excerpt of a passage, word for word."""

    text: str
    source: Source
    piece: Piece
    score: float  # how well it fits the question, 0 to 1


class _Candidate(NamedTuple):
    """A unit of a passage."""

    source: Source
    piece: Piece
    at: int  # its number there
    score: float

    @property
    def text(self) -> str:
        return excerpts(self.piece.passage.text).units[self.at].text[:LONGEST]


def quotes(
    collection: Collection, question: str, sources: Sequence[Source], readings: Mapping[int, JudgeReading] = UNREAD
) -> list[Quote]:
    """Return the excerpts that answer best, in the order of the sources.

    sources: the best passage first. readings: what the trained judge read, by the passage's id.
    """
    best = _by_words(collection, question, sources)
    if not best:
        return []
    texts = [with_headings(one.piece.passage.headings, one.text) for one in best]
    meanings = collection.vectors.vectorizer.documents(texts)
    order = {source.number: place for place, source in enumerate(sources)}
    near = meanings @ collection.vectors.embed_query(question)
    ranked = []
    for one, n in zip(best, near, strict=True):
        passage = one.piece.passage
        reading = readings.get(passage.id)
        is_read = reading is not None and excerpts(passage.text).unit_at(reading.at) == one.at
        score = (one.score + max(0.0, float(n))) / 2 - LATER * order[one.source.number] + READ * is_read
        ranked.append(one._replace(score=score))
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


def _by_words(collection: Collection, question: str, sources: Sequence[Source]) -> list[_Candidate]:
    """Return the units that share most words with a question, by the share of the words' weight that they have."""
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
