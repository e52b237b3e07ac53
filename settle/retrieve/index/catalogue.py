"""What a collection holds: documents, their passages with their places and vectors, and the words of lexical search.

One SQLite file is the only truth. The store that finds near vectors may hold more than counts, never less: new vectors
are added before the transaction that makes them count, and forgotten ones are removed after the one that ends that.
Between the two, their ids stand in the table `loose`; a run that died leaves them there, and the next one removes them.
Ids are never used twice.

The words are kept without the texts that they were made of, so what is forgotten has to be told as it was put there: an
index made by other rules for words is made again when it is opened.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from settle.documents.blocks import Chunk, Place, with_headings
from settle.retrieve.index import words as lexical
from settle.retrieve.index.database import Database, marks, slices

HEADINGS_WEIGHT = 1.0  # of a word in the headings against one in the passage
_PAGE = 1000  # rows that are held at a time
_KEPT = np.dtype("<f2")  # of vectors: their cosines change in the fifth digit
_WORDS = (
    "DROP TABLE IF EXISTS vocabulary",
    "DROP TABLE IF EXISTS words",
    "DROP TABLE IF EXISTS titles",
    "CREATE VIRTUAL TABLE words USING fts5 (text, headings, content = '', tokenize = \"unicode61 tokenchars '_'\")",
    "CREATE VIRTUAL TABLE vocabulary USING fts5vocab (words, 'row')",
    "CREATE VIRTUAL TABLE titles USING fts5 (title, content = '', tokenize = \"unicode61 tokenchars '_'\")",
)
_KNOWN = "SELECT path, size, changed, sha256, title, notes, error FROM documents"
_STANDING = "SELECT DISTINCT passage FROM chunks WHERE passage IN ({})"
_PASSAGES = "SELECT id, text, headings, tokens FROM passages"


@dataclass(frozen=True)
class Known:
    """A document as it was when it was indexed. size: bytes; changed: the file's time in nanoseconds; sha256: of its
    bytes, empty where they changed while it was read; notes: what was left out of it; error: why nothing could be read,
    or "".
    """

    path: str
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


class Size(NamedTuple):
    """A document with how many chunks it has."""

    id: int
    path: str
    chunks: int


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


class Catalogue(Database):
    """The catalogue at a path; made when it is not there. See `Database` for who may share it, and what it raises."""

    def _open(self) -> None:
        super()._open()
        if self.setting("words") != lexical.VERSION:
            self._make_words()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        last = ""
        while rows := self._rows(f"{_KNOWN} WHERE path > ? ORDER BY path LIMIT {_PAGE}", last):
            yield from map(_as_known, rows)
            last = rows[-1][0]

    def known_at(self, paths: Sequence[str]) -> dict[str, Known]:
        """The documents at those of the paths that are known."""
        found = (r for some in slices(paths) for r in self._rows(f"{_KNOWN} WHERE path IN ({marks(some)})", *some))
        return {row[0]: _as_known(row) for row in found}

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and time in nanoseconds of every document, by path."""
        return {p: (size, changed) for p, size, changed in self._rows("SELECT path, size, changed FROM documents")}

    def failures(self) -> list[tuple[str, str]]:
        """(path, why) of the documents that nothing could be read of, by path."""
        return self._rows("SELECT path, error FROM documents WHERE error != '' ORDER BY path")

    def counts(self) -> dict[str, int]:
        """How many documents, chunks and passages there are."""
        return dict(self._rows("SELECT what, number FROM counts"))

    def sizes(self) -> list[Size]:
        """Every document that has any chunk, by id."""
        statement = (
            "SELECT document, path, count(*) FROM chunks JOIN documents ON documents.id = document"
            " GROUP BY document ORDER BY document"
        )
        return [Size(*row) for row in self._rows(statement)]

    # Passages

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The ids of those passages that are there."""
        found: dict[bytes, int] = {}
        for some in slices(digests):
            found |= dict(self._rows(f"SELECT hash, id FROM passages WHERE hash IN ({marks(some)})", *some))
        return found

    def passages(self, ids: Sequence[int]) -> dict[int, Passage]:
        """Those of the ids that count."""
        found = {}
        for some in slices(ids):
            for row in self._rows(f"{_PASSAGES} WHERE id IN ({marks(some)})", *some):
                found[row[0]] = _as_passage(row)
        return found

    def vectors(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of those of the ids that count, float32 (width,), kept in half as many bits."""
        found: dict[int, np.ndarray] = {}
        for some in slices(ids):
            statement = f"SELECT passage, vector FROM vectors WHERE passage IN ({marks(some)})"
            rows = self._rows(statement, *some)
            kept = np.frombuffer(b"".join(vector for _, vector in rows), _KEPT).astype(np.float32)
            found |= zip((id for id, _ in rows), kept.reshape(len(rows), -1), strict=True) if rows else {}
        return found

    def standings(self, ids: Sequence[int]) -> dict[int, list[Standing]]:
        """Where passages stand, all places of each."""
        found: dict[int, list[Standing]] = {}
        for some in slices(ids):
            statement = (
                "SELECT passage, document, path, ordinal, line, page, part FROM chunks JOIN documents ON"
                f" documents.id = document WHERE passage IN ({marks(some)}) ORDER BY path, ordinal"
            )
            for passage, document, path, ordinal, *place in self._rows(statement, *some):
                found.setdefault(passage, []).append(Standing(document, path, ordinal, Place(*place)))
        return found

    def beginnings(self, documents: Sequence[int], number: int) -> list[int]:
        """The first passages of some documents."""
        statement = "SELECT passage FROM chunks WHERE document IN ({}) AND ordinal < {}"
        return [i for some in slices(documents) for (i,) in self._rows(statement.format(marks(some), number), *some)]

    def around(self, document: int, first: int, last: int) -> list[tuple[int, int]]:
        """(ordinal, passage) of a document's chunks from `first` to `last`."""
        statement = (
            "SELECT ordinal, passage FROM chunks WHERE document = ? AND ordinal BETWEEN ? AND ? ORDER BY ordinal"
        )
        return self._rows(statement, document, first, last)

    def all_passages(self, after: int = 0, limit: int = _PAGE) -> list[Passage]:
        """Passages in the order of their ids, so many after one."""
        return [_as_passage(row) for row in self._rows(f"{_PASSAGES} WHERE id > ? ORDER BY id LIMIT ?", after, limit)]

    # Words

    def frequencies(self, stems: Iterable[str]) -> dict[str, int]:
        """In how many passages, or their headings, each word stands; those that stand nowhere are not in it."""
        found: dict[str, int] = {}
        for some in slices(sorted(set(stems))):
            found |= dict(self._rows(f"SELECT term, doc FROM vocabulary WHERE term IN ({marks(some)})", *some))
        return found

    def vocabulary(self, beginning: str) -> list[str]:
        """The words that begin so."""
        last = beginning[:-1] + chr(ord(beginning[-1]) + 1)
        return [
            term for (term,) in self._rows("SELECT term FROM vocabulary WHERE term >= ? AND term < ?", beginning, last)
        ]

    def search_words(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(passage, BM25) of the k passages that have most of the words, the best first."""
        return self._matching("words", f"bm25(words, 1.0, {HEADINGS_WEIGHT})", stems, k)

    def search_titles(self, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        """(document, BM25) of the k documents whose title and file's name have most of the words, the best first."""
        return self._matching("titles", "bm25(titles)", stems, k)

    def _matching(self, table: str, score: str, stems: Sequence[str], k: int) -> list[tuple[int, float]]:
        if not stems:
            return []
        match = " OR ".join(f'"{stem}"' for stem in dict.fromkeys(stems))
        statement = (
            f"SELECT rowid, -{score} AS score FROM {table} WHERE {table} MATCH ? ORDER BY score DESC, rowid LIMIT ?"
        )
        return self._rows(statement, match, k)

    def headed(self, stems: Sequence[str], limit: int) -> list[int]:
        """Passages that have every one of the words in their headings."""
        if not stems:
            return []
        match = "headings : (" + " AND ".join(f'"{stem}"' for stem in dict.fromkeys(stems)) + ")"
        return [i for (i,) in self._rows("SELECT rowid FROM words WHERE words MATCH ? LIMIT ?", match, limit)]

    def _make_words(self) -> None:
        with self._writing():
            for statement in _WORDS:
                self._db.execute(statement)
            self._tell_titles(self._rows("SELECT id, path, title FROM documents"))
            last = 0
            while page := self.all_passages(last):
                self._tell_words((p.id, p.text, p.headings) for p in page)
                last = page[-1].id
            self.keep_setting("words", lexical.VERSION)

    def _tell_words(self, passages: Iterable[tuple[int, str, tuple[str, ...]]], forget: bool = False) -> None:
        """The index takes up (id, text, headings), or forgets them."""
        columns, values = ("words, ", "'delete', ") if forget else ("", "")
        self._db.executemany(
            f"INSERT INTO words ({columns}rowid, text, headings) VALUES ({values}?, ?, ?)",
            (
                (id, " ".join(lexical.words(text)), " ".join(lexical.words(" ".join(headings))))
                for id, text, headings in passages
            ),
        )

    def _tell_titles(self, documents: Iterable[tuple[int, str, str]], forget: bool = False) -> None:
        """The index takes up (id, path, title), or forgets them."""
        columns, values = ("titles, ", "'delete', ") if forget else ("", "")
        self._db.executemany(
            f"INSERT INTO titles ({columns}rowid, title) VALUES ({values}?, ?)",
            ((id, " ".join(_title_words(path, title))) for id, path, title in documents),
        )

    # Changes

    def reserve(self, count: int) -> list[int]:
        """Ids for new passages, loose until `commit` makes them count."""
        with self._writing():
            first = (self.setting("next_id") or 0) + 1
            ids = list(range(first, first + count))
            self.keep_setting("next_id", ids[-1])
            self._db.executemany("INSERT INTO loose VALUES (?)", ((i,) for i in ids))
        return ids

    def commit(
        self, changes: Sequence[Change], vectors: Mapping[int, np.ndarray] | None = None, removed: Sequence[str] = ()
    ) -> None:
        """Makes changed documents count as they are now, and those at the paths `removed` no longer, all in one.
        vectors: of the passages that are new, float32 (width,)."""
        with self._writing():
            dropped = self._forget([*(change.known.path for change in changes), *removed])
            self._put_passages({i: chunk for c in changes for i, chunk in zip(c.ids, c.chunks, strict=True)})
            for change in changes:
                self._put(change)
            self._db.executemany(
                "INSERT INTO vectors VALUES (?, ?)",
                ((id, vector.astype(_KEPT).tobytes()) for id, vector in (vectors or {}).items()),
            )
            self._drop_orphans(dropped)

    def move(self, moves: Sequence[tuple[str, Known]]) -> None:
        """Documents whose file has another path now, and nothing else that is new: (old path, as it is now)."""
        with self._writing():
            found = {old: self._rows("SELECT id, path, title FROM documents WHERE path = ?", old) for old, _ in moves}
            self._tell_titles((row for rows in found.values() for row in rows), forget=True)
            self._db.executemany(
                "UPDATE documents SET path = ?, size = ?, changed = ?, title = ? WHERE path = ?",
                ((now.path, now.size, now.changed, now.title, old) for old, now in moves),
            )
            self._tell_titles((id, now.path, now.title) for old, now in moves for id, *_ in found[old])

    def touch(self, known: Sequence[Known]) -> None:
        """Documents whose file has another time now, and the same content."""
        with self._writing():
            self._db.executemany(
                "UPDATE documents SET size = ?, changed = ? WHERE path = ?",
                ((k.size, k.changed, k.path) for k in known),
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
        with self._lock, self._failures():
            for table in ("words", "titles"):
                self._db.execute(f"INSERT INTO {table} ({table}) VALUES ('optimize')")
            self._db.executescript("PRAGMA incremental_vacuum")  # `execute` would give back a page
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._db.execute("PRAGMA optimize").fetchall()

    def _put_passages(self, chunks: Mapping[int, Chunk]) -> None:
        """Those that are not there yet, by id."""
        there = self.passages(list(chunks))
        new = {id: chunk for id, chunk in chunks.items() if id not in there}
        self._db.executemany(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
            ((i, digest(c), c.text, json.dumps(c.headings), c.tokens) for i, c in new.items()),
        )
        self._tell_words((i, c.text, c.headings) for i, c in new.items())
        self._db.executemany("DELETE FROM loose WHERE id = ?", ((i,) for i in new))

    def _put(self, change: Change) -> None:
        k = change.known
        document = self._db.execute(
            "INSERT INTO documents (path, size, changed, sha256, title, notes, error) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (k.path, k.size, k.changed, k.sha256, k.title, json.dumps(k.notes), k.error),
        ).lastrowid
        assert document is not None
        self._tell_titles([(document, k.path, k.title)])
        self._db.executemany(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
            (
                (document, ordinal, id, chunk.place.line, chunk.place.page, chunk.place.part)
                for ordinal, (chunk, id) in enumerate(zip(change.chunks, change.ids, strict=True))
            ),
        )

    def _forget(self, paths: Sequence[str]) -> set[int]:
        """Removes documents; the passages that they had."""
        dropped: set[int] = set()
        for path in paths:
            found = self._rows("SELECT id, path, title FROM documents WHERE path = ?", path)  # at most one
            self._tell_titles(found, forget=True)
            for document, *_ in found:
                dropped.update(p for (p,) in self._rows("SELECT passage FROM chunks WHERE document = ?", document))
                self._db.execute("DELETE FROM chunks WHERE document = ?", (document,))
                self._db.execute("DELETE FROM documents WHERE id = ?", (document,))
        return dropped

    def _drop_orphans(self, ids: set[int]) -> None:
        """Removes those passages that stand nowhere any more."""
        standing = (r for some in slices(sorted(ids)) for r in self._rows(_STANDING.format(marks(some)), *some))
        orphans = sorted(ids - {i for (i,) in standing})
        for some in slices(orphans):
            self._tell_words(((p.id, p.text, p.headings) for p in self.passages(some).values()), forget=True)
        for statement in (
            "DELETE FROM vectors WHERE passage = ?",
            "DELETE FROM passages WHERE id = ?",
            "INSERT OR IGNORE INTO loose VALUES (?)",
        ):
            self._db.executemany(statement, ((i,) for i in orphans))


def _title_words(path: str, title: str) -> list[str]:
    """Each word once: a title often says the file's name again."""
    name = Path(path)
    return list(dict.fromkeys(lexical.words(f"{name.stem} {title if title != name.name else ''}")))


def _as_known(row: Any) -> Known:
    path, size, changed, sha256, title, notes, error = row
    return Known(path, size, changed, sha256, title, tuple(json.loads(notes)), error)


def _as_passage(row: Any) -> Passage:
    id, text, headings, tokens = row
    return Passage(id, text, tuple(json.loads(headings)), tokens)
