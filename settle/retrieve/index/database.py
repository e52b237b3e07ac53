"""The SQLite file below a catalogue: its tables, its transactions, and its failures in a person's words."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from settle.base.errors import DataError, ResourceError, RunError, SettleError

_FORMAT = 2  # of the tables below
_TABLES = (
    "CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE documents ("
    " id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, size INTEGER NOT NULL, changed INTEGER NOT NULL,"
    " sha256 BLOB NOT NULL, title TEXT NOT NULL, notes TEXT NOT NULL, error TEXT NOT NULL)",
    "CREATE INDEX failures ON documents (path) WHERE error != ''",
    "CREATE TABLE passages ("
    " id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE, text TEXT NOT NULL, headings TEXT NOT NULL,"
    " tokens INTEGER NOT NULL)",
    "CREATE TABLE vectors (passage INTEGER PRIMARY KEY REFERENCES passages (id), vector BLOB NOT NULL)",
    "CREATE TABLE chunks ("
    " document INTEGER NOT NULL REFERENCES documents (id), ordinal INTEGER NOT NULL,"
    " passage INTEGER NOT NULL REFERENCES passages (id), line INTEGER, page INTEGER, part TEXT NOT NULL,"
    " PRIMARY KEY (document, ordinal)) WITHOUT ROWID",
    "CREATE INDEX chunks_passage ON chunks (passage)",
    "CREATE TABLE loose (id INTEGER PRIMARY KEY)",
    # Every question asks how many there are, and SQLite would count row by row.
    "CREATE TABLE counts (what TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",
    *(
        statement
        for table in ("documents", "chunks", "passages")
        for statement in (
            f"INSERT INTO counts VALUES ('{table}', 0)",
            f"CREATE TRIGGER {table}_more AFTER INSERT ON {table} BEGIN"
            f" UPDATE counts SET number = number + 1 WHERE what = '{table}'; END",
            f"CREATE TRIGGER {table}_less AFTER DELETE ON {table} BEGIN"
            f" UPDATE counts SET number = number - 1 WHERE what = '{table}'; END",
        )
    ),
)
_AT_ONCE = 900  # parameters of one statement
_BUSY_SECONDS = 30.0


class Database:
    """The file at `path`, made when it is not there. Several may read while one writes, and see the last transaction
    that was completed. Threads may share one.

    Raises DataError for a file of another version or none of ours, ResourceError when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        with self._failures():
            self._db = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            with self._failures():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def _open(self) -> None:
        self._db.execute("PRAGMA foreign_keys = ON")
        self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # says nothing to a file that has tables already
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with self._writing():
                for statement in _TABLES:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_FORMAT}")
        elif version != _FORMAT:
            fix = "delete the collection, and index the documents again"
            raise DataError(f"{self.path} was made by another version of settle", fix)

    def close(self) -> None:
        """Calling it twice is harmless."""
        self._db.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Everything read inside belongs to the same completed transaction."""
        with self._lock:
            if self._db.in_transaction:
                yield
                return
            with self._failures():
                self._db.execute("BEGIN")
                self._db.execute("SELECT 1 FROM settings LIMIT 1").fetchone()  # it is the first reading that settles it
            try:
                yield
            finally:
                self._db.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """All changes inside count, or none; inside another one they are a part of that."""
        with self._lock, self._failures():
            if self._db.in_transaction:
                yield
                return
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock, self._failures():
            return self._db.execute(statement, values).fetchall()

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise _told(e, self.path) from None


def slices(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """As many values at a time as a statement takes."""
    for first in range(0, len(values), _AT_ONCE):
        yield values[first : first + _AT_ONCE]


def marks(values: Sequence[Any]) -> str:
    """A question mark for each value."""
    return ", ".join("?" * len(values))


def _told(error: sqlite3.Error, path: Path) -> SettleError:
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # the rest of the bits says more of it
    if kind == sqlite3.SQLITE_FULL:
        return ResourceError(f"the disk is full: {path}", "make room, then run it again; what was indexed is kept")
    if kind == sqlite3.SQLITE_IOERR:
        fix = "see that there is room and the disk is well, then run it again; what was indexed is kept"
        return ResourceError(f"{path} cannot be read or written: {error}", fix)
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return ResourceError(f"cannot write {path}: {error}", "give permission there, or set SETTLE_HOME")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunError(f"another process keeps {path} to itself", "wait for it, or end it")
    fix = "delete the collection, and index the documents again"
    return DataError(f"{path} is damaged or no catalogue: {error}", fix)
