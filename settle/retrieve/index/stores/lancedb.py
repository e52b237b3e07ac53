"""LanceDB: columns on the disk, each change one atomic version.

Up to some thousand vectors every one is compared. Beyond, an index of one bit a dimension (RaBitQ, Gao and Long 2024)
says which may be near; what came after it was made is compared as it is.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from settle.base.errors import DataError, ResourceError, UsageError
from settle.base.run import fsync_folder
from settle.retrieve.index.stores import Store, Vectors

EXACT = 2_000_000  # numbers, of all vectors together, up to which no index is worth it
_PARTITION, _MOST_PARTITIONS = 1000, 256  # vectors of one partition of the index, until there are so many of those
_PROBES = 128  # partitions that are searched: all of them up to 128,000 vectors
_ROUGH, _CANDIDATES = 10, 500  # times as many as are asked for are given, and so many at least
_SAMPLE = 64  # vectors for each partition that it is trained on
_GROWN = 4  # times the size it was trained at, at which it is trained again
_APART = 32_768  # vectors that may lie in small files before those are put together
_AT_ONCE, _RUNS = 1000, 50  # ids, and runs of ids, in one condition
_NOW = datetime.timedelta(milliseconds=1)
_TRIES = 5
_FULL = ("os error 28", "os error 27", "os error 122", "No space left")
T = TypeVar("T")


class Lancedb(Store):
    """In the collection's folder, or at `url`: a path, or s3://, gs://, az:// with the environment's credentials."""

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are about its own doings
        os.environ.setdefault("LANCE_LOG", "error")
        try:
            import lancedb
            import pyarrow as pa
        except ImportError:
            raise UsageError("the store of vectors needs LanceDB", "pip install 'settle-lm[rag]'") from None
        where = self.url or str(folder / "lancedb")
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
        with _told(where):
            # every question sees what another process has added
            database = lancedb.connect(where, read_consistency_interval=datetime.timedelta(0))
            table = database.create_table(name, schema=schema, exist_ok=True)
        local = None if "://" in where else Path(where) / f"{name}.lance"
        return _Table(database, table, width, where, local)


class _Table(Vectors):
    def __init__(self, database: Any, table: Any, width: int, where: str, local: Path | None) -> None:
        self._database, self._table, self._width = database, table, width
        self._where, self._local = where, local
        self._highest: int | None = None  # id
        self._apart = 0  # vectors added since files were put together
        self._synced: set[Path] = set()

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        import pyarrow as pa

        if not len(ids):
            return
        if self._highest is None:
            self._highest = self._read_highest()
        if int(ids.min()) <= self._highest:
            self.remove(ids.tolist())
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        rows = {"id": pa.array(ids, pa.int64()), "vector": pa.FixedSizeListArray.from_arrays(flat, self._width)}
        with _told(self._where):
            self._table.add(pa.table(rows))
            self._highest = max(self._highest, int(ids.max()))
            self._apart += len(ids)
            if self._apart > max(_APART, len(self) // 2):
                self.compact()
            self._sync()

    def remove(self, ids: Sequence[int]) -> None:
        with _told(self._where):
            for condition in _conditions(ids):
                self._table.delete(condition)
            self._sync()

    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        query = self._table.search(vector).distance_type("dot").select(["id", "_distance"])
        found = query.limit(max(_ROUGH * k, _CANDIDATES)).nprobes(_PROBES)
        ids: np.ndarray = self._read(found.to_arrow)["id"].to_numpy()
        return ids

    def compact(self) -> None:
        with _told(self._where):
            self._table.optimize(cleanup_older_than=_NOW, delete_unverified=True)
            if self._is_untrained():
                self._train()
                self._table.optimize(cleanup_older_than=_NOW, delete_unverified=True)
            self._apart = 0
            self._sync()

    def drop(self) -> None:
        with _told(self._where):
            self._database.drop_table(self._table.name)

    def __len__(self) -> int:
        return int(self._read(self._table.count_rows))

    def close(self) -> None:
        pass

    def _is_untrained(self) -> bool:
        """Whether an index is worth it that there is not, or that knew far fewer when it was trained."""
        trained, count = self._trained(), len(self)
        return count * self._width > EXACT and trained < min(count / _GROWN, _PARTITION * _MOST_PARTITIONS)

    def _trained(self) -> int:
        """How many vectors there were when the index was made, which its name says; 0 without one."""
        return max((int(i.name.rpartition("_")[2]) for i in self._table.list_indices()), default=0)

    def _train(self) -> None:
        from lancedb.index import IvfRq

        partitions = min(len(self) // _PARTITION, _MOST_PARTITIONS)
        config = IvfRq(distance_type="dot", num_partitions=partitions, sample_rate=_SAMPLE)
        before = [index.name for index in self._table.list_indices()]
        self._table.create_index("vector", config=config, name=f"near_{len(self)}")
        for name in before:
            self._table.drop_index(name)

    def _read_highest(self) -> int:
        ids = self._read(lambda: self._table.search().select(["id"]).limit(len(self) + 1).to_arrow()["id"])
        return max(ids.to_numpy(), default=0)

    def _read(self, ask: Callable[[], T]) -> T:
        """The answer to a question. One that another process takes the files away from, as it has put them together, is
        asked again: then it goes to the new ones."""
        with _told(self._where):
            for _ in range(_TRIES - 1):
                try:
                    return ask()
                except (RuntimeError, OSError) as e:
                    if "Not found" not in str(e):
                        raise
            return ask()

    def _sync(self) -> None:
        """LanceDB leaves it to the system when files come to the disk; the catalogue must not be there before them."""
        if self._local is None:
            return
        files = {path for path in self._local.rglob("*") if path.is_file()}
        new = files - self._synced
        for path in new:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(path, os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
        for folder in {path.parent for path in new}:
            fsync_folder(folder)
        self._synced = files


def _conditions(ids: Sequence[int]) -> Iterator[str]:
    """What selects the ids, some at a time; runs of neighbours as such."""
    found = np.unique(np.asarray(ids, np.int64))
    runs = np.split(found, np.flatnonzero(np.diff(found) != 1) + 1)
    long = [f"id BETWEEN {run[0]} AND {run[-1]}" for run in runs if len(run) > 2]
    for first in range(0, len(long), _RUNS):
        yield " OR ".join(long[first : first + _RUNS])
    single = [str(i) for run in runs if len(run) <= 2 for i in run]
    for first in range(0, len(single), _AT_ONCE):
        yield f"id IN ({', '.join(single[first : first + _AT_ONCE])})"


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """LanceDB's failures in a person's words."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as e:
        said = str(e).splitlines()[0][:300]
        if any(sign in str(e) for sign in _FULL):
            fix = "make room, then run it again; what was indexed is kept"
            raise ResourceError(f"the disk is full: {where}", fix) from e
        if "ermission denied" in str(e):
            raise ResourceError(f"cannot write to {where}: {said}", "give permission there") from e
        fix = "see whether it can be reached, or index anew"
        raise DataError(f"the store of vectors at {where} fails: {said}", fix) from e
