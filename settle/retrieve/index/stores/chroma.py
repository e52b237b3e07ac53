"""Chroma: a graph of neighbours (HNSW) in memory and on the disk, in this process or at a server."""

import contextlib
import shutil
import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from settle.audit.session import declare
from settle.base.errors import DataError, UsageError, disk_is_full
from settle.base.python_command import extra_command
from settle.machine.memory import disk_free
from settle.retrieve.index.stores import Store, Vectors

_GRAPH = {"space": "cosine", "ef_construction": 200, "ef_search": 400, "max_neighbors": 32}
_BATCH_IDS = 5000  # of one call; Chroma takes some more
_COPY_SUFFIX = ".copy"  # of the name of a collection that is being compacted
_GRAPH_ERROR = "hnsw segment writer"  # Chroma's only message when it cannot write a graph, whatever the reason
_FULL_DISK_BYTES = 50_000_000  # less free space than this explains that error
_REMOVED_SHARE = 0.1  # of the vectors: when so many were removed, copying the rest is worth the work


class Chroma(Store):
    """In the collection's folder, or at `url`: a Chroma server such as http://localhost:8000, or a path."""

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            raise UsageError("the store of vectors needs Chroma", extra_command("chroma")) from None
        where = self.url or str(folder / "chroma")
        quiet = Settings(anonymized_telemetry=False)
        with _translated(where):
            if "://" in where:
                parts = urllib.parse.urlsplit(where)
                declare(parts.hostname or "", "the server of the vectors")
                ssl = parts.scheme == "https"
                client = chromadb.HttpClient(
                    parts.hostname or "localhost", parts.port or (443 if ssl else 8000), ssl=ssl, settings=quiet
                )
                return _Table(client, name, width, where, None)
            return _Table(chromadb.PersistentClient(where, settings=quiet), name, width, where, Path(where))


class _Table(Vectors):
    """Chroma never gives room back: where much was removed, the rest is copied into a collection of the same name."""

    def __init__(self, client: Any, name: str, width: int, where: str, local: Path | None) -> None:
        self._client, self._name, self._width, self._where, self._local = client, name, width, where, local
        self._removed = 0
        names = {collection.name for collection in client.list_collections()}
        if name not in names and name + _COPY_SUFFIX in names:  # a copy was complete when the process died
            client.get_collection(name + _COPY_SUFFIX, embedding_function=None).modify(name=name)
        elif name + _COPY_SUFFIX in names:
            client.delete_collection(name + _COPY_SUFFIX)
        self._table = self._open_table(name)

    def _open_table(self, name: str) -> Any:
        return self._client.get_or_create_collection(
            name, embedding_function=None, configuration={"hnsw": _GRAPH}, metadata={"width": self._width}
        )

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        with _translated(self._where):
            for first in range(0, len(ids), _BATCH_IDS):
                some = slice(first, first + _BATCH_IDS)
                self._table.upsert(ids=[str(i) for i in ids[some].tolist()], embeddings=vectors[some])

    def remove(self, ids: Sequence[int]) -> None:
        with _translated(self._where):
            for first in range(0, len(ids), _BATCH_IDS):
                self._table.delete(ids=[str(i) for i in ids[first : first + _BATCH_IDS]])
        self._removed += len(ids)

    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        with _translated(self._where):
            results = self._table.query(query_embeddings=vector[None], n_results=k, include=[]) if len(self) else {}
        return np.array(results.get("ids", [[]])[0], np.int64)

    def compact(self) -> None:
        if self._removed <= _REMOVED_SHARE * len(self):
            return
        with _translated(self._where):
            copy = self._open_table(self._name + _COPY_SUFFIX)
            for first in range(0, len(self), _BATCH_IDS):
                some = self._table.get(limit=_BATCH_IDS, offset=first, include=["embeddings"])
                copy.upsert(ids=some["ids"], embeddings=some["embeddings"])
            self._client.delete_collection(self._name)
            copy.modify(name=self._name)
            self._table = copy
        self._removed = 0
        if self._local:
            _free_room(self._local)

    def drop(self) -> None:
        with _translated(self._where):
            self._client.delete_collection(self._name)

    def __len__(self) -> int:
        with _translated(self._where):
            return int(self._table.count())

    def close(self) -> None:
        self._client.close()


def _free_room(folder: Path) -> None:
    """Remove what Chroma leaves of a deleted collection: the folder of its graph, and empty pages."""
    with contextlib.closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        used = {segment for (segment,) in database.execute("SELECT id FROM segments")}
        with contextlib.suppress(sqlite3.OperationalError):  # needs as much room again; the next time will do
            database.execute("VACUUM")
    for graph in folder.glob("*/header.bin"):
        if graph.parent.name not in used:
            shutil.rmtree(graph.parent)


@contextlib.contextmanager
def _translated(where: str) -> Iterator[None]:
    import httpx
    from chromadb.errors import ChromaError

    try:
        yield
    except (ChromaError, httpx.HTTPError, OSError, RuntimeError, ValueError) as e:
        message = (str(e).splitlines() or [type(e).__name__])[0][:300]
        full = any(sign in message for sign in ("is full", "No space left", "disk I/O error"))
        if full or (_GRAPH_ERROR in message and "://" not in where and disk_free(Path(where)) < _FULL_DISK_BYTES):
            raise disk_is_full(where, "and run it again; what was indexed is kept") from e
        repair = "run `settle index` again, which repairs it, or use --anew"
        fix = "check whether it can be reached" if "://" in where else repair
        raise DataError(f"the store of vectors at {where} failed: {message}", fix) from e
