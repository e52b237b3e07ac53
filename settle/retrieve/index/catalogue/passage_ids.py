"""The ids of passages: never used twice, and loose while only the store of vectors may hold them.

New vectors are added to the store before the transaction that makes their passages count, and removed ones are deleted
after the transaction that ends that. In between, their ids stand in the table `loose`; a run that dies leaves them
there, and the next one removes them from the store.
"""

from collections.abc import Sequence

from settle.retrieve.index.catalogue.database import Database, StoredSettings


class PassageIds:
    """Ids in the catalogue's database."""

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
