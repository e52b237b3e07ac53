"""A passage of a collection, where it lies: the lines of its document around it, or the page of its file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import HTTPException, Query
from fastapi.responses import FileResponse
from nicegui import app

from settle.base.errors import SettleError, UsageError
from settle.documents.blocks import Unreadable
from settle.documents.decode import text_lines
from settle.retrieve.index.catalogue import Catalogue, DocumentRecord, Occurrence, Passage
from settle.retrieve.index.changes import UNSURE
from settle.retrieve.index.collection import CATALOGUE, CollectionFolder, collection_names

AROUND = 12  # lines before and after the passage that are shown
PDF = b"%PDF-"
LONGEST = 1000  # characters of a sentence in an address


class Line(NamedTuple):
    """A line of a document: its number, from 1, and whether it is of the passage."""

    number: int
    text: str
    is_of_passage: bool


@dataclass(frozen=True)
class OpenedPassage:
    """A passage, opened in its document.

    occurrences: every place of the passage; `at`: the one that is shown. lines: of its document; empty where it has no
    lines or has changed since it was indexed, which `note` says.
    """

    passage: Passage
    occurrences: Sequence[Occurrence]
    at: Occurrence
    lines: list[Line] = field(default_factory=list)
    note: str = ""


def passage_link(collection: str, passage: int, number: int = 0, sentence: str = "") -> str:
    """Return the address of a passage's page. number: of the place, where it has several; sentence: that is marked."""
    asked = {"place": number} if number else {}
    query = urlencode(asked | ({"sentence": sentence[:LONGEST]} if sentence else {}))
    return f"/passage/{quote(collection, safe='')}/{passage}" + (f"?{query}" if query else "")


def marked_parts(lines: Sequence[str], sentence: str) -> list[tuple[str, str, str]]:
    """Cut each line of a passage into what is before the sentence, of it, and after it.

    Only letters and digits are compared, so formatting and line breaks do not matter. All of it is marked where the
    passage does not have the sentence.
    """
    letters = [(row, column) for row, line in enumerate(lines) for column, c in enumerate(line) if c.isalnum()]
    wanted = "".join(filter(str.isalnum, sentence))
    start = "".join(lines[row][column] for row, column in letters).find(wanted) if wanted else -1
    if start < 0:
        return [("", line, "") for line in lines]
    places, parts = letters[start : start + len(wanted)], []
    for row, line in enumerate(lines):
        columns = [column for at, column in places if at == row]
        first, last = (columns[0], columns[-1] + 1) if columns else (len(line), len(line))
        while columns and last < len(line) and not line[last].isspace():
            last += 1
        parts.append((line[:first], line[first:last], line[last:]))
    return parts


def page_link(collection: str, passage: int, at: Occurrence) -> str | None:
    """Return the address of a document at its page where a browser can open it; None for others."""
    if at.place.page is None or not at.path.lower().endswith(".pdf"):
        return None
    asked = urlencode({"collection": collection, "passage": passage, "path": at.path})
    return f"/document?{asked}#page={at.place.page}"


def open_passage(collection: str, passage: int, number: int = 0) -> OpenedPassage:
    """Open a passage. Raises UsageError for one that is not in the collection, or no longer."""
    with _catalogue(collection) as catalogue, catalogue.snapshot():
        found, places = catalogue.passages.get([passage]), catalogue.passages.occurrences([passage]).get(passage)
        if not found or not places:
            raise UsageError(f"{collection} has no passage {passage}", "it was changed or deleted since; ask again")
        at = places[min(max(0, number), len(places) - 1)]
        record = catalogue.documents.at([at.path])[at.path]
    lines: list[Line] = []
    note = _changed_since(record)
    if not note and at.place.line is not None:
        try:
            lines = _lines(Path(at.path), at.place.line, found[passage].text)
        except (OSError, Unreadable) as e:
            note = f"Its document cannot be read now: {e}"
    return OpenedPassage(found[passage], places, at, lines, note)


def _lines(path: Path, start: int, text: str) -> list[Line]:
    """Return the lines around a passage.

    The passage ends after as many letters as it has: formatting is not in its text.
    """
    missing, shown, last = _letters(text), list[Line](), start
    for number, line in enumerate(text_lines(path, lambda note: None), 1):
        if number >= start and missing > 0:
            missing, last = missing - _letters(line), number
            shown.append(Line(number, line, True))
        elif number > last + AROUND:
            break
        elif number >= start - AROUND:
            shown.append(Line(number, line, False))
    return shown


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _changed_since(record: DocumentRecord) -> str:
    """Why the document is not the one that was indexed, or ""."""
    try:
        now = Path(record.path).stat()
    except OSError as e:
        return f"Its document cannot be opened now: {e.strerror}. This is the passage as it was indexed."
    if now.st_size != record.size or record.changed not in (UNSURE, now.st_mtime_ns):
        return "Its document has changed since it was indexed. This is the passage as it was."
    return ""


def _catalogue(collection: str) -> Catalogue:
    folder = CollectionFolder(collection).current() if collection in collection_names() else None
    if folder is None:
        raise UsageError(f"there is no collection {collection!r}", "the page Documents lists those there are")
    return Catalogue(folder / CATALOGUE)


@app.get("/document")
def document(collection: str, passage: Annotated[int, Query(ge=0, lt=1 << 63)], path: str) -> FileResponse:
    """Return the file that a passage is from, for the browser's own viewer: only PDF, which runs nothing here."""
    try:
        places = open_passage(collection, passage).occurrences
        if any(at.path == path for at in places):
            with Path(path).open("rb") as file:
                if file.read(len(PDF)) == PDF:
                    return FileResponse(path, media_type="application/pdf", content_disposition_type="inline")
    except (SettleError, OSError):
        pass
    raise HTTPException(404, "there is no such document")
