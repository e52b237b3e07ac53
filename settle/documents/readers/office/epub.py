"""Books in EPUB: their chapters in reading order."""

import posixpath
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

from settle.documents.blocks import Block, Note, Unreadable
from settle.documents.readers import Reader
from settle.documents.readers.office import check_zip
from settle.documents.web_page import page_blocks

if TYPE_CHECKING:
    from lxml.etree import _Element

_CONTAINER = "META-INF/container.xml"
_RIGHTS = "META-INF/rights.xml"  # of Adobe's and Apple's protection
_CHAPTERS = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")


class Epub(Reader):
    """A place is a chapter's file inside the book, with the nearest id: `book.epub#OEBPS/ch3.xhtml#keys`."""

    suffixes: ClassVar[tuple[str, ...]] = (".epub",)
    packages: ClassVar[tuple[str, ...]] = ("lxml",)

    def blocks(self, path: Path, note: Note) -> Iterator[Block]:
        check_zip(path, "book")
        with ZipFile(path) as book:
            if _RIGHTS in book.namelist():
                raise Unreadable("protected by its shop: its text is encrypted")
            for name in _spine(book):
                try:
                    page = book.read(name)
                except (KeyError, BadZipFile):
                    note(f"chapter {name} is missing or damaged")
                    continue
                yield from page_blocks(page, note, chapter=name)


def _spine(book: ZipFile) -> list[str]:
    """Return the names of the chapters' files inside the book. A name leads nowhere else: nothing is ever unpacked."""
    package = _xml(book, _CONTAINER).find(".//{*}rootfile")
    name = package.get("full-path", "") if package is not None else ""
    root = _xml(book, name)
    files = {
        item.get("id"): posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(item.get("href", ""))))
        for item in root.iterfind(".//{*}manifest/{*}item")
        if item.get("media-type") in _CHAPTERS
    }
    return [files[id] for item in root.iterfind(".//{*}spine/{*}itemref") if (id := item.get("idref")) in files]


def _xml(book: ZipFile, name: str) -> "_Element":
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(book.read(name), parser)
    except (KeyError, BadZipFile, etree.XMLSyntaxError):
        raise Unreadable(f"a damaged book: its {name or 'list of chapters'} cannot be read") from None
