"""Plain text: paragraphs between empty lines, and headings that are underlined or stand out as in a manual page."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from settle.documents.blocks import Block, Note, Place
from settle.documents.decode import text_lines
from settle.documents.readers.text._verbatim import VerbatimReader

_LEVELS = {"=": 1, "-": 2, "~": 3}
_UNDERLINE = re.compile(r"([=\-~])\1{2,}\s*")
_CAPITALS = re.compile(r"[A-Z][A-Z0-9 ,/&-]{2,58}")


class Text(VerbatimReader):
    """A paragraph is a block."""

    suffixes: ClassVar[tuple[str, ...]] = (
        ".txt", ".text", ".log", ".org", ".adoc", ".asciidoc", ".tex", ".srt", ".vtt",
    )  # fmt: skip
    names: ClassVar[tuple[str, ...]] = (
        "readme", "license", "licence", "copying", "copyright", "changelog", "changes", "news", "history", "authors",
        "contributors", "maintainers", "thanks", "credits", "notice", "todo", "install", "version", "faq", "hacking",
    )  # fmt: skip

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        for first, lines in paragraphs(text_lines(path, note)):
            num_lines, level = _heading(lines)
            if num_lines:
                yield Block("heading", lines[0].strip(), Place(line=first), level)
            if len(lines) > num_lines:
                yield Block("text", "\n".join(lines[num_lines:]), Place(line=first + num_lines), lined=True)


def paragraphs(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, from 1; its lines) of what stands between empty lines."""
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


def _heading(lines: list[str]) -> tuple[int, int]:
    """(lines that a paragraph's heading takes, its level), or zeros: one underlined as long as it is, or in capitals at
    the margin above lines that are indented."""
    if len(lines) < 2:
        return 0, 0
    first, second = lines[0], lines[1]
    if (mark := _UNDERLINE.fullmatch(second)) and abs(len(first.strip()) - len(second.rstrip())) < 3:
        return 2, _LEVELS[mark[1]]
    if _CAPITALS.fullmatch(first) and second.startswith(("  ", "\t")):
        return 1, 1
    return 0, 0
