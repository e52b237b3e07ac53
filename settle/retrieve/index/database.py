"""The SQLite file below a catalogue: its tables, its transactions, and its failures as settle's errors."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from settle.base.errors import DataError, ResourceError, RunError, SettleError, disk_is_full

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
    # Every question needs the number of passages, and SQLite would count row by row.
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
_MOST_PARAMETERS = 900  # of one statement
_BUSY_SECONDS = 30.0
_UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
_REBUILD = "delete the collection, and index the documents again"

Value = str | int | float | bytes | None
Row = tuple[Any, ...]  # as SQLite returns it: the columns of the statement
T = TypeVar("T")


class Database:
    """The SQLite file at `path`, made when it is not there; on a disk that cannot be written, it is read.

    Several processes may read while one writes, and see the last completed transaction. Threads may share one object.
    Raises DataError for a file of another version or of another program, ResourceError when the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        self.is_read_only = False
        with self._translated():
            try:
                self._open(str(path))
            except sqlite3.OperationalError as e:
                if _code(e) not in _UNWRITABLE or not path.is_file() or _has_unmerged(path):
                    raise
                self.is_read_only = True
                self._open(f"{path.absolute().as_uri()}?mode=ro&immutable=1")

    def _open(self, where: str) -> None:
        self._connection = sqlite3.connect(
            where, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=self.is_read_only
        )
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if not self.is_read_only:
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._connection.execute("PRAGMA synchronous = FULL")
        if version == 0 and not self.is_read_only:  # the file keeps these two: to set them again would write to it
            self._connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has no effect once there are tables
            self._connection.execute("PRAGMA journal_mode = WAL")
            with self.transaction():
                for statement in (*_TABLES, f"PRAGMA user_version = {_FORMAT}"):
                    self._connection.execute(statement)
        elif version != _FORMAT:
            raise DataError(f"{self.path} was made by another version of settle", _REBUILD)

    def close(self) -> None:
        """Close the file. Calling it twice is harmless."""
        self._connection.close()

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Let everything that is read inside belong to the same completed transaction."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            with self._translated():
                self._connection.execute("BEGIN")
                # the first read decides which transaction is seen
                self._connection.execute("SELECT 1 FROM settings LIMIT 1").fetchone()
            try:
                yield
            finally:
                self._connection.execute("COMMIT")

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Let all changes inside take effect, or none; inside another transaction they are part of that one."""
        with self._lock, self._translated():
            if self._connection.in_transaction:
                yield
                return
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, statement: str, *values: Value) -> list[Row]:
        """Return the rows of a query."""
        with self._lock, self._translated():
            return self._connection.execute(statement, values).fetchall()

    def rows_in(self, statement: str, values: Sequence[Value]) -> Iterator[Row]:
        """Yield the rows of a query with one `IN ({})`, asked for as many values at a time as SQLite takes."""
        for some in slices(values):
            yield from self.rows(statement.format(", ".join("?" * len(some))), *some)

    def insert(self, statement: str, *values: Value) -> int:
        """Insert one row, and return its id."""
        return cast(int, self._connection.execute(statement, values).lastrowid)

    def execute_many(self, statement: str, rows: Iterable[Sequence[Value]]) -> None:
        """Run a change once for each row of values, inside a transaction."""
        self._connection.executemany(statement, rows)

    def run(self, *statements: str) -> None:
        """Run statements without values one after the other."""
        with self._lock, self._translated():
            for statement in statements:
                self._connection.execute(statement).fetchall()

    def vacuum(self) -> None:
        """Return free pages to the disk."""
        with self._lock, self._translated():
            self._connection.executescript("PRAGMA incremental_vacuum")  # `execute` would give back one page
        self.run("PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA optimize")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as e:
            raise _translate(e, self.path) from None


class StoredSettings:
    """Small values that a collection stores with its documents, as JSON under a key.

    Keys in use: made, roots, model, evidence, words, next_id, indexed, unfinished, removed, model_said.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return the value under `key`; None where there is none of that kind."""
        rows = self._database.rows("SELECT value FROM settings WHERE key = ?", key)
        value = json.loads(rows[0][0]) if rows else None
        return value if isinstance(value, kind) else None

    def is_on(self, key: str) -> bool:
        """Return whether `key` is set to true."""
        return self.get(key, bool) or False

    def set(self, key: str, value: object) -> None:
        """Store a value that JSON can hold."""
        with self._database.transaction():
            self._database.insert("INSERT OR REPLACE INTO settings VALUES (?, ?)", key, json.dumps(value))


def slices(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut values into batches that one statement takes."""
    for first in range(0, len(values), _MOST_PARAMETERS):
        yield values[first : first + _MOST_PARAMETERS]


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
    return code & 0xFF  # the other bits only refine it


def _has_unmerged(path: Path) -> bool:
    """Return whether there are transactions in the log that a reader without permission to write cannot merge."""
    try:
        return Path(f"{path}-wal").stat().st_size > 0
    except OSError:
        return False


def _translate(error: sqlite3.Error, path: Path) -> SettleError:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return disk_is_full(path, "and run it again; what was indexed is kept")
    if code == sqlite3.SQLITE_IOERR:
        fix = "check the disk and its free space, then run it again; what was indexed is kept"
        return ResourceError(f"{path} cannot be read or written: {error}", fix)
    if code in _UNWRITABLE:
        return ResourceError(f"cannot write {path}: {error}", "give permission there, or set SETTLE_HOME")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RunError(f"another process has locked {path}", "wait for it, or end it")
    return DataError(f"{path} is damaged, or is no catalogue: {error}", _REBUILD)
