"""Markdown, by CommonMark's rules: headings, paragraphs, lists, listings, tables."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from settle.documents.blocks import Block, Kind, Note, Place
from settle.documents.decode import text_lines
from settle.documents.readers.text import VerbatimReader

if TYPE_CHECKING:
    from markdown_it.token import Token

_KINDS: dict[str, Kind] = {
    "paragraph_open": "text", "blockquote_open": "text", "bullet_list_open": "list", "ordered_list_open": "list",
    "table_open": "table", "fence": "code", "code_block": "code", "html_block": "text",
}  # fmt: skip
_TITLE = re.compile(r"title\s*[:=]\s*(?P<quote>[\"']?)(?P<title>.+?)(?P=quote)\s*")
_FENCES = ("---", "+++")  # of front matter in YAML and in TOML
_LONGEST_FRONT = 200  # lines
_ID = re.compile(r"\s*\{[:#][^{}]*\}\s*$")  # of a heading, as Pandoc and MkDocs write it
_PICTURE = re.compile(r"!\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_INNER_LINK = re.compile(r"(?<!\w)\[([^\[\]]+)\]\((?!https?:|mailto:)[^()\s]*(?:\s+\"[^\"]*\")?\)")
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)
_UNSEEN = re.compile(r"<(style|script)\b.*?(?:</\1\s*>|\Z)", re.S | re.I)
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")


class Markdown(VerbatimReader):
    """The source's lines are kept, without the addresses of pictures and of links that stay inside the folder."""

    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown", ".mdx", ".mkd", ".qmd", ".rmd")
    packages: ClassVar[tuple[str, ...]] = ("markdown_it",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        yield from markdown_blocks(list(text_lines(path, note)))


def markdown_blocks(lines: Sequence[str]) -> Iterator[Block]:
    """Yield the blocks of a text in Markdown, without front matter except its title, where no heading is one."""
    from markdown_it import MarkdownIt

    start = _front_matter(lines)
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join([""] * start + list(lines[start:])))
    if not any(token.type == "heading_open" and token.tag == "h1" and token.level == 0 for token in tokens):
        yield from _title(lines[:start])
    for i, token in enumerate(tokens):
        if token.level or token.map is None:
            continue
        if token.type == "heading_open":
            text = _ID.sub("", _plain(tokens[i + 1]))
            yield Block("heading", text, Place(line=token.map[0] + 1), level=int(token.tag[1:]))
        elif token.type in _KINDS:
            yield _block(token, lines)


def _block(token: "Token", lines: Sequence[str]) -> Block:
    kind, (first, end), header = _KINDS[token.type], token.map or (0, 0), ""
    if token.type == "fence":
        closed = end - first > 1 and lines[end - 1].lstrip(" >").startswith(token.markup)
        first, end = first + 1, end - closed
    elif token.type == "table_open" and end - first > 2:
        first, header = first + 2, "\n".join(lines[first : first + 2])
    text = "\n".join(lines[first:end])
    if token.type == "html_block":
        # line feeds stay, so that lines keep their numbers
        for unseen in (_COMMENT, _UNSEEN):
            text = unseen.sub(lambda match: "\n" * match[0].count("\n"), text)
        text = _TAG.sub("", text)
    elif kind != "code":
        text = _INNER_LINK.sub(r"\1", _PICTURE.sub(r"\1", text))
    return Block(kind, text, Place(line=first + 1), lined=True, header=header)


def _plain(inline: "Token") -> str:
    breaks = {"softbreak": " ", "hardbreak": " ", "html_inline": ""}
    return "".join(breaks.get(child.type, child.content) for child in inline.children or ())


def _front_matter(lines: Sequence[str]) -> int:
    """Return how many lines the front matter takes."""
    if not lines or (fence := lines[0].rstrip()) not in _FENCES:
        return 0
    ends = (i for i, line in enumerate(lines[1:_LONGEST_FRONT], 1) if line.rstrip() in (fence, "..."))
    return next(ends, -1) + 1


def _title(front: Sequence[str]) -> Iterator[Block]:
    for number, line in enumerate(front, 1):
        if match := _TITLE.fullmatch(line):
            yield Block("heading", match["title"], Place(line=number), level=1)
            return
