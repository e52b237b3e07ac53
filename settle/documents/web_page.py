"""The blocks of a web page or of a book's chapter, by lxml."""

import codecs
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from settle.documents.blocks import LEFT_OUT, Block, Note, Place, Unreadable, table
from settle.documents.decode import marked_encoding

if TYPE_CHECKING:
    from lxml.etree import _Element

# elements that are not content; the page's text for training leaves out the same
IGNORED_TAGS = (
    "script", "style", "noscript", "template", "svg", "annotation", "nav", "iframe", "object", "button", "select",
    "textarea", "dialog", "footer",
)  # fmt: skip
_NO_CONTENT = "//*[@hidden or @aria-hidden='true' or @role='navigation' or @role='search' or @role='contentinfo']"
# classes and ids of what surrounds a page's content in the themes of documentation, wikis and blogs
_AROUND = {
    "sidebar-toc", "sphinxsidebar", "sphinxsidebarwrapper", "sidebar-block", "wy-nav-side", "toc-drawer", "navbar",
    "navigation", "breadcrumb", "breadcrumbs", "pagination", "prev-next-area", "footer-relations", "footer",
    "site-footer", "page-footer", "page-nav", "skip-link", "skiplinks", "related-pages", "cookie-banner",
    "mw-navigation", "bottom-of-page", "rst-footer-buttons", "mobile-toggle", "site-header", "left-column",
    "navheader", "navfooter",
}  # fmt: skip
_BLOCKS = {
    "body", "main", "article", "section", "header", "aside", "div", "p", "blockquote", "address", "figure",
    "figcaption", "details", "summary", "form", "fieldset", "center", "hr", "h1", "h2", "h3", "h4", "h5", "h6", "ul",
    "ol", "li", "dl", "dt", "dd", "pre", "table", "caption", "tr", "td", "th",
}  # fmt: skip
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_DEEPEST = 6
_LAYOUT = "boolean(.//table | .//h1 | .//h2 | .//h3 | .//h4 | .//pre | .//ul | .//ol | .//dl)"  # inside a table
_INDEXES = ((20, 0.7), (500, 0.45))  # an index has at least so many links, and they this share of its text
_LINK_MARKS = {"¶", "#", "§", "🔗", "\uf0c1"}  # what a heading's link to itself shows
_DECLARED = re.compile(rb"""<\?xml[^>]*?encoding=["']([\w.:-]+)|<meta[^>]*?charset=["']?\s*([\w.:-]+)""", re.I)
_CLOSED_AT_ONCE = re.compile(rb"<(?!br\b|hr\b|img\b|link\b|meta\b|col\b|wbr\b)([A-Za-z][\w:-]*)((?:\s[^<>]*)?)/>")


def page_blocks(data: bytes, note: Note, chapter: str = "") -> Iterator[Block]:
    """Yield the blocks of a page of HTML or XHTML in any encoding; those of a chapter have its name in their places.

    Raises Unreadable for a page that is only an index; such a chapter has no blocks.
    """
    from lxml import etree

    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
    try:
        root = etree.fromstring(_utf8(data), parser)
    except etree.XMLSyntaxError:  # nothing in it
        return
    if any("Excessive depth" in error.message for error in parser.error_log):
        note("nested too deeply: what comes after that is left out")
    title = " ".join((root.findtext(".//title") or "").split())
    if title and root.find(".//h1") is None:
        yield Block("heading", title, Place(part=chapter), level=1)
    _prune(root)
    if _is_index(root):
        if not chapter:
            raise Unreadable(f"{LEFT_OUT}a page of links to other pages")
        note(f"{chapter} is left out: links to other places")
        return
    mains = root.xpath("//main | //*[@role='main']")
    body = mains[0] if len(mains) == 1 else root.find("body")
    if body is not None:
        yield from _Walk(chapter).blocks(body)


def _is_index(root: "_Element") -> bool:
    """Return whether a page is an index, a table of contents or a list of links: most of its text is links."""
    links = [len(_words(link)) for link in root.iter("a") if link.get("href")]
    body = root.find("body")
    if body is None or len(links) < _INDEXES[0][0]:
        return False
    share = sum(links) / max(1, len(_words(body)))
    return any(len(links) >= least and share >= most for least, most in _INDEXES)


def _utf8(data: bytes) -> bytes:
    """Return the page in UTF-8, with what XHTML closes at once (`<title/>`) as HTML has to have it."""
    declaration = _DECLARED.search(data[:2048])
    declared = (declaration[1] or declaration[2]).decode("ascii").lower() if declaration else "utf-8"
    if declared.startswith("utf-16"):  # it could not have been read here if it were
        declared = "utf-8"
    encoding = marked_encoding(data) or declared
    try:
        codecs.lookup(encoding)
        text = data.decode(encoding)
    except UnicodeDecodeError:
        text = data.decode("cp1252" if encoding == "utf-8" else encoding, "replace")
    except LookupError:
        text = data.decode("utf-8", "replace")
    plain = text.encode("utf-8", "replace")
    is_xhtml = plain.lstrip()[:5] == b"<?xml" or b"www.w3.org/1999/xhtml" in plain[:2048]
    return _CLOSED_AT_ONCE.sub(rb"<\1\2></\1>", plain) if is_xhtml else plain


