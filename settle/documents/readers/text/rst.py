"""reStructuredText, by docutils, also with the directives and roles of Sphinx."""

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from settle.documents.blocks import Block, Kind, Note, Place, table
from settle.documents.decode import text_lines
from settle.documents.readers.text import VerbatimReader

if TYPE_CHECKING:
    from docutils import nodes
    from docutils.nodes import Element

_DIRECTIVE = re.compile(r"^[ \t>*|-]*\.\.[ \t]+(?:\|[^|\n]+\|[ \t]+)?([A-Za-z][\w:.+-]*?)::(?=\s|$)", re.M)
_ROLE = re.compile(r":([A-Za-z][\w:.+-]*):`")
_TITLED = re.compile(r"(.*?)\s*<[^<>]*>", re.S)
# What docutils does itself gives blocks as they should be.
_DOCUTILS = {
    "note", "warning", "tip", "hint", "important", "caution", "danger", "error", "attention", "admonition", "topic",
    "sidebar", "table", "list-table", "csv-table", "figure", "image", "parsed-literal", "epigraph", "highlights",
    "pull-quote", "compound", "container", "line-block", "replace", "unicode", "math", "rubric", "role",
    "default-role", "contents", "header", "footer", "meta", "sectnum", "section-numbering", "target-notes", "include",
    "raw",
}  # fmt: skip
_CODE = {
    "code", "code-block", "sourcecode", "testcode", "testsetup", "testoutput", "prompt", "highlight-block",
}  # fmt: skip
_OBJECTS = {
    "function", "class", "method", "classmethod", "staticmethod", "attribute", "property", "data", "exception",
    "decorator", "decoratormethod", "option", "cmdoption", "envvar", "describe", "object", "confval", "setting",
    "opcode", "type", "var", "macro", "member", "struct", "enum", "enumerator", "union", "directive", "role",
    "program", "command",
}  # fmt: skip
_SILENT_DIRECTIVES = {
    "index", "toctree", "module", "currentmodule", "sectionauthor", "moduleauthor", "codeauthor", "highlight",
    "automodule", "autoclass", "autofunction", "autosummary", "literalinclude", "graphviz", "default-domain",
    "tabularcolumns", "namespace",
}  # fmt: skip
_SETTINGS = {
    "file_insertion_enabled": False, "raw_enabled": False, "report_level": 5, "halt_level": 5, "_disable_config": True,
    "syntax_highlight": "none", "doctitle_xform": False, "docinfo_xform": False, "line_length_limit": 1 << 20,
}  # fmt: skip
_SILENT = {"comment", "system_message", "substitution_definition", "target", "pending", "raw", "image", "meta"}
_WHOLE = {"line_block", "option_list_item"}  # one block although there are parts in it
_LISTINGS = {"literal_block", "doctest_block", "math_block"}
_OBJECT = 7  # level of the heading that a function or an option of a reference is, below all sections


def know_all(source: str) -> None:
    """Register every directive and role of a source that docutils does not know."""
    from docutils.parsers.rst import directives, roles

    for name in set(_DIRECTIVE.findall(source)):
        if name.lower() not in _DOCUTILS:
            directives.register_directive(name.lower(), _directive(name.lower().rsplit(":", 1)[-1]))
    for name in set(_ROLE.findall(source)):
        roles.register_local_role(name.lower(), _role)


def _role(
    role: str, rawtext: str, text: str, *_: object, **options: object
) -> tuple[list["nodes.Node"], list["nodes.Node"]]:
    """Return the text that a page shows: the title of `title <target>`, the last name of `~package.name`."""
    from docutils import nodes

    titled = _TITLED.fullmatch(text)
    shown = titled[1] if titled and titled[1] else text
    if shown.startswith("~"):
        shown = shown.rsplit(".", 1)[-1].lstrip("~")
    return [nodes.inline(rawtext, shown.lstrip("!").replace("\0", ""))], []


class _AnyOption(dict[str, Callable[[str], str]]):
    def __missing__(self, name: str) -> Callable[[str], str]:
        return lambda argument: argument


