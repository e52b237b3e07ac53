"""Markdown with formulas that a model wrote, as a tree of few known elements: nothing in it is taken for HTML.

A program that shows the tree makes each element itself. Formulas are MathML; pictures are named and never loaded.
"""

import functools
import html
import re
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import latex2mathml.converter
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from settle.base.visible import visible

Node = str | list[Any]  # a text, or [tag, attributes, nodes]; the tag "listing" is a block of code
LONGEST = 20_000  # characters between blocks of code that are read as Markdown; a longer text is shown as it is
LONGEST_FORMULA = 2000  # characters
DEEPEST = 24  # elements within elements; what lies deeper is shown in the last of them
DEEPEST_READ = 80  # of those that the parser reads: it would leave out what lies deeper
NAME = re.compile(r"\w+")
TAGS = frozenset(NAME.findall("p h1 h2 h3 h4 h5 h6 ul ol li blockquote em strong s table thead tbody tr th td"))
MATH_TAGS = frozenset(
    NAME.findall(
        "math mrow mi mn mo ms mtext mspace mfrac msqrt mroot mstyle mpadded mphantom menclose msub msup msubsup "
        "munder mover munderover mmultiscripts mprescripts none mtable mtr mtd"
    )
)
MATH_ATTRIBUTES = frozenset(
    NAME.findall(
        "display mathvariant stretchy fence separator form accent accentunder largeop movablelimits symmetric "
        "displaystyle scriptlevel linethickness columnalign columnlines rowlines notation"
    )
)
FENCED = re.compile(r"^```([^\n`]*)\n(.*?)(?:^``` *(?:\n|\Z)|\Z)", re.S | re.M)
FOLDED = re.compile(r"<(think|thinking|tool_call|tool_response)>\n?(.*?)\s*(?:</\1>\s*|\Z)", re.S)
FOLDED_TITLES = {"tool_call": "Tool call", "tool_response": "Result of a tool"}
DOLLARS = re.compile(r"\$([^\s$](?:[^$\n]{0,500}[^\s$\\])?)\$(?!\d)")
ENDS = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}  # of formulas, by how they begin
# latex2mathml knows these under another name
ENVIRONMENT = re.compile(r"(\\(?:begin|end)\{)(?:aligned|align|alignedat|gathered|gather|equation)\*?(?=\})")


def markdown_tree(text: str) -> list[Node]:
    """Return the elements of a text; what a model thought, and its calls of tools, are folded."""
    nodes, end = list[Node](), 0
    for found in FOLDED.finditer(text):
        nodes += _parts(text[end : found.start()])
        title = FOLDED_TITLES.get(found[1], "Thoughts")
        nodes.append(["details", {}, [["summary", {}, [title]], ["pre", {}, [visible(found[2])]]]])
        end = found.end()
    return nodes + _parts(text[end:])


def _parts(text: str) -> list[Node]:
    """Return the elements of a text without folded parts; blocks of code may have any length."""
    if len(text) <= LONGEST:
        return _between(text)
    nodes, end = list[Node](), 0
    for found in [*FENCED.finditer(text), None]:
        between = text[end : found.start() if found else len(text)]
        nodes += _between(between)
        if found:
            nodes.append(_listing(found[1], found[2]))
            end = found.end()
    return nodes


def _between(text: str) -> list[Node]:
    """Return the elements of a text; as it is, if it is too long, or so deep that parts of it would be left out."""
    tokens = MARKDOWN.parse(text) if len(text) <= LONGEST else []
    is_whole = all(token.level < DEEPEST_READ - 2 for token in tokens) and len(text) <= LONGEST
    return _nodes(tokens) if is_whole else [["p", {}, [visible(text)]]]


def _nodes(tokens: Sequence[Token]) -> list[Node]:
    root = list[Node]()
    stack = [root]
    for token in _flat(tokens):
        here = stack[-1]
        if token.nesting > 0:
            if len(stack) < DEEPEST and not token.hidden and token.tag in (*TAGS, "a"):
                here.append([token.tag, _attributes(token), []])
                here = here[-1][2]  # type: ignore[assignment]
            stack.append(here)
        elif token.nesting < 0:
            stack.pop()
        else:
            here.append(_leaf(token))
    return root


