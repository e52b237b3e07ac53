"""Plain text: paragraphs between empty lines, and headings that are underlined or stand out as in a manual page."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note, Place
from settle.documents.decode import text_lines
from settle.documents.readers.text import VerbatimReader

_LEVELS = {"=": 1, "-": 2, "~": 3}
_UNDERLINE = re.compile(r"([=\-~])\1{2,}\s*")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9 ,/&-]{2,58}")
_PAGE = re.compile(
    r"\s*(?P<title>\S.*?\s{3,}|(?:page\s+)?[-–]?\s*)(?P<number>\d{1,5})\s*(?:[-–]|of \d+|/\s?\d+)?\s*", re.I
)
_PAGES = 4  # of a text, from which on what repeats on each is known


class PlainText(VerbatimReader):
    """A paragraph is a block."""

    suffixes: ClassVar[tuple[str, ...]] = (
        ".txt", ".text", ".log", ".org", ".adoc", ".asciidoc", ".tex", ".srt", ".vtt",
    )  # fmt: skip
    names: ClassVar[tuple[str, ...]] = (
        "readme", "license", "licence", "copying", "copyright", "changelog", "changes", "news", "history", "authors",
        "contributors", "maintainers", "thanks", "credits", "notice", "todo", "install", "version", "faq", "hacking",
    )  # fmt: skip

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        running = running_lines(text_lines(path, lambda text: None))
        for first, lines in paragraphs(text_lines(path, note)):
            if first in running:
                continue
            num_lines, level = _heading(lines)
            if num_lines:
                yield Block("heading", lines[0].strip(), Place(line=first), level)
            if len(lines) > num_lines:
                yield Block("text", "\n".join(lines[num_lines:]), Place(line=first + num_lines), lined=True)


def paragraphs(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, from 1; its lines) of each paragraph between empty lines."""
    paragraph: list[str] = []
    first = 1
    for number, line in enumerate(lines, 1):
        if line.strip():
            if not paragraph:
                first = number
            paragraph.append(line)
        elif paragraph:
            yield first, paragraph
            paragraph = []
    if paragraph:
        yield first, paragraph


def running_lines(lines: Iterable[str]) -> set[int]:
    """Return the numbers of running lines: those alone above or below each page of a text made for printing.

    They have the page's number, which counts up, or are the same next to each of those.
    """
    alone = [(first, found[0].strip() if len(found) == 1 else "") for first, found in paragraphs(lines)]
    by_title: dict[str, list[tuple[int, int]]] = {}
    for at, (_, line) in enumerate(alone):
        if line and (match := _PAGE.fullmatch(line)):
            by_title.setdefault(match["title"].strip(), []).append((at, int(match["number"])))
    pages: set[int] = set()
    for found in by_title.values():
        steps = [after - before for (_, before), (_, after) in pairwise(found)]
        if len(found) >= _PAGES and all(step in (1, 2) for step in steps):
            pages |= {at for at, _ in found}
    beside = Counter(alone[at + side][1] for at in pages for side in (-1, 1) if 0 <= at + side < len(alone))
    repeated = {line for line, number in beside.items() if line and number >= _PAGES}
    return {first for at, (first, line) in enumerate(alone) if at in pages or line in repeated}


def _heading(lines: list[str]) -> tuple[int, int]:
    """Return (lines that a paragraph's heading takes, its level), or zeros.

    A heading is underlined as long as it is, or in capitals at the margin above lines that are indented.
    """
    if len(lines) < 2:
        return 0, 0
    first, second = lines[0], lines[1]
    if (mark := _UNDERLINE.fullmatch(second)) and abs(len(first.strip()) - len(second.rstrip())) < 3:
        return 2, _LEVELS[mark[1]]
    if _CAPITALS.fullmatch(first) and second.startswith(("  ", "\t")):
        return 1, 1
    return 0, 0
