"""The catalogue of a collection: one SQLite file that is the only truth about its documents, passages and words.

The store of vectors may hold more than the catalogue counts, never less; see `PassageIds`. Words are stored without the
texts that they came from, so removing a text takes the same text that was added. An index made by other rules for words
is rebuilt when the catalogue is opened.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from settle.documents.blocks import Chunk, Place, with_headings
from settle.retrieve.index import words as word_rules
from settle.retrieve.index.database import Database, Row, StoredSettings, slices


@dataclass(frozen=True)
class DocumentRecord:
    """A document as it was when it was indexed."""

    path: str
    size: int  # bytes
    changed: int  # the file's modification time in nanoseconds
    sha256: bytes  # of its bytes, empty where they changed while it was read
    title: str = ""
    notes: tuple[str, ...] = ()  # what was left out of it
    error: str = ""  # why nothing could be read


class Passage(NamedTuple):
    """A passage, stored and embedded once however often it occurs."""

    id: int
    text: str
    headings: tuple[str, ...]
    tokens: int  # as the embedder counts them

    @property
    def embedded(self) -> str:
        """The text that the embedder reads."""
        return with_headings(self.headings, self.text)


class DocumentSize(NamedTuple):
    """A document with its number of chunks."""

    id: int
    path: str
    chunks: int


class Occurrence(NamedTuple):
    """One place of a passage: the document, and which of its chunks the passage is."""

    document: int
    path: str
    ordinal: int
    place: Place


@dataclass
class DocumentChange:
    """A document's new state: its record, its chunks in order, and the id of each chunk's passage."""

    record: DocumentRecord
    chunks: Sequence[Chunk] = ()
    ids: list[int] = field(default_factory=list)


def digest(chunk: Chunk) -> bytes:
    """Return the hash of a chunk: two chunks with the same one are the same passage."""
    return hashlib.sha256(json.dumps([chunk.headings, chunk.text]).encode()).digest()


HEADINGS_WEIGHT = 1.0  # of a word in the headings, relative to one in the passage
_TABLES = (
    "DROP TABLE IF EXISTS vocabulary",
    "DROP TABLE IF EXISTS words",
    "DROP TABLE IF EXISTS titles",
    "CREATE VIRTUAL TABLE words USING fts5 (text, headings, content = '', tokenize = \"unicode61 tokenchars '_'\")",
    "CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row')",
    "CREATE VIRTUAL TABLE titles USING fts5 (title, content = '', tokenize = \"unicode61 tokenchars '_'\")",
)
PassageText = tuple[int, str, tuple[str, ...]]  # id, text, headings
DocumentTitle = tuple[int, str, str]  # id, path, title
_RECORDS = "SELECT path, size, changed, sha256, title, notes, error FROM documents"
_PAGE_ROWS = 1000
_VECTOR = np.dtype("<f2")  # half precision: a cosine changes in its fifth digit
_PASSAGES = "SELECT id, text, headings, tokens FROM passages"


class WordIndex:
    """Stems (see `words.py`) of passages and titles in the catalogue's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def frequencies(self, stems: Iterable[str]) -> dict[str, int]:
        """Return the number of passages that each stem occurs in, headings included; others are left out."""
        wanted = sorted(set(stems))
        return dict(self._database.rows_in("SELECT term, doc FROM vocabulary WHERE term IN ({})", wanted))

    def starting_with(self, prefix: str) -> list[str]:
        """Return the stems that begin with `prefix`."""
        end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        rows = self._database.rows("SELECT term FROM vocabulary WHERE term >= ? AND term < ?", prefix, end)
        return [term for (term,) in rows]

    def search(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Return (passage, BM25) of the k passages that match the stems best, the best first."""
        return self._ranked("words", f"bm25(words, 1.0, {HEADINGS_WEIGHT})", stems, k)

    def search_titles(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """Return (document, BM25) of the k documents whose titles and names match the stems best, the best first."""
        return self._ranked("titles", "bm25(titles)", stems, k)

    def _ranked(self, table: str, score: str, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        if not stems:
            return []
        match = " OR ".join(f'"{stem}"' for stem in dict.fromkeys(stems))
        columns = f"rowid, -{score} AS score"
        statement = f"SELECT {columns} FROM {table} WHERE {table} MATCH ? ORDER BY score DESC, rowid LIMIT ?"
        return [(row_id, score) for row_id, score in self._database.rows(statement, match, k)]

    def under_headings(self, stems: Sequence[str], limit: int) -> list[int]:
        """Return the passages that have every one of the stems in their headings."""
        if not stems:
            return []
        match = "headings : (" + " AND ".join(f'"{stem}"' for stem in dict.fromkeys(stems)) + ")"
        rows = self._database.rows("SELECT rowid FROM words WHERE words MATCH ? LIMIT ?", match, limit)
        return [passage for (passage,) in rows]

    # Changes, inside a transaction of the catalogue

    def clear(self) -> None:
        """Create the tables again, empty."""
        self._database.run(*_TABLES)

    def add_passages(self, passages: Iterable[PassageText]) -> None:
        statement = "INSERT INTO words (rowid, text, headings) VALUES (?, ?, ?)"
        self._database.execute_many(statement, map(_passage_row, passages))

    def remove_passages(self, passages: Iterable[PassageText]) -> None:
        statement = "INSERT INTO words (words, rowid, text, headings) VALUES ('delete', ?, ?, ?)"
        self._database.execute_many(statement, map(_passage_row, passages))

    def add_titles(self, documents: Iterable[DocumentTitle]) -> None:
        self._database.execute_many("INSERT INTO titles (rowid, title) VALUES (?, ?)", map(_title_row, documents))

    def remove_titles(self, documents: Iterable[DocumentTitle]) -> None:
        statement = "INSERT INTO titles (titles, rowid, title) VALUES ('delete', ?, ?)"
        self._database.execute_many(statement, map(_title_row, documents))

    def optimize(self) -> None:
        """Merge the index's segments."""
        self._database.run(*(f"INSERT INTO {table} ({table}) VALUES ('optimize')" for table in ("words", "titles")))


def _passage_row(passage: PassageText) -> Row:
    passage_id, text, headings = passage
    return passage_id, " ".join(word_rules.words(text)), " ".join(word_rules.words(" ".join(headings)))


def _title_row(document: DocumentTitle) -> Row:
    """Return a document's id and its stems, each once: a title often repeats the file's name."""
    document_id, path, title = document
    name = Path(path)
    stems = word_rules.words(f"{name.stem} {title if title != name.name else ''}")
    return document_id, " ".join(dict.fromkeys(stems))


class DocumentTable:
    """Records of documents, by path or by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def all(self) -> Iterator[DocumentRecord]:
        """Yield every document, ordered by path."""
        last = ""
        statement = f"{_RECORDS} WHERE path > ? ORDER BY path LIMIT {_PAGE_ROWS}"
        while rows := self._database.rows(statement, last):
            yield from map(_record, rows)
            last = rows[-1][0]

    def at(self, paths: Sequence[str]) -> dict[str, DocumentRecord]:
        """Return the documents at those of the paths that have one."""
        return {row[0]: _record(row) for row in self._database.rows_in(f"{_RECORDS} WHERE path IN ({{}})", paths)}

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return the size in bytes and the modification time in nanoseconds of every document, by path."""
        rows = self._database.rows("SELECT path, size, changed FROM documents")
        return {path: (size, changed) for path, size, changed in rows}

    def failures(self) -> list[tuple[str, str]]:
        """Return (path, why) of the documents that could not be read, ordered by path."""
        rows = self._database.rows("SELECT path, error FROM documents WHERE error != '' ORDER BY path")
        return [(path, error) for path, error in rows]

    def sizes(self) -> list[DocumentSize]:
        """Return every document that has at least one chunk, ordered by id."""
        statement = (
            "SELECT document, path, count(*) FROM chunks JOIN documents ON documents.id = document"
            " GROUP BY document ORDER BY document"
        )
        return [DocumentSize(*row) for row in self._database.rows(statement)]

    def titles(self, paths: Sequence[str] | None = None) -> list[DocumentTitle]:
        """Return (id, path, title) of the documents at some paths, or of all."""
        statement = "SELECT id, path, title FROM documents"
        if paths is None:
            rows = self._database.rows(statement)
        else:
            rows = list(self._database.rows_in(f"{statement} WHERE path IN ({{}})", paths))
        return [(document, path, title) for document, path, title in rows]

    # Changes, inside a transaction of the catalogue

    def insert(self, record: DocumentRecord) -> int:
        """Add a document, and return its id."""
        statement = (
            "INSERT INTO documents (path, size, changed, sha256, title, notes, error) VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        values = {**vars(record), "notes": json.dumps(record.notes)}
        return self._database.insert(statement, *values.values())

    def rename(self, moves: Sequence[tuple[str, DocumentRecord]]) -> None:
        """Store another path, title and stamp of documents: (old path, new record)."""
        statement = "UPDATE documents SET path = ?, size = ?, changed = ?, title = ? WHERE path = ?"
        rows = ((new.path, new.size, new.changed, new.title, old) for old, new in moves)
        self._database.execute_many(statement, rows)

    def touch(self, records: Sequence[DocumentRecord]) -> None:
        """Store another stamp for documents whose content is the same."""
        rows = ((record.size, record.changed, record.path) for record in records)
        self._database.execute_many("UPDATE documents SET size = ?, changed = ? WHERE path = ?", rows)

    def delete(self, ids: Sequence[int]) -> None:
        """Remove documents that have no chunks any more."""
        self._database.execute_many("DELETE FROM documents WHERE id = ?", ((document,) for document in ids))


def _record(row: Row) -> DocumentRecord:
    path, size, changed, sha256, title, notes, error = row
    return DocumentRecord(path, size, changed, sha256, title, tuple(json.loads(notes)), error)


class PassageIds:
    """The ids of passages: never used twice, and loose while only the store of vectors may hold them.

    New vectors are added to the store before the transaction that makes their passages count, and removed ones are
    deleted after the transaction that ends that. In between, their ids are in the table `loose`; a run that dies leaves
    them there, and the next one removes them from the store.
    """

    def __init__(self, database: Database, settings: StoredSettings) -> None:
        self._database, self._settings = database, settings

    @property
    def last(self) -> int:
        """The highest id that was ever reserved."""
        return self._settings.get("next_id", int) or 0

    def reserve(self, count: int) -> list[int]:
        """Reserve ids for new passages, loose until the passages count."""
        with self._database.transaction():
            ids = list(range(self.last + 1, self.last + 1 + count))
            self._settings.set("next_id", ids[-1])
            self.add_loose(ids)
        return ids

    def loose(self) -> list[int]:
        """Return ids that the store may hold and should not."""
        return [passage for (passage,) in self._database.rows("SELECT id FROM loose ORDER BY id")]

    def add_loose(self, ids: Sequence[int]) -> None:
        with self._database.transaction():
            self._database.execute_many("INSERT OR IGNORE INTO loose VALUES (?)", ((i,) for i in ids))

    def clear_loose(self, ids: Sequence[int]) -> None:
        """Record that these ids count now, or that the store no longer holds them."""
        with self._database.transaction():
            self._database.execute_many("DELETE FROM loose WHERE id = ?", ((i,) for i in ids))


class PassageTable:
    """Passages by id. A passage that occurs in several documents is stored once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """Return the ids of those passages that are stored, by digest."""
        return dict(self._database.rows_in("SELECT hash, id FROM passages WHERE hash IN ({})", digests))

    def get(self, ids: Sequence[int]) -> dict[int, Passage]:
        """Return the passages with those of the ids that are stored."""
        rows = self._database.rows_in(f"{_PASSAGES} WHERE id IN ({{}})", ids)
        return {row[0]: _passage(row) for row in rows}

    def page(self, after: int = 0, limit: int = _PAGE_ROWS) -> list[Passage]:
        """Return the next passages after an id, ordered by id."""
        rows = self._database.rows(f"{_PASSAGES} WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        return list(map(_passage, rows))

    def vectors(self, ids: Sequence[int] | None = None) -> dict[int, np.ndarray]:
        """Return the vectors of those of the ids that are stored, or all; float32 (width,), from half precision."""
        every = "SELECT passage, vector FROM vectors"
        rows = list(
            self._database.rows(every)
            if ids is None
            else self._database.rows_in(f"{every} WHERE passage IN ({{}})", ids)
        )
        if not rows:
            return {}
        flat = np.frombuffer(b"".join(vector for _, vector in rows), _VECTOR).astype(np.float32)
        return dict(zip((passage for passage, _ in rows), flat.reshape(len(rows), -1), strict=True))

    def occurrences(self, ids: Sequence[int]) -> dict[int, list[Occurrence]]:
        """Return every place of each passage, ordered by path."""
        statement = (
            "SELECT passage, document, path, ordinal, line, page, part FROM chunks JOIN documents ON"
            " documents.id = document WHERE passage IN ({}) ORDER BY path, ordinal"
        )
        places: dict[int, list[Occurrence]] = {}
        for passage, document, path, ordinal, *place in self._database.rows_in(statement, ids):
            places.setdefault(passage, []).append(Occurrence(document, path, ordinal, Place(*place)))
        return places

    def first_of(self, documents: Sequence[int], count: int) -> list[int]:
        """Return the first `count` passages of each document."""
        statement = f"SELECT passage FROM chunks WHERE document IN ({{}}) AND ordinal < {count}"
        return [passage for (passage,) in self._database.rows_in(statement, documents)]

    def around(self, document: int, first: int, last: int) -> list[tuple[int, int]]:
        """Return (ordinal, passage) of a document's chunks from `first` to `last`."""
        where = "document = ? AND ordinal BETWEEN ? AND ?"
        statement = f"SELECT ordinal, passage FROM chunks WHERE {where} ORDER BY ordinal"
        return [(ordinal, passage) for ordinal, passage in self._database.rows(statement, document, first, last)]

    # Changes, inside a transaction of the catalogue

    def insert(self, chunks: Mapping[int, Chunk], vectors: Mapping[int, np.ndarray]) -> None:
        """Store new passages by id, and vectors, float32 (width,), in half precision."""
        passages = ((i, digest(c), c.text, json.dumps(c.headings), c.tokens) for i, c in chunks.items())
        self._database.execute_many("INSERT INTO passages VALUES (?, ?, ?, ?, ?)", passages)
        halves = ((i, vector.astype(_VECTOR).tobytes()) for i, vector in vectors.items())
        self._database.execute_many("INSERT INTO vectors VALUES (?, ?)", halves)

    def place(self, document: int, chunks: Sequence[Chunk], ids: Sequence[int]) -> None:
        """Store which passages a document's chunks are, in order."""
        rows = (
            (document, ordinal, passage, chunk.place.line, chunk.place.page, chunk.place.part)
            for ordinal, (chunk, passage) in enumerate(zip(chunks, ids, strict=True))
        )
        self._database.execute_many("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)", rows)

    def unplace(self, documents: Sequence[int]) -> set[int]:
        """Remove the chunks of documents, and return the passages that they were."""
        rows = self._database.rows_in("SELECT passage FROM chunks WHERE document IN ({})", documents)
        passages = {passage for (passage,) in rows}
        self._database.execute_many("DELETE FROM chunks WHERE document = ?", ((document,) for document in documents))
        return passages

    def without_place(self, ids: Sequence[int]) -> list[int]:
        """Return those of the passages that are in no document any more."""
        rows = self._database.rows_in("SELECT DISTINCT passage FROM chunks WHERE passage IN ({})", ids)
        return sorted(set(ids) - {passage for (passage,) in rows})

    def delete(self, ids: Sequence[int]) -> None:
        """Remove passages and their vectors."""
        for statement in ("DELETE FROM vectors WHERE passage = ?", "DELETE FROM passages WHERE id = ?"):
            self._database.execute_many(statement, ((passage,) for passage in ids))


def _passage(row: Row) -> Passage:
    passage_id, text, headings, tokens = row
    return Passage(passage_id, text, tuple(json.loads(headings)), tokens)


class Catalogue:
    """The catalogue at a path, made when it is not there. Use it as a context manager.

    See `Database` for who may share it, and what it raises.
    """

    def __init__(self, path: Path) -> None:
        self.database = Database(path)
        self.settings = StoredSettings(self.database)
        self.ids = PassageIds(self.database, self.settings)
        self.documents = DocumentTable(self.database)
        self.passages = PassageTable(self.database)
        self.words = WordIndex(self.database)
        try:
            if self.settings.get("words", str) != word_rules.VERSION:
                self._rebuild_words()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        self.database.close()

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Let everything that is read inside belong to the same completed transaction."""
        return self.database.snapshot()

    def counts(self) -> dict[str, int]:
        """Return the numbers of documents that could be read, of chunks and of passages."""
        failed = "CASE what WHEN 'documents' THEN (SELECT count(*) FROM documents WHERE error != '') ELSE 0 END"
        return dict(self.database.rows(f"SELECT what, number - {failed} FROM counts"))

    def commit(
        self,
        changes: Sequence[DocumentChange],
        vectors: Mapping[int, np.ndarray] | None = None,
        removed: Sequence[str] = (),
    ) -> None:
        """Store changed documents as they are now, and remove those at the paths `removed`, in one transaction.

        vectors: of the passages that are new, float32 (width,).
        """
        with self.database.transaction():
            dropped = self._remove_documents([*(change.record.path for change in changes), *removed])
            self._add_passages(changes, vectors or {})
            for change in changes:
                document = self.documents.insert(change.record)
                self.words.add_titles([(document, change.record.path, change.record.title)])
                self.passages.place(document, change.chunks, change.ids)
            self._remove_passages(self.passages.without_place(sorted(dropped)))

    def move(self, moves: Sequence[tuple[str, DocumentRecord]]) -> None:
        """Store new paths of documents that are otherwise the same: (old path, new record)."""
        with self.database.transaction():
            titles = self.documents.titles([old for old, _ in moves])
            self.words.remove_titles(titles)
            self.documents.rename(moves)
            new_records = dict(moves)
            self.words.add_titles((i, new_records[old].path, new_records[old].title) for i, old, _ in titles)

    def touch(self, records: Sequence[DocumentRecord]) -> None:
        """Store new times of documents that have the same content."""
        with self.database.transaction():
            self.documents.touch(records)

    def compact(self) -> None:
        """Return free room to the disk, and merge the segments of the word index."""
        self.words.optimize()
        self.database.vacuum()

    def _rebuild_words(self) -> None:
        with self.database.transaction():
            self.words.clear()
            self.words.add_titles(self.documents.titles())
            last = 0
            while page := self.passages.page(last):
                self.words.add_passages((p.id, p.text, p.headings) for p in page)
                last = page[-1].id
            self.settings.set("words", word_rules.VERSION)

    def _add_passages(self, changes: Sequence[DocumentChange], vectors: Mapping[int, np.ndarray]) -> None:
        chunks = {i: chunk for change in changes for i, chunk in zip(change.ids, change.chunks, strict=True)}
        stored = self.passages.get(list(chunks))
        new = {i: chunk for i, chunk in chunks.items() if i not in stored}
        self.passages.insert(new, vectors)
        self.words.add_passages((i, chunk.text, chunk.headings) for i, chunk in new.items())
        self.ids.clear_loose(list(new))

    def _remove_documents(self, paths: Sequence[str]) -> set[int]:
        titles = self.documents.titles(list(dict.fromkeys(paths)))
        self.words.remove_titles(titles)
        ids = [document for document, *_ in titles]
        dropped = self.passages.unplace(ids)
        self.documents.delete(ids)
        return dropped

    def _remove_passages(self, ids: Sequence[int]) -> None:
        for some in slices(ids):
            self.words.remove_passages((p.id, p.text, p.headings) for p in self.passages.get(some).values())
        self.passages.delete(ids)
        self.ids.add_loose(ids)
