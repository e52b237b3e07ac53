"""LanceDB: columns on the disk, each change one atomic version.

Up to some thousand vectors every one is compared. Beyond, an index of one bit a dimension (RaBitQ, Gao and Long 2024)
says which may be near; what came after it was made is compared as it is.
"""

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from settle.base.errors import DataError, ResourceError, UsageError, disk_is_full
from settle.base.files import fsync_folder
from settle.base.python_command import extra_command
from settle.retrieve.index.stores import Store, Vectors

EXACT = 2_000_000  # numbers in all vectors together, up to which an index is not worth it
_PARTITION_VECTORS, _MOST_PARTITIONS = 1000, 256  # a partition of the index grows once there are so many of them
_PROBES = 128  # partitions that are searched: all of them up to 128,000 vectors
_CANDIDATES_FACTOR, _LEAST_CANDIDATES = 10, 500  # candidates: so many times k, and at least this many
_TRAINING_VECTORS = 64  # for each partition
_RETRAIN_GROWTH = 4  # times the size at which the index was trained
_UNMERGED_VECTORS = 32_768  # that may lie in small files before those are merged
_BATCH_IDS, _BATCH_RUNS = 1000, 50  # ids, and runs of consecutive ids, in one condition
_NOW = datetime.timedelta(milliseconds=1)
_TRIES = 5
_FULL = ("os error 28", "os error 27", "os error 122", "No space left")
T = TypeVar("T")


class Lancedb(Store):
    """In the collection's folder, or at `url`: a path, or s3://, gs://, az:// with the environment's credentials."""

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        os.environ.setdefault("LANCEDB_LOG", "error")  # its warnings are about its own internals
        os.environ.setdefault("LANCE_LOG", "error")
        try:
            _skip_rest_client()
            import lancedb
            import pyarrow as pa
        except (ImportError, MemoryError) as e:
            if find_spec("lancedb") and find_spec("pyarrow"):
                why = str(e).splitlines()[0] if str(e) else "there is too little memory"
                raise ResourceError(f"LanceDB cannot be loaded: {why}", "allow more memory (`ulimit -v`)") from None
            raise UsageError("the store of vectors needs LanceDB", extra_command("rag")) from None
        where = self.url or str(folder / "lancedb")
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))])
        with _translated(where):
            # every query sees what another process has added
            database = lancedb.connect(where, read_consistency_interval=datetime.timedelta(0))
            table = database.create_table(name, schema=schema, exist_ok=True)
        local = None if "://" in where else Path(where) / f"{name}.lance"
        return _Table(database, table, width, where, local)


def _skip_rest_client() -> None:
    """Halve the time of `import lancedb`.

    Its client of a REST service is a package that imports all of its parts, of which LanceDB needs one. As an empty
    package it imports only those that are asked for.
    """
    name = "lance_namespace_urllib3_client"
    if name not in sys.modules and (spec := find_spec(name)):
        sys.modules[name] = module_from_spec(spec)


