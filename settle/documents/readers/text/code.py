"""Source code: functions and classes with their comments, by tree-sitter; other languages by empty lines."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from settle.documents.blocks import LEFT_OUT, Block, Note, Place, Unreadable
from settle.documents.decode import text_lines
from settle.documents.readers.text import VerbatimReader
from settle.documents.readers.text.text import paragraphs

if TYPE_CHECKING:
    from tree_sitter import Node

# suffix → the package that has the grammar in it, and the name of the language where the package has several
_GRAMMARS = {
    ".py": "python", ".pyi": "python", ".pyw": "python",
    ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript:typescript", ".mts": "typescript:typescript", ".cts": "typescript:typescript",
    ".tsx": "typescript:tsx",
    ".java": "java", ".go": "go", ".rs": "rust", ".rb": "ruby", ".cs": "c_sharp", ".php": "php:php",
    ".c": "c", ".h": "cpp", ".cpp": "cpp", ".cc": "cpp", ".cxx": "cpp", ".hpp": "cpp", ".hh": "cpp", ".hxx": "cpp",
    ".sh": "bash", ".bash": "bash",
}  # fmt: skip
_OTHERS = (
    *(".kt", ".kts", ".swift", ".scala", ".lua", ".pl", ".pm", ".r", ".jl", ".hs", ".ml", ".mli", ".fs", ".ex", ".exs"),
    *(".erl", ".clj", ".cljs", ".lisp", ".el", ".scm", ".vim", ".ps1", ".bat", ".cmd", ".zsh", ".fish", ".awk", ".sed"),
    *(".sql", ".graphql", ".proto", ".thrift", ".tf", ".hcl", ".nix", ".cmake", ".mk", ".gradle", ".groovy", ".dart"),
    *(".pyx", ".cuh", ".rkt", ".sv", ".diff", ".patch", ".bib", ".po"),
    *(".m", ".mm", ".zig", ".nim", ".d", ".pas", ".f90", ".f", ".vb", ".asm", ".s", ".v", ".vhd", ".sol", ".cu"),
    *(".css", ".scss", ".less", ".vue", ".svelte", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".properties"),
)
_STYLES = (".css", ".scss", ".less")
_SCRIPTS = (".js", ".mjs", ".cjs")
_HEAD = 256  # bytes that show what writes a script
# what Sphinx, Doxygen, mdBook, Javadoc and rustdoc begin the index of their search with
_SEARCH_INDEXES = (
    *(
        b"Search.setIndex(",
        b"var searchData",
        b"var indexSectionsWithContent",
        b"window.search =",
        b"Object.assign(win",
    ),
    *(b"typeSearchIndex", b"memberSearchIndex", b"packageSearchIndex", b"moduleSearchIndex", b"var searchIndex"),
)
_LONG_LINE = 400  # characters: a line that nobody has written by hand
_LONG = 40  # lines of a function or a class that is a section of its own
# nodes whose children are looked at as if they stood in place of them, and nodes around one definition
_AROUND_MANY = {
    "preproc_ifdef", "preproc_if", "preproc_else", "preproc_elif", "linkage_specification", "declaration_list",
}  # fmt: skip
_AROUND_ONE = {"decorated_definition", "export_statement", "template_declaration", "expression_statement"}
_BEFORE = {"comment", "line_comment", "block_comment", "attribute_item"}  # of what they stand above
_LONGEST_NAME = 100  # characters


class Code(VerbatimReader):
    """The lines of a file in blocks, each at its line. A long class or function is a section with its name."""

    suffixes: ClassVar[tuple[str, ...]] = (*_GRAMMARS, *_OTHERS)
    names: ClassVar[tuple[str, ...]] = (
        "makefile", "gnumakefile", "dockerfile", "containerfile", "jenkinsfile", "vagrantfile", "procfile", "justfile",
        "rakefile", "gemfile", "brewfile", "podfile",
    )  # fmt: skip

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        suffix = path.suffix.lower()
        if suffix in _STYLES:
            raise Unreadable(f"{LEFT_OUT}a stylesheet")
        with path.open("rb") as file:
            if suffix in _SCRIPTS and file.read(_HEAD).lstrip().startswith(_SEARCH_INDEXES):
                raise Unreadable(f"{LEFT_OUT}the search index of a web site")
        lines = list(text_lines(path, note))
        if suffix in _SCRIPTS and 2 * sum(len(line) for line in lines if len(line) > _LONG_LINE) > sum(map(len, lines)):
            raise Unreadable(f"{LEFT_OUT}minified code")
        root = _parsed(lines, _GRAMMARS.get(suffix), note)
        if root is None:
            for first, some in paragraphs(lines):
                yield Block("code", "\n".join(some), Place(line=first), lined=True)
        else:
            yield from _blocks(lines, root, 0, len(lines), 0)


def _parsed(lines: Sequence[str], grammar: str | None, note: Note) -> "Node | None":
    """Return the root of the syntax tree, or None without a grammar."""
    if grammar is None:
        return None
    from tree_sitter import Language, Parser

    package, _, language = grammar.partition(":")
    try:
        module = importlib.import_module(f"tree_sitter_{package}")
    except ImportError:
        note(f"cut at empty lines: the package tree-sitter-{package.replace('_', '-')} is not installed")
        return None
    grammar_pointer = getattr(module, f"language_{language}" if language else "language")()
    return Parser(Language(grammar_pointer)).parse("\n".join(lines).encode("utf-8", "replace")).root_node


def _blocks(lines: Sequence[str], node: "Node", first: int, end: int, level: int) -> Iterator[Block]:
    """Yield the blocks of lines `first` to `end` (from 0, exclusive), whose definitions are the children of `node`."""
    for start, stop, definition in _segments(node, first, end):
        if definition is None or stop - start <= _LONG:
            yield from _listing(lines, start, stop, level)
            continue
        yield Block("heading", _name(definition), Place(line=definition.start_point.row + 1), level + 1)
        body = definition.child_by_field_name("body")
        if body is not None and any(_is_definition(inner) for _, inner in _children(body)):
            yield from _blocks(lines, body, start, stop, level + 1)
        else:
            yield from _listing(lines, start, stop, level + 1)


def _listing(lines: Sequence[str], start: int, stop: int, level: int) -> Iterator[Block]:
    while start < stop and not lines[start].strip():
        start += 1
    while start < stop and not lines[stop - 1].strip():
        stop -= 1
    if start < stop:
        yield Block("code", "\n".join(lines[start:stop]), Place(line=start + 1), level, lined=True)


def _segments(node: "Node", first: int, end: int) -> "Iterator[tuple[int, int, Node | None]]":
    """Take lines apart: definitions with the comments right above them, and what lies between."""
    at = first
    above, below = first, -1  # where the comments above begin, and the line after them
    ended = first  # the line after what stood there last
    for start, child in _children(node):
        stop = child.end_point.row + (child.end_point.column > 0)  # the line after it: its end may be a line feed
        if child.type in _BEFORE:
            if start >= ended:  # else it is about the line that it ends
                above, below = (above if below == start else start), stop
            continue
        if _is_definition(child) and stop > at:
            start = max(at, above if below == start else start)
            if start > at:
                yield at, start, None
            at = min(stop, end)
            yield start, at, child
        below, ended = -1, stop
    if at < end:
        yield at, end, None


def _children(node: "Node") -> "Iterator[tuple[int, Node]]":
    """Yield (line from 0, node) of the children of a node, the definition itself where something is around it."""
    for child in node.named_children:
        if child.type in _AROUND_MANY:
            yield from _children(child)
            continue
        inner = child
        while inner.type in _AROUND_ONE and inner.named_children:
            inner = inner.named_children[-1]
        yield child.start_point.row, inner if _is_definition(inner) else child


def _is_definition(node: "Node") -> bool:
    """Return whether a node is a definition: in every grammar it has a body, and a name of some kind."""
    return node.child_by_field_name("body") is not None and _named(node) is not None


def _named(node: "Node") -> "Node | None":
    return next(filter(None, map(node.child_by_field_name, ("name", "declarator", "type"))), None)


def _name(node: "Node") -> str:
    named = _named(node)
    text = (named.text or b"").decode("utf-8", "replace") if named else ""
    # a function of C carries its parameters in its name
    return " ".join(text.split("(")[0].split()).lstrip("*& ")[:_LONGEST_NAME] or node.type
