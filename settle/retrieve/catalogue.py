"""What a collection holds: documents, their passages and where those stand, and the words of lexical search.

One SQLite file is the only truth. The store of vectors may hold more than counts, never less: new vectors are kept
before the transaction that makes them count, and forgotten ones are removed after the transaction that made them not
count. Between the two, their ids stand in the table `loose`; a run that died leaves them there, and the next one
removes them. Ids are never used twice.
"""

import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from settle.base.errors import DataError, ResourceError
from settle.retrieve import words as lexical
from settle.retrieve.document import Chunk, Place, with_headings

_SCHEMA = """
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, root TEXT NOT NULL, size INTEGER NOT NULL,
    changed INTEGER NOT NULL, sha256 BLOB NOT NULL, title TEXT NOT NULL, notes TEXT NOT NULL,
    error TEXT NOT NULL, indexed REAL NOT NULL
);
CREATE INDEX documents_sha256 ON documents (sha256);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, text TEXT NOT NULL, headings TEXT NOT NULL,
    tokens INTEGER NOT NULL
);
CREATE TABLE chunks (
    document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE, ordinal INTEGER NOT NULL,
    passage INTEGER NOT NULL REFERENCES passages (id), line INTEGER, page INTEGER, part TEXT NOT NULL,
    PRIMARY KEY (document, ordinal)
) WITHOUT ROWID;
CREATE INDEX chunks_passage ON chunks (passage);
CREATE TABLE loose (id INTEGER PRIMARY KEY);
CREATE VIRTUAL TABLE words USING fts5 (text, headings, content = '', tokenize = "unicode61 tokenchars '_'");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row');
"""
_FORMAT = 1  # of the tables above
_AT_ONCE = 900  # parameters of one statement
_BUSY_SECONDS = 30.0
HEADINGS_WEIGHT = 1.0  # of a word in the headings against one in the passage


@dataclass(frozen=True)
class Known:
    """A document as it was when it was indexed. size: bytes; changed: the file's time in nanoseconds; notes: what was
    left out of it; error: why nothing could be read, or ""."""

    path: str
    root: str
    size: int
    changed: int
    sha256: bytes
    title: str = ""
    notes: tuple[str, ...] = ()
    error: str = ""


class Passage(NamedTuple):
    id: int
    text: str
    headings: tuple[str, ...]
    tokens: int

    @property
    def embedded(self) -> str:
        return with_headings(self.headings, self.text)


class Standing(NamedTuple):
    """Where a passage stands: the document's path, and which of its chunks it is."""

    document: int
    path: str
    ordinal: int
    place: Place


@dataclass
class Change:
    """A document's new state: what is known of it, its chunks in order, and the id of each one's passage."""

    known: Known
    chunks: Sequence[Chunk] = ()
    ids: list[int] = field(default_factory=list)


def digest(chunk: Chunk) -> bytes:
    """Two chunks with the same one are the same passage."""
    return hashlib.sha256(json.dumps([chunk.headings, chunk.text]).encode()).digest()


