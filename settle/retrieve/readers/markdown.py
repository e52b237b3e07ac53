"""Markdown, by CommonMark's rules: headings, paragraphs, lists, listings, tables."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from markdown_it import MarkdownIt
from markdown_it.token import Token

from settle.retrieve.document import Block, Kind, Place
from settle.retrieve.readers import Note, Reader
from settle.retrieve.readers._lines import text_lines

_KINDS: dict[str, Kind] = {
    "paragraph_open": "text", "blockquote_open": "text", "bullet_list_open": "list", "ordered_list_open": "list",
    "table_open": "table", "fence": "code", "code_block": "code", "html_block": "text",
}  # fmt: skip


class Markdown(Reader):
    """The source's lines are kept as they are; front matter between `---` is left out."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown", ".mdx")

    def read(self, path: Path, note: Note) -> Iterator[Block]:
        lines = list(text_lines(path, note))
        start = _front_matter(lines)
        tokens = MarkdownIt("commonmark").enable("table").parse("\n".join([""] * start + lines[start:]))
        for i, token in enumerate(tokens):
            if token.level or token.map is None:
                continue
            first, end = token.map
            place = Place(line=first + 1)
            if token.type == "heading_open":
                yield Block("heading", _plain(tokens[i + 1]), place, level=int(token.tag[1:]))
            elif token.type in _KINDS:
                kind = _KINDS[token.type]
                inner = lines[first + 1 : end - 1] if token.type == "fence" and end - first > 1 else lines[first:end]
                at = Place(line=first + 2) if token.type == "fence" else place
                yield Block(kind, "\n".join(inner), at, lined=True)


def _plain(inline: Token) -> str:
    return "".join(
        child.content for child in inline.children or () if child.type in ("text", "code_inline", "softbreak")
    )


def _front_matter(lines: list[str]) -> int:
    if not lines or lines[0].rstrip() != "---":
        return 0
    ends = (i for i, line in enumerate(lines[1:200], 1) if line.rstrip() in ("---", "..."))
    return next(ends, -1) + 1
