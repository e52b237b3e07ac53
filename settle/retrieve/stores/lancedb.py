"""LanceDB: columns on the disk, each change one atomic version; exact search until there is an index."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from settle.base.errors import UsageError
from settle.retrieve.stores import Near, Store, Vectors


class Lancedb(Store):
    """In the collection's folder, or at `url`: s3://, gs://, az:// or a path."""

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        try:
            import lancedb
        except ImportError:
            raise UsageError("the store of vectors needs LanceDB", "pip install 'settle-lm[rag]'") from None
        database = lancedb.connect(self.url or str(folder / "lancedb"))
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
        return _Table(database, database.create_table(name, schema=schema, exist_ok=True), width)


class _Table(Vectors):
    def __init__(self, database: Any, table: Any, width: int) -> None:
        self._database, self._table, self._width = database, table, width

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        rows = pa.table(
            {"id": pa.array(ids, pa.int64()), "vector": pa.FixedSizeListArray.from_arrays(flat, self._width)}
        )
        self._table.add(rows)

    def remove(self, ids: Sequence[int]) -> None:
        for first in range(0, len(ids), 1000):
            some = ", ".join(str(int(i)) for i in ids[first : first + 1000])
            self._table.delete(f"id IN ({some})")

    def near(self, vector: np.ndarray, k: int) -> Near:
        found = self._table.search(vector).distance_type("dot").select(["id", "_distance"]).limit(k).to_arrow()
        ids, distances = found["id"].to_numpy(), found["_distance"].to_numpy()
        return Near(ids, (1 - distances).astype(np.float32))

    def get(self, ids: Sequence[int]) -> dict[int, np.ndarray]:
        if not ids:
            return {}
        some = ", ".join(str(int(i)) for i in ids)
        found = self._table.search().where(f"id IN ({some})").limit(len(ids)).to_arrow()
        vectors = found["vector"].combine_chunks().flatten().to_numpy().reshape(-1, self._width)
        return dict(zip(found["id"].to_pylist(), vectors, strict=True))

    def compact(self) -> None:
        import datetime

        self._table.optimize(cleanup_older_than=datetime.timedelta(milliseconds=1), delete_unverified=True)

    def drop(self) -> None:
        self._database.drop_table(self._table.name)

    def __len__(self) -> int:
        return int(self._table.count_rows())

    def close(self) -> None:
        pass