def _prune(root: "_Element") -> None:
    from lxml import etree

    for element in root.xpath(_NO_CONTENT):
        if element.tag != "body" and element.getparent() is not None:
            element.tag = "nav"
    for element in root.iter("div", "ul", "ol", "p", "aside", "header", "table", "span"):
        if _AROUND.intersection(f"{element.get('class', '')} {element.get('id', '')}".lower().split()):
            element.tag = "nav"
    for link in root.iter("a"):
        if link.get("href", "").startswith("#") and (link.text or "").strip() in _LINK_MARKS:
            link.text = None
    etree.strip_elements(root, "head", *IGNORED_TAGS, with_tail=False)


class _Walk:
    """Goes through a page in its order and ends a block wherever a browser would begin a new line of its own."""

    def __init__(self, chapter: str) -> None:
        self._chapter = chapter
        self._anchor = ""  # the last id that was passed
        self._pieces: list[str] = []
        self._began: tuple[str, int | None] | None = None  # (anchor, line) of the block's first word
        self._heading: int | None = None  # level of the heading that is open
        self._lists: list[int | None] = []  # of each open list, how many items were numbered
        self._marker = ""
        self._terms: list[bool] = []  # of each open list of terms, whether one of them is a heading

    def blocks(self, body: "_Element") -> Iterator[Block]:
        from lxml import etree

        walk = etree.iterwalk(body, events=("start", "end"))
        for event, element in walk:
            tag = element.tag if isinstance(element.tag, str) else ""
            if event == "end":
                if tag in _BLOCKS:
                    yield from self._leave(tag)
                if element is not body:
                    self._add(element.tail, element)
                continue
            if tag in _BLOCKS:
                yield from self._flush()
            whole = tag == "pre" or (tag == "table" and not element.xpath(_LAYOUT))
            self._pass(element)
            if whole:
                yield from self._whole(element)
                walk.skip_subtree()
            else:
                self._enter(tag, element)
                self._add(element.text, element)
                if tag == "br":
                    self._pieces.append("\n")
        yield from self._flush()

    def _pass(self, element: "_Element") -> None:
        anchor = element.get("id") or (element.tag == "a" and element.get("name"))
        if anchor:
            self._anchor = anchor

    def _enter(self, tag: str, element: "_Element") -> None:
        if tag in _HEADINGS:
            self._heading = _HEADINGS[tag]
        elif tag in ("ul", "ol"):
            start = element.get("start", "1")
            self._lists.append(int(start) - 1 if tag == "ol" and start.isdecimal() else 0 if tag == "ol" else None)
        elif tag == "li":
            number = self._lists[-1] if self._lists else None
            if number is not None:
                self._lists[-1] = number + 1
            self._marker = "- " if number is None else f"{number + 1}. "
        elif tag == "dl":
            self._terms.append(False)
        elif tag == "dt" and self._terms and element.xpath("boolean(descendant-or-self::*/@id)"):
            self._terms[-1] = True
            self._heading = self._level

    def _leave(self, tag: str) -> Iterator[Block]:
        yield from self._flush()
        if tag in _HEADINGS or tag == "dt":
            self._heading = None
        elif tag in ("ul", "ol") and self._lists:
            self._lists.pop()
        elif tag == "dl" and self._terms:
            self._terms.pop()

    @property
    def _level(self) -> int:
        """The level of the deepest heading above a block here: terms that can be linked to are headings as well."""
        return _DEEPEST + sum(self._terms)

    def _add(self, text: str | None, element: "_Element") -> None:
        if not text:
            return
        if self._began is None and not text.isspace():
            self._began = self._anchor, element.sourceline
        self._pieces.append(text.replace("\n", " "))

    def _place(self, anchor: str, line: int | None) -> Place:
        if self._chapter:
            return Place(part=f"{self._chapter}#{anchor}" if anchor else self._chapter)
        return Place(part=anchor) if anchor else Place(line=line)

    def _flush(self) -> Iterator[Block]:
        lines = [" ".join(line.split()) for line in "".join(self._pieces).split("\n")]
        text = "\n".join(line for line in lines if line)
        began, self._began = self._began, None
        self._pieces = []
        if not text or began is None:
            return
        anchor, line = began
        if self._heading is not None:
            # an id inside of a heading is the heading's, also behind its words
            yield Block("heading", text, self._place(self._anchor, line), self._heading)
        elif self._lists:
            text = "  " * (len(self._lists) - 1) + (self._marker or "  ") + text
            self._marker = ""
            yield Block("list", text, self._place(anchor, line), self._level)
        else:
            yield Block("text", text, self._place(anchor, line), self._level)

    def _whole(self, element: "_Element") -> Iterator[Block]:
        place = self._place(self._anchor, element.sourceline)
        if element.tag == "pre":
            text = "".join(element.itertext()).strip("\n")
            if text.strip():
                yield Block("code", text, place, self._level)
        else:
            caption = element.find("caption")
            if caption is not None and (text := _words(caption)):
                yield Block("text", text, place, self._level)
            rows = [[_words(cell) for cell in row.iterchildren("td", "th")] for row in element.iter("tr")]
            first = element.find(".//tr")
            headed = first is not None and (first.find("td") is None or first.getparent().tag == "thead")
            if block := table(rows, place, self._level, headed):
                yield block
        for inner in element.iterdescendants():
            self._pass(inner)


def _words(element: "_Element") -> str:
    return " ".join("".join(element.itertext()).split())
