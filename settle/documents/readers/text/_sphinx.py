"""Makes docutils read what it does not know, as Sphinx and others write it: for the text that is in it."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from docutils import nodes

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
_SILENT = {
    "index", "toctree", "module", "currentmodule", "sectionauthor", "moduleauthor", "codeauthor", "highlight",
    "automodule", "autoclass", "autofunction", "autosummary", "literalinclude", "graphviz", "default-domain",
    "tabularcolumns", "namespace",
}  # fmt: skip


def know_all(source: str) -> None:
    """Gives docutils something to do for every directive and role of a source that it does not know."""
    from docutils.parsers.rst import directives, roles

    for name in set(_DIRECTIVE.findall(source)):
        if name.lower() not in _DOCUTILS:
            directives.register_directive(name.lower(), _directive(name.lower().rsplit(":", 1)[-1]))
    for name in set(_ROLE.findall(source)):
        roles.register_local_role(name.lower(), _role)


def _role(
    role: str,
    rawtext: str,
    text: str,
    lineno: int,
    inliner: object,
    options: Mapping[str, object] = {},
    content: Sequence[str] = (),
) -> tuple[list["nodes.Node"], list["nodes.Node"]]:
    """The text that a page shows: the title of `title <target>`, the last name of `~package.name`."""
    from docutils import nodes

    titled = _TITLED.fullmatch(text)
    shown = titled[1] if titled and titled[1] else text
    if shown.startswith("~"):
        shown = shown.rsplit(".", 1)[-1].lstrip("~")
    return [nodes.inline(rawtext, shown.lstrip("!").replace("\0", ""))], []


class _AnyOption(dict[str, object]):
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
            if kind in _SILENT:
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