def _flat(tokens: Sequence[Token]) -> Iterator[Token]:
    for token in tokens:
        yield from (token.children or ()) if token.type == "inline" else (token,)


def _attributes(token: Token) -> dict[str, str | int]:
    if token.tag == "a":
        address = str(token.attrGet("href"))
        return {"href": address, "title": address, "target": "_blank", "rel": "noopener noreferrer"}
    if token.tag == "ol" and (start := token.attrGet("start")) is not None:
        return {"start": int(start)}
    return {"class": "number"} if "right" in str(token.attrGet("style")) else {}


def _leaf(token: Token) -> Node:
    match token.type:
        case "softbreak":
            return "\n"
        case "hardbreak" | "hr":
            return [token.tag, {}, []]
        case "fence" | "code_block":
            return _listing(token.info, token.content)
        case "formula":
            return formula(token.content, token.block)
        case "image":
            return ["em", {}, [visible(f"[picture: {token.content or token.attrGet('src')}]")]]
        case "code_inline":
            return ["code", {}, [visible(token.content)]]
    return visible(token.content)


def _listing(language: str, code: str) -> Node:
    return ["listing", {"language": visible(language.strip()[:30])}, [visible(code)]]


@functools.lru_cache(512)  # a text that is being written is shown many times
def formula(source: str, is_block: bool) -> Node:
    """Return LaTeX as MathML; where it cannot be read, as it is written."""
    try:
        if len(source) <= LONGEST_FORMULA:
            known = ENVIRONMENT.sub(r"\1split", source)
            made = latex2mathml.converter.convert_to_element(known, display="block" if is_block else "inline")
            return _math(made, 0)
    except Exception:  # noqa: BLE001  of any kind, as a model may write anything
        pass
    return ["code", {}, [visible(source)]]


def _math(element: Element, depth: int) -> Node:
    tag = element.tag.rpartition("}")[2]
    if tag not in MATH_TAGS or depth > 2 * DEEPEST:
        raise ValueError(tag)
    attributes = {name: value for name, value in element.attrib.items() if name in MATH_ATTRIBUTES}
    text = visible(html.unescape(element.text or ""))
    return [tag, attributes, [*([text] if text else []), *(_math(child, depth + 1) for child in element)]]


def _end_of_formula(source: str, begin: int) -> int:
    """Return where the formula that begins there has its end, or -1."""
    end = ENDS.get(source[begin : begin + 2])
    return source.find(end, begin + 3, begin + LONGEST_FORMULA) if end else -1


def _inline_formula(state: StateInline, silent: bool) -> bool:
    begin, found = state.pos, None
    end = _end_of_formula(state.src, begin)
    if end < 0 and not (found := DOLLARS.match(state.src, begin)):
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.content = (found[1] if found else state.src[begin + 2 : end]).strip()
        token.block = not found and state.src[begin + 1] != "("
    state.pos = found.end() if found else end + 2
    return True


def _block_formula(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    """Take the lines from `$$` or `\\[` to its end: none of them is a heading or an item of a list."""
    begin = state.bMarks[first] + state.tShift[first]
    end = -1 if state.src[begin : begin + 2] == "\\(" else _end_of_formula(state.src, begin)
    number = next((n for n in range(first, last) if state.eMarks[n] > end), last)
    if end < 0 or number == last or state.src[end + 2 : state.eMarks[number]].strip():
        return False
    if not silent:
        token = state.push("formula", "math", 0)
        token.block, token.map = True, [first, number + 1]
        token.content = state.getLines(first, number + 1, state.blkIndent, False).strip()[2:-2].strip()
    state.line = number + 1
    return True


def _is_web_address(address: str) -> bool:
    """Whether a text may link there: not to pages of this machine's own, and to nothing that a browser would run."""
    return address.startswith(("https://", "http://")) and len(address) < 2000


def _markdown() -> MarkdownIt:
    markdown = MarkdownIt("js-default", {"html": False, "maxNesting": DEEPEST_READ})
    markdown.validateLink = _is_web_address  # type: ignore[method-assign, assignment]
    markdown.inline.ruler.before("escape", "formula", _inline_formula)
    markdown.block.ruler.before("fence", "formula", _block_formula, {"alt": ["paragraph", "list", "blockquote"]})
    return markdown


MARKDOWN = _markdown()
