"""Small values that a collection keeps beside its documents, as JSON under a key."""

import json
from typing import TypeVar

from settle.retrieve.index.catalogue.database import Database

T = TypeVar("T")


class StoredSettings:
    """Keys in use: made, roots, model, evidence, words, next_id, indexed, unfinished, removed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def get(self, key: str, kind: type[T]) -> T | None:
        """The value under `key`; None where there is none of that kind."""
        rows = self._database.rows("SELECT value FROM settings WHERE key = ?", key)
        value = json.loads(rows[0][0]) if rows else None
        return value if isinstance(value, kind) else None

    def is_on(self, key: str) -> bool:
        """Whether `key` is set to true."""
        return self.get(key, bool) or False

    def set(self, key: str, value: object) -> None:
        """Stores a value that JSON can hold."""
        with self._database.transaction():
            self._database.insert("INSERT OR REPLACE INTO settings VALUES (?, ?)", key, json.dumps(value))
