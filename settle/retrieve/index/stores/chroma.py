"""Chroma: a graph of neighbours (HNSW) in memory and on the disk, in this process or at a server."""

import contextlib
import shutil
import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from settle.base.errors import DataError, ResourceError, UsageError
from settle.machine.memory import disk_free
from settle.retrieve.index.stores import Store, Vectors

_GRAPH = {"space": "cosine", "ef_construction": 200, "ef_search": 400, "max_neighbors": 32}
_AT_ONCE = 5000  # ids of one call; Chroma takes some more
_COPIED = ".copy"  # end of the name of a collection that is being put together anew
_GRAPH_FAILS = "hnsw segment writer"  # all that Chroma says of a graph that cannot be written, whatever the reason
_LITTLE = 50_000_000  # bytes of a disk, below which that is the reason
_REMOVED_SHARE = 0.1  # of the vectors: so many removed ones are worth putting the rest together anew


class Chroma(Store):
    """In the collection's folder, or at `url`: a Chroma server such as http://localhost:8000, or a path."""

    def open(self, folder: Path, name: str, width: int) -> Vectors:
        try:
            import chromadb
            from chromadb.config import Settings
        except ImportError:
            raise UsageError("the store of vectors needs Chroma", "pip install 'settle-lm[chroma]'") from None
        where = self.url or str(folder / "chroma")
        quiet = Settings(anonymized_telemetry=False)
        with _told(where):
            if "://" in where:
                parts = urllib.parse.urlsplit(where)
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
        if name not in names and name + _COPIED in names:  # a copy was complete when the process died
            client.get_collection(name + _COPIED, embedding_function=None).modify(name=name)
        elif name + _COPIED in names:
            client.delete_collection(name + _COPIED)
        self._table = self._made(name)

    def _made(self, name: str) -> Any:
        return self._client.get_or_create_collection(
            name, embedding_function=None, configuration={"hnsw": _GRAPH}, metadata={"width": self._width}
        )

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        with _told(self._where):
            for first in range(0, len(ids), _AT_ONCE):
                some = slice(first, first + _AT_ONCE)
                self._table.upsert(ids=[str(i) for i in ids[some].tolist()], embeddings=vectors[some])

    def remove(self, ids: Sequence[int]) -> None:
        with _told(self._where):
            for first in range(0, len(ids), _AT_ONCE):
                self._table.delete(ids=[str(i) for i in ids[first : first + _AT_ONCE]])
        self._removed += len(ids)

    def near(self, vector: np.ndarray, k: int) -> np.ndarray:
        with _told(self._where):
            found = self._table.query(query_embeddings=vector[None], n_results=k, include=[]) if len(self) else {}
        return np.array(found.get("ids", [[]])[0], np.int64)

    def compact(self) -> None:
        if self._removed <= _REMOVED_SHARE * len(self):
            return
        with _told(self._where):
            copy = self._made(self._name + _COPIED)
            for first in range(0, len(self), _AT_ONCE):
                some = self._table.get(limit=_AT_ONCE, offset=first, include=["embeddings"])
                copy.upsert(ids=some["ids"], embeddings=some["embeddings"])
            self._client.delete_collection(self._name)
            copy.modify(name=self._name)
            self._table = copy
        self._removed = 0
        if self._local:
            _give_back(self._local)

    def drop(self) -> None:
        with _told(self._where):
            self._client.delete_collection(self._name)

    def __len__(self) -> int:
        with _told(self._where):
            return int(self._table.count())

    def close(self) -> None:
        self._client.close()


def _give_back(folder: Path) -> None:
    """Removes what Chroma leaves behind of a collection that was deleted: a folder of its graph, and empty pages."""
    with contextlib.closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        used = {segment for (segment,) in database.execute("SELECT id FROM segments")}
        with contextlib.suppress(sqlite3.OperationalError):  # needs as much room again; it can wait
            database.execute("VACUUM")
    for graph in folder.glob("*/header.bin"):
        if graph.parent.name not in used:
            shutil.rmtree(graph.parent)


@contextlib.contextmanager
def _told(where: str) -> Iterator[None]:
    """Chroma's failures in a person's words."""
    import httpx
    from chromadb.errors import ChromaError

    try:
        yield
    except (ChromaError, httpx.HTTPError, OSError, RuntimeError, ValueError) as e:
        said = (str(e).splitlines() or [type(e).__name__])[0][:300]
        full = any(sign in said for sign in ("is full", "No space left", "disk I/O error"))
        if full or (_GRAPH_FAILS in said and "://" not in where and disk_free(Path(where)) < _LITTLE):
            fix = "make room, then run it again; what was indexed is kept"
            raise ResourceError(f"the disk is full: {where}", fix) from e
        fix = "see whether it can be reached" if "://" in where else "run `settle index` again, it mends it, or --anew"
        raise DataError(f"the store of vectors at {where} fails: {said}", fix) from e
