"""The passages of a catalogue: their ids, their texts, their vectors, and the chunks of documents that they are."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from settle.documents.blocks import Chunk, Place
from settle.retrieve.index.catalogue.database import Database, Row, StoredSettings
from settle.retrieve.index.catalogue.records import Occurrence, Passage, digest

_PAGE_ROWS = 1000
_VECTOR = np.dtype("<f2")  # half precision: a cosine changes in its fifth digit
_PASSAGES = "SELECT id, text, headings, tokens FROM passages"


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
        """Ids for new passages, loose until the passages count."""
        with self._database.transaction():
            ids = list(range(self.last + 1, self.last + 1 + count))
            self._settings.set("next_id", ids[-1])
            self.add_loose(ids)
        return ids

    def loose(self) -> list[int]:
        """Ids that the store may hold and should not."""
        return [passage for (passage,) in self._database.rows("SELECT id FROM loose ORDER BY id")]

    def add_loose(self, ids: Sequence[int]) -> None:
        with self._database.transaction():
            self._database.execute_many("INSERT OR IGNORE INTO loose VALUES (?)", ((i,) for i in ids))

    def clear_loose(self, ids: Sequence[int]) -> None:
        """Records that these count now, or that the store no longer holds them."""
        with self._database.transaction():
            self._database.execute_many("DELETE FROM loose WHERE id = ?", ((i,) for i in ids))


class PassageTable:
    """Passages by id. A passage that occurs in several documents is stored once."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ids_of(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The ids of those passages that are stored, by digest."""
        return dict(self._database.rows_in("SELECT hash, id FROM passages WHERE hash IN ({})", digests))

    def get(self, ids: Sequence[int]) -> dict[int, Passage]:
        """The passages with those of the ids that are stored."""
        rows = self._database.rows_in(f"{_PASSAGES} WHERE id IN ({{}})", ids)
        return {row[0]: _passage(row) for row in rows}

    def page(self, after: int = 0, limit: int = _PAGE_ROWS) -> list[Passage]:
        """The next passages after an id, ordered by id."""
        return [
            _passage(row) for row in self._database.rows(f"{_PASSAGES} WHERE id > ? ORDER BY id LIMIT ?", after, limit)
        ]

    def vectors(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        """The vectors of those of the ids that are stored, float32 (width,), from half precision."""
        rows = list(self._database.rows_in("SELECT passage, vector FROM vectors WHERE passage IN ({})", ids))
        if not rows:
            return {}
        flat = np.frombuffer(b"".join(vector for _, vector in rows), _VECTOR).astype(np.float32)
        return dict(zip((passage for passage, _ in rows), flat.reshape(len(rows), -1), strict=True))

    def occurrences(self, ids: Sequence[int]) -> dict[int, list[Occurrence]]:
        """Every place of each passage, ordered by path."""
        statement = (
            "SELECT passage, document, path, ordinal, line, page, part FROM chunks JOIN documents ON"
            " documents.id = document WHERE passage IN ({}) ORDER BY path, ordinal"
        )
        places: dict[int, list[Occurrence]] = {}
        for passage, document, path, ordinal, *place in self._database.rows_in(statement, ids):
            places.setdefault(passage, []).append(Occurrence(document, path, ordinal, Place(*place)))
        return places

    def first_of(self, documents: Sequence[int], count: int) -> list[int]:
        """The first `count` passages of each document."""
        statement = f"SELECT passage FROM chunks WHERE document IN ({{}}) AND ordinal < {count}"
        return [passage for (passage,) in self._database.rows_in(statement, documents)]

    def around(self, document: int, first: int, last: int) -> list[tuple[int, int]]:
        """(ordinal, passage) of a document's chunks from `first` to `last`."""
        statement = (
            "SELECT ordinal, passage FROM chunks WHERE document = ? AND ordinal BETWEEN ? AND ? ORDER BY ordinal"
        )
        return [(ordinal, passage) for ordinal, passage in self._database.rows(statement, document, first, last)]

    # Changes, inside a transaction of the catalogue

    def insert(self, chunks: Mapping[int, Chunk], vectors: Mapping[int, np.ndarray]) -> None:
        """Stores new passages by id, and vectors, float32 (width,), in half precision."""
        self._database.execute_many(
            "INSERT INTO passages VALUES (?, ?, ?, ?, ?)",
            ((i, digest(c), c.text, json.dumps(c.headings), c.tokens) for i, c in chunks.items()),
        )
        self._database.execute_many(
            "INSERT INTO vectors VALUES (?, ?)",
            ((i, vector.astype(_VECTOR).tobytes()) for i, vector in vectors.items()),
        )

    def place(self, document: int, chunks: Sequence[Chunk], ids: Sequence[int]) -> None:
        """Stores a document's chunks, in order, as the passages that they are."""
        self._database.execute_many(
            "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
            (
                (document, ordinal, passage, chunk.place.line, chunk.place.page, chunk.place.part)
                for ordinal, (chunk, passage) in enumerate(zip(chunks, ids, strict=True))
            ),
        )

    def unplace(self, documents: Sequence[int]) -> set[int]:
        """Removes the chunks of documents; the passages that they were."""
        rows = self._database.rows_in("SELECT passage FROM chunks WHERE document IN ({})", documents)
        passages = {passage for (passage,) in rows}
        self._database.execute_many("DELETE FROM chunks WHERE document = ?", ((document,) for document in documents))
        return passages

    def without_place(self, ids: Sequence[int]) -> list[int]:
        """Those of the passages that are in no document any more."""
        rows = self._database.rows_in("SELECT DISTINCT passage FROM chunks WHERE passage IN ({})", ids)
        return sorted(set(ids) - {passage for (passage,) in rows})

    def delete(self, ids: Sequence[int]) -> None:
        """Removes passages and their vectors."""
        for statement in ("DELETE FROM vectors WHERE passage = ?", "DELETE FROM passages WHERE id = ?"):
            self._database.execute_many(statement, ((passage,) for passage in ids))


def _passage(row: Row) -> Passage:
    passage_id, text, headings, tokens = row
    return Passage(passage_id, text, tuple(json.loads(headings)), tokens)
