"""The documents of a catalogue."""

import json
from collections.abc import Iterator, Sequence

from settle.retrieve.index.catalogue.database import Database, Row
from settle.retrieve.index.catalogue.records import DocumentRecord, DocumentSize
from settle.retrieve.index.catalogue.word_index import DocumentTitle

_PAGE_ROWS = 1000  # that are held at a time
_RECORDS = "SELECT path, size, changed, sha256, title, notes, error FROM documents"


class DocumentTable:
    """Records of documents, by path or by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Iterator[DocumentRecord]:
        """Every document, ordered by path."""
        last = ""
        statement = f"{_RECORDS} WHERE path > ? ORDER BY path LIMIT {_PAGE_ROWS}"
        while rows := self._database.rows(statement, last):
            yield from map(_record, rows)
            last = rows[-1][0]

    def at(self, paths: Sequence[str]) -> dict[str, DocumentRecord]:
        """The documents at those of the paths that have one."""
        return {row[0]: _record(row) for row in self._database.rows_in(f"{_RECORDS} WHERE path IN ({{}})", paths)}

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and modification time in nanoseconds of every document, by path."""
        rows = self._database.rows("SELECT path, size, changed FROM documents")
        return {path: (size, changed) for path, size, changed in rows}

    def failures(self) -> list[tuple[str, str]]:
        """(path, why) of the documents that nothing could be read of, ordered by path."""
        rows = self._database.rows("SELECT path, error FROM documents WHERE error != '' ORDER BY path")
        return [(path, error) for path, error in rows]

    def sizes(self) -> list[DocumentSize]:
        """Every document that has at least one chunk, ordered by id."""
        statement = (
            "SELECT document, path, count(*) FROM chunks JOIN documents ON documents.id = document"
            " GROUP BY document ORDER BY document"
        )
        return [DocumentSize(*row) for row in self._database.rows(statement)]

    def titles(self, paths: Sequence[str] | None = None) -> list[DocumentTitle]:
        """(id, path, title) of the documents at some paths, or of all."""
        statement = "SELECT id, path, title FROM documents"
        if paths is None:
            rows = self._database.rows(statement)
        else:
            rows = list(self._database.rows_in(f"{statement} WHERE path IN ({{}})", paths))
        return [(document, path, title) for document, path, title in rows]

    # Changes, inside a transaction of the catalogue

    def insert(self, record: DocumentRecord) -> int:
        """Adds a document; its id."""
        return self._database.insert(
            "INSERT INTO documents (path, size, changed, sha256, title, notes, error) VALUES (?, ?, ?, ?, ?, ?, ?)",
            record.path,
            record.size,
            record.changed,
            record.sha256,
            record.title,
            json.dumps(record.notes),
            record.error,
        )

    def rename(self, moves: Sequence[tuple[str, DocumentRecord]]) -> None:
        """Gives documents another path, title and stamp: (old path, new record)."""
        self._database.execute_many(
            "UPDATE documents SET path = ?, size = ?, changed = ?, title = ? WHERE path = ?",
            ((new.path, new.size, new.changed, new.title, old) for old, new in moves),
        )

    def touch(self, records: Sequence[DocumentRecord]) -> None:
        """Stores another stamp for documents whose content is the same."""
        self._database.execute_many(
            "UPDATE documents SET size = ?, changed = ? WHERE path = ?",
            ((record.size, record.changed, record.path) for record in records),
        )

    def delete(self, ids: Sequence[int]) -> None:
        """Removes documents that have no chunks any more."""
        self._database.execute_many("DELETE FROM documents WHERE id = ?", ((document,) for document in ids))


def _record(row: Row) -> DocumentRecord:
    path, size, changed, sha256, title, notes, error = row
    return DocumentRecord(path, size, changed, sha256, title, tuple(json.loads(notes)), error)