class _Table(Vectors):
    def __init__(self, database: Any, table: Any, width: int, where: str, local: Path | None) -> None:
        self._database, self._table, self._width = database, table, width
        self._where, self._local = where, local
        self._highest: int | None = None  # id
        self._unmerged = 0  # vectors added since files were merged
        self._synced: set[Path] = set()

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        import pyarrow as pa

        if not len(ids):
            return
        if self._highest is None:
            there = self._read(lambda: self._table.search().select(["id"]).limit(len(self) + 1).to_arrow()["id"])
            self._highest = max(there.to_numpy(), default=0)
        if int(ids.min()) <= self._highest:
            self.remove(ids.tolist())
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        rows = {"id": pa.array(ids, pa.int64()), "vector": pa.FixedSizeListArray.from_arrays(flat, self._width)}
        with _translated(self._where):
            self._table.add(pa.table(rows))
            self._highest = max(self._highest, int(ids.max()))
            self._unmerged += len(ids)
            if self._unmerged > max(_UNMERGED_VECTORS, len(self) // 2):
                self.compact()
            self._sync()

    def remove(self, ids: Sequence[int]) -> None:
        with _translated(self._where):
            for condition in _conditions(ids):
                self._table.delete(condition)
            self._sync()

    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        query = self._table.search(vector).distance_type("dot").select(["id", "_distance"])
        candidates = query.limit(max(_CANDIDATES_FACTOR * k, _LEAST_CANDIDATES)).nprobes(_PROBES)
        ids: np.ndarray = self._read(candidates.to_arrow)["id"].to_numpy()
        return ids

    def compact(self) -> None:
        with _translated(self._where):
            self._table.optimize(cleanup_older_than=_NOW, delete_unverified=True)
            if self._is_untrained():
                self._train()
                self._table.optimize(cleanup_older_than=_NOW, delete_unverified=True)
            self._unmerged = 0
            self._sync()

    def drop(self) -> None:
        with _translated(self._where):
            self._database.drop_table(self._table.name)

    def __len__(self) -> int:
        return int(self._read(self._table.count_rows))

    def close(self) -> None:
        pass

    def _is_untrained(self) -> bool:
        """Return whether an index is worth it, and there is none, or one that was trained on far fewer vectors."""
        trained, count = self._trained(), len(self)
        return count * self._width > EXACT and trained < min(
            count / _RETRAIN_GROWTH, _PARTITION_VECTORS * _MOST_PARTITIONS
        )

    def _trained(self) -> int:
        """Return the number of vectors that the index was trained on, which its name says; 0 without one."""
        return max((int(i.name.rpartition("_")[2]) for i in self._table.list_indices()), default=0)

    def _train(self) -> None:
        from lancedb.index import IvfRq

        partitions = min(len(self) // _PARTITION_VECTORS, _MOST_PARTITIONS)
        config = IvfRq(distance_type="dot", num_partitions=partitions, sample_rate=_TRAINING_VECTORS)
        before = [index.name for index in self._table.list_indices()]
        self._table.create_index("vector", config=config, name=f"near_{len(self)}")
        for name in before:
            self._table.drop_index(name)

    def _read(self, ask: Callable[[], T]) -> T:
        """Return the result of a query.

        Where another process has merged the files away meanwhile, the new ones are queried.
        """
        with _translated(self._where):
            for _ in range(_TRIES - 1):
                try:
                    return ask()
                except (RuntimeError, OSError) as e:
                    if "Not found" not in str(e):
                        raise
            return ask()

    def _sync(self) -> None:
        """Flush new files to the disk, which LanceDB does not: the catalogue must not be there before them."""
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
    """Yield SQL conditions that select the ids, in batches; consecutive ids as ranges."""
    sorted_ids = np.unique(np.asarray(ids, np.int64))
    runs = np.split(sorted_ids, np.flatnonzero(np.diff(sorted_ids) != 1) + 1)
    long = [f"id BETWEEN {run[0]} AND {run[-1]}" for run in runs if len(run) > 2]
    for first in range(0, len(long), _BATCH_RUNS):
        yield " OR ".join(long[first : first + _BATCH_RUNS])
    single = [str(i) for run in runs if len(run) <= 2 for i in run]
    for first in range(0, len(single), _BATCH_IDS):
        yield f"id IN ({', '.join(single[first : first + _BATCH_IDS])})"


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as e:
        message = str(e).splitlines()[0][:300]
        if any(sign in str(e) for sign in _FULL):
            raise disk_is_full(where, "and run it again; what was indexed is kept") from e
        if "ermission denied" in str(e):
            raise ResourceError(f"cannot write to {where}: {message}", "give permission there") from e
        fix = "check whether it can be reached, or index again with --anew"
        raise DataError(f"the store of vectors at {where} failed: {message}", fix) from e