class Catalogue:
    """The catalogue at `path`; made when it is not there. Several may read while one writes, and see the last
    transaction that was completed. Threads may share one.

    Raises DataError for a file that is no catalogue of this version, ResourceError when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        new = not path.exists()
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA foreign_keys = ON")
            if new:
                self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                with self._writing():
                    for statement in _SCHEMA.split(";\n"):
                        self._db.execute(statement)
                    self._db.execute(f"PRAGMA user_version = {_FORMAT}")
            elif version != _FORMAT:
                raise DataError(f"{path} was made by another version of settle", "index the documents anew")
        except sqlite3.DatabaseError as e:
            self._db.close()
            raise _told(e, path) from None

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "Catalogue":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs to the same completed transaction."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            self._db.execute("BEGIN")
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException as e:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(e, sqlite3.Error):
                    raise _told(e, self.path) from None
                raise

    # What is kept beside the documents

    def setting(self, key: str) -> Any:
        """What was kept under `key`, or None."""
        found = self._rows("SELECT value FROM settings WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def keep_setting(self, key: str, value: Any) -> None:
        with self._writing():
            self._db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (key, json.dumps(value)))

    # Documents

    def known(self) -> Iterator[Known]:
        """Every document, by path."""
        with self._lock:
            cursor = self._db.execute(
                "SELECT path, root, size, changed, sha256, title, notes, error FROM documents ORDER BY path"
            )
        for path, root, size, changed, sha256, title, notes, error in cursor:
            yield Known(path, root, size, changed, sha256, title, tuple(json.loads(notes)), error)

    def counts(self) -> dict[str, int]:
        """How many documents, chunks and passages there are."""
        tables = ("documents", "chunks", "passages")
        return {table: self._rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    # Passages

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The ids of those passages that are there."""
        found: dict[bytes, int] = {}
        for some in _slices(digests):
            found |= dict(self._rows(f"SELECT hash, id FROM passages WHERE hash IN ({_marks(some)})", *some))
        return found

    def passages(self, ids: Sequence[int]) -> dict[int, Passage]:
        """Those of the ids that count."""
        found = {}
        for some in _slices(ids):
            statement = f"SELECT id, text, headings, tokens FROM passages WHERE id IN ({_marks(some)})"
            for id, text, headings, tokens in self._rows(statement, *some):
                found[id] = Passage(id, text, tuple(json.loads(headings)), tokens)
        return found

    def standings(self, ids: Sequence[int]) -> dict[int, list[Standing]]:
        """Where passages stand, all places of each."""
        found: dict[int, list[Standing]] = {}
        for some in _slices(ids):
            statement = (
                "SELECT passage, document, path, ordinal, line, page, part FROM chunks JOIN documents ON"
                f" documents.id = document WHERE passage IN ({_marks(some)}) ORDER BY path, ordinal"
            )
            for passage, document, path, ordinal, *place in self._rows(statement, *some):
                found.setdefault(passage, []).append(Standing(document, path, ordinal, Place(*place)))
        return found

    def around(self, document: int, first: int, last: int) -> list[tuple[int, int]]:
        """(ordinal, passage) of a document's chunks from `first` to `last`."""
        statement = (
            "SELECT ordinal, passage FROM chunks WHERE document = ? AND ordinal BETWEEN ? AND ? ORDER BY ordinal"
        )
        return self._rows(statement, document, first, last)

    def all_passages(self, after: int = 0, limit: int = 1000) -> list[Passage]:
        """Passages in the order of their ids, so many after one."""
        statement = "SELECT id, text, headings, tokens FROM passages WHERE id > ? ORDER BY id LIMIT ?"
        return [Passage(i, text, tuple(json.loads(h)), n) for i, text, h, n in self._rows(statement, after, limit)]

    # Words

    def frequencies(self, stems: Iterable[str]) -> dict[str, int]:
        """In how many passages, or their headings, each word stands; those that stand nowhere are not in it."""
        found: dict[str, int] = {}
        for some in _slices(sorted(set(stems))):
            found |= dict(self._rows(f"SELECT term, doc FROM vocabulary WHERE term IN ({_marks(some)})", *some))
        return found

    def search_words(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(passage, BM25) of the k passages that have most of the words, the best first."""
        if not stems:
            return []
        match = " OR ".join(f'"{stem}"' for stem in dict.fromkeys(stems))
        statement = (
            f"SELECT rowid, -bm25(words, 1.0, {HEADINGS_WEIGHT}) AS score FROM words WHERE words MATCH ?"
            " ORDER BY score DESC, rowid LIMIT ?"
        )
        return self._rows(statement, match, k)

    # Changes

    def reserve(self, count: int) -> list[int]:
        """Ids for new passages, loose until `commit` makes them count."""
        with self._writing():
            first = (self.setting("next_id") or 0) + 1
            ids = list(range(first, first + count))
            self._db.execute("INSERT OR REPLACE INTO settings VALUES ('next_id', ?)", (json.dumps(ids[-1]),))
            self._db.executemany("INSERT INTO loose VALUES (?)", ((i,) for i in ids))
        return ids

    def commit(self, changes: Sequence[Change], removed: Sequence[str] = ()) -> None:
        """Makes changed documents count as they are now, and those at the paths `removed` no longer, all in one."""
        with self._writing():
            dropped = self._forget([*(change.known.path for change in changes), *removed])
            for change in changes:
                self._put(change)
            self._drop_orphans(dropped)

    def move(self, moves: Sequence[tuple[str, Known]]) -> None:
        """Documents whose file has another path now, and nothing else that is new."""
        with self._writing():
            for old, new in moves:
                self._db.execute("DELETE FROM documents WHERE path = ?", (new.path,))
                self._db.execute(
                    "UPDATE documents SET path = ?, root = ?, size = ?, changed = ? WHERE path = ?",
                    (new.path, new.root, new.size, new.changed, old),
                )

    def touch(self, known: Sequence[Known]) -> None:
        """Documents whose file has another time now, and the same content."""
        with self._writing():
            self._db.executemany(
                "UPDATE documents SET size = ?, changed = ?, root = ? WHERE path = ?",
                ((k.size, k.changed, k.root, k.path) for k in known),
            )

    def loose(self) -> list[int]:
        """Ids that the store may hold and should not."""
        return [i for (i,) in self._rows("SELECT id FROM loose ORDER BY id")]

    def tighten(self, ids: Sequence[int]) -> None:
        """The store holds these no more."""
        with self._writing():
            self._db.executemany("DELETE FROM loose WHERE id = ?", ((i,) for i in ids))

    def compact(self) -> None:
        """Gives the disk back what is free, and orders the words anew where they are in many pieces."""
        with self._lock:
            try:
                self._db.execute("INSERT INTO words (words) VALUES ('optimize')")
                self._db.execute("PRAGMA incremental_vacuum").fetchall()
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._db.execute("PRAGMA optimize")
            except sqlite3.Error as e:
                raise _told(e, self.path) from None

    def _put(self, change: Change) -> None:
        k = change.known
        (document,) = self._db.execute(
            "INSERT INTO documents (path, root, size, changed, sha256, title, notes, error, indexed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (k.path, k.root, k.size, k.changed, k.sha256, k.title, json.dumps(k.notes), k.error, time.time()),
        ).fetchone()
        for ordinal, (chunk, id) in enumerate(zip(change.chunks, change.ids, strict=True)):
            new = self._db.execute(
                "INSERT OR IGNORE INTO passages VALUES (?, ?, ?, ?, ?)",
                (id, digest(chunk), chunk.text, json.dumps(chunk.headings), chunk.tokens),
            ).rowcount
            if new > 0:
                self._db.execute("DELETE FROM loose WHERE id = ?", (id,))
                self._db.execute(
                    "INSERT INTO words (rowid, text, headings) VALUES (?, ?, ?)",
                    (id, *_columns(chunk.text, chunk.headings)),
                )
            place = chunk.place
            self._db.execute(
                "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
                (document, ordinal, id, place.line, place.page, place.part),
            )

    def _forget(self, paths: Sequence[str]) -> set[int]:
        """Removes documents; the passages that they had."""
        dropped: set[int] = set()
        for path in paths:
            for (document,) in self._db.execute("SELECT id FROM documents WHERE path = ?", (path,)).fetchall():
                dropped.update(
                    p for (p,) in self._db.execute("SELECT passage FROM chunks WHERE document = ?", (document,))
                )
                self._db.execute("DELETE FROM chunks WHERE document = ?", (document,))
                self._db.execute("DELETE FROM documents WHERE id = ?", (document,))
        return dropped

    def _drop_orphans(self, ids: set[int]) -> None:
        """Removes those passages that stand nowhere any more."""
        for id in sorted(ids):
            if self._db.execute("SELECT 1 FROM chunks WHERE passage = ? LIMIT 1", (id,)).fetchone():
                continue
            text, headings = self._db.execute("SELECT text, headings FROM passages WHERE id = ?", (id,)).fetchone()
            # A table of words without its texts has to be told what it forgets.
            self._db.execute(
                "INSERT INTO words (words, rowid, text, headings) VALUES ('delete', ?, ?, ?)",
                (id, *_columns(text, tuple(json.loads(headings)))),
            )
            self._db.execute("DELETE FROM passages WHERE id = ?", (id,))
            self._db.execute("INSERT OR IGNORE INTO loose VALUES (?)", (id,))

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(statement, values).fetchall()
            except sqlite3.DatabaseError as e:
                raise _told(e, self.path) from None


def _columns(text: str, headings: tuple[str, ...]) -> tuple[str, str]:
    return " ".join(lexical.words(text)), " ".join(lexical.words(" ".join(headings)))


def _slices(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for first in range(0, len(values), _AT_ONCE):
        yield values[first : first + _AT_ONCE]


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _told(error: sqlite3.Error, path: Path) -> DataError | ResourceError:
    if "full" in str(error):
        return ResourceError(f"the disk is full: {path}", "make room; what was indexed is kept")
    if "readonly" in str(error) or "unable to open" in str(error):
        return ResourceError(f"cannot write {path}: {error}", "give permission there, or set SETTLE_HOME")
    return DataError(f"{path} is damaged or no catalogue: {error}", "remove the collection and index it anew")