@cache
def _directive(kind: str) -> type[object]:
    from docutils import nodes
    from docutils.parsers.rst import Directive

    class Unknown(Directive):  # type: ignore[misc]
        # what an object's directive begins with is its name, and what others begin with is text as any other
        optional_arguments = 1 if kind in _OBJECTS | _CODE else 0
        final_argument_whitespace = True
        has_content = True
        option_spec = _AnyOption()

        def run(self) -> list[nodes.Node]:
            if kind in _SILENT_DIRECTIVES:
                return []
            if kind in _CODE:
                listing = nodes.literal_block("", "\n".join(self.content))
                listing.line = self.content_offset + 1
                return [listing]
            node = nodes.container("", documents=" ".join(self.arguments))
            node.line = self.lineno
            self.state.nested_parse(self.content, self.content_offset, node)
            return [node]

    return Unknown


class Rst(VerbatimReader):
    """Includes are not followed. What a directive documents (`.. function:: open(file)`) is a heading of its own."""

    suffixes: ClassVar[tuple[str, ...]] = (".rst", ".rest")
    packages: ClassVar[tuple[str, ...]] = ("docutils",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        from docutils.core import publish_doctree

        source = "\n".join(text_lines(path, note))
        know_all(source)
        yield from _Walk().blocks(publish_doctree(source, settings_overrides=_SETTINGS))


class _Walk:
    def __init__(self) -> None:
        self._sections = 0
        self._objects = 0
        self._line = 1  # of what was last known to stand somewhere
        self._markers: list[str] = []  # of the list items that are open

    @property
    def _level(self) -> int:
        return _OBJECT - 1 + self._objects if self._objects else min(self._sections, _OBJECT - 1)

    def blocks(self, node: "Element") -> Iterator[Block]:
        from docutils.nodes import Element, TextElement

        for child in node.children:
            if not isinstance(child, Element):
                continue
            name = child.tagname
            self._line = child.line or self._line
            if name in _SILENT or (name == "topic" and "contents" in child["classes"]):
                continue
            if name in _LISTINGS:
                yield Block("code", child.astext(), Place(line=self._line), self._level, lined=child.line is not None)
            elif name == "title" and node.tagname == "section":
                # docutils counts to the line below it, that underlines it
                yield Block("heading", child.astext(), Place(line=max(1, self._line - 1)), max(1, self._level))
            elif name == "table":
                yield from self._table(child)
            elif name in _WHOLE or isinstance(child, TextElement):
                yield from self._paragraph(child.astext(), child.line)
            else:
                yield from self._inside(name, child)

    def _inside(self, name: str, node: "Element") -> Iterator[Block]:
        if name == "section":
            self._sections += 1
            yield from self.blocks(node)
            self._sections -= 1
        elif name == "list_item":
            ordered = type(node.parent).__name__ == "enumerated_list"
            number = node.parent.index(node) + int(node.parent.get("start", 1)) if ordered else 0
            self._markers.append(f"{number}. " if ordered else "- ")
            yield from self.blocks(node)
            self._markers.pop()
        elif documented := node.get("documents"):
            self._objects += 1
            yield Block("heading", documented, Place(line=self._line), self._level)
            yield from self.blocks(node)
            self._objects -= 1
        else:
            yield from self.blocks(node)

    def _paragraph(self, text: str, line: int | None) -> Iterator[Block]:
        if not text.strip():
            return
        if self._markers:
            text = "  " * (len(self._markers) - 1) + (self._markers[-1] or "  ") + text
            self._markers[-1] = ""
        kind: Kind = "list" if self._markers else "text"
        yield Block(kind, text, Place(line=self._line), self._level, lined=line is not None)

    def _table(self, node: "Element") -> Iterator[Block]:
        place = Place(line=self._line)
        for title in (child for child in node.children if type(child).__name__ == "title"):
            yield Block("text", title.astext(), place, self._level)
        rows = [[entry.astext() for entry in row.children] for row in node.findall(lambda n: n.tagname == "row")]
        headed = next(node.findall(lambda n: n.tagname == "thead"), None) is not None
        if block := table(rows, place, self._level, headed):
            yield block
