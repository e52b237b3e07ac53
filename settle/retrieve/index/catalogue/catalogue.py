"""The catalogue of a collection: one SQLite file that is the only truth about its documents.

The store of vectors may hold more than the catalogue counts, never less; see `PassageIds`.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from settle.retrieve.index import words as word_rules
from settle.retrieve.index.catalogue.database import Database, StoredSettings, slices
from settle.retrieve.index.catalogue.records import DocumentChange, DocumentRecord
from settle.retrieve.index.catalogue.tables import DocumentTable, PassageIds, PassageTable, WordIndex


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
        """Store the passages that are not stored yet."""
        chunks = {i: chunk for change in changes for i, chunk in zip(change.ids, change.chunks, strict=True)}
        stored = self.passages.get(list(chunks))
        new = {i: chunk for i, chunk in chunks.items() if i not in stored}
        self.passages.insert(new, vectors)
        self.words.add_passages((i, chunk.text, chunk.headings) for i, chunk in new.items())
        self.ids.clear_loose(list(new))

    def _remove_documents(self, paths: Sequence[str]) -> set[int]:
        """Remove documents, and return the passages that they had."""
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
