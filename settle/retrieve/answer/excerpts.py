"""A passage as what can be quoted of it: a sentence with those that belong to it, an item or a listing with the
sentence that introduces it, a row of a table below its header."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

from settle.retrieve.answer.sentences import sentences

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


class Unit(NamedTuple):
    """What is compared with a question. paragraph: its number in the passage."""

    text: str
    kind: Kind
    paragraph: int


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
        """The unit that the character `place` of the text is in, or that follows it; None behind the last."""
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
        """What is quoted for a unit, and the units that it is made of."""
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
        chosen = [
            self._shown(i) for i in dict.fromkeys((first, *range(at if unit.kind == "item" else first, last + 1)))
        ]
        return self._joined(chosen), range(first, last + 1)

    def _introduction(self, at: int) -> int:
        """The sentence that introduces a listing, or a list; `at` itself where there is none."""
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
        """Whether the unit after `last` belongs to an excerpt too."""
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

    def _shown(self, at: int) -> Unit:
        unit = self.units[at]
        if unit.kind == "listing":
            return unit._replace(text="\n".join(unit.text.split("\n")[:LINES]))
        return unit

    def _joined(self, units: list[Unit]) -> str:
        text, before = "", None
        for unit in units:
            is_prose = before is not None and before.kind == unit.kind == "sentence"
            if unit.kind == "row" and (before is None or before.paragraph != unit.paragraph):
                text += f"\n{self._headers[unit.paragraph]}"
            text += f"{' ' if is_prose else chr(10)}{unit.text}" if text else unit.text
            before = unit
        return text.strip("\n")


@lru_cache(maxsize=256)
def excerpts(text: str) -> Excerpts:
    """The excerpts of a passage's text."""
    return Excerpts(text)


def is_listing(lines: list[str]) -> bool:
    """Whether lines are code, or what a program prints: signs of that in most, and few that end as sentences do."""
    others = [line.rstrip() for line in lines if not _SIGNS.search(line)]
    ends = sum(_PROSE_END.search(line) is not None for line in others)
    return 2 * len(others) <= len(lines) and 3 * ends <= len(lines)


def _paragraphs(text: str) -> Iterator[str]:
    """Parts between blank lines; a list below a paragraph without a blank line is one of its own."""
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
    """The items of a list, each with the lines below its marker."""
    item: list[str] = []
    for line in lines:
        if item and _ITEM.match(line):
            yield " ".join(item)
            item = []
        item.append(" ".join(line.split()))
    yield " ".join(item)
