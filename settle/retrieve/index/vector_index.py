"""Search by meaning in one collection: its embedder and its store of vectors, each opened when it is first needed."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from settle.base.errors import DataError, UsageError
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.config import IndexConfig
from settle.retrieve.index.embedders import Vectorizer
from settle.retrieve.index.stores import Vectors

_REMEMBERED_QUESTIONS = 64  # searching, judging and quoting embed the same question


class VectorIndex:
    """The vectors of the collection `name`, whose files lie in `folder`."""

    def __init__(self, name: str, folder: Path, catalogue: Catalogue) -> None:
        self._name, self._folder, self._catalogue = name, folder, catalogue

    @property
    def config(self) -> IndexConfig:
        """How the collection is made. Raises UsageError before anything was indexed."""
        config = IndexConfig.stored(self._catalogue.settings)
        if config is None:
            raise UsageError(f"nothing is indexed in {self._name} yet", f"settle index FOLDER --name {self._name}")
        return config

    @cached_property
    def vectorizer(self) -> Vectorizer:
        """The embedder, loaded. Raises DataError when it gives other vectors than at indexing time."""
        config = self.config
        vectorizer = config.make_embedder().open()
        if vectorizer.identity != config.identity:
            vectorizer.close()
            name = config.embedder["name"]
            raise DataError(
                f"{self._name} was made with another version of {name}: its vectors cannot be compared",
                f"`settle index {self._name} --anew` makes it again",
            )
        return vectorizer

    @cached_property
    def store(self) -> Vectors:
        """The store, opened."""
        config = self.config
        return config.make_store().open(self._folder, config.table, config.width)

    @cached_property
    def embed_query(self) -> Callable[[str], np.ndarray]:
        """Turns a question into a float32 (width,) vector of length 1; the last ones are remembered."""
        return lru_cache(_REMEMBERED_QUESTIONS)(self.vectorizer.query)

    @property
    def is_remote(self) -> bool:
        """Whether the vectors are kept at a server or in an object store."""
        return bool(self.config.store["url"])

    def nearest(self, vector: np.ndarray, k: int) -> Callable[[], dict[int, float]]:
        """Begins to look for the k passages nearest to a float32 (width,) vector of length 1. Calling what it returns
        waits for them: the cosine by passage, the nearest first.

        Within a snapshot of the catalogue they are those of the snapshot: the store had them before the catalogue did.
        """
        candidates = self._thread.submit(self.store.near, vector, k)

        def wait() -> dict[int, float]:
            stored = self._catalogue.passages.vectors(candidates.result().tolist())
            cosines = [(passage, float(other @ vector)) for passage, other in stored.items()]
            return dict(sorted(cosines, key=lambda pair: (-pair[1], pair[0]))[:k])

        return wait

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        """The store is asked here while the catalogue is asked elsewhere."""
        return ThreadPoolExecutor(1, "settle-near")

    def use(self, vectorizer: Vectorizer) -> None:
        """Takes over an embedder that is loaded already."""
        self.__dict__["vectorizer"] = vectorizer

    def reset(self) -> None:
        """Begins the store anew, with nothing in it."""
        self.store.drop()
        self._forget("store").close()

    def close(self) -> None:
        """Calling it twice is harmless."""
        if "_thread" in self.__dict__:
            self._thread.shutdown()
            self._forget("_thread")
        self.__dict__.pop("embed_query", None)
        for name in ("vectorizer", "store"):
            if name in self.__dict__:
                self._forget(name).close()

    def _forget(self, name: str) -> "Vectorizer | Vectors":
        """Takes out what was opened under `name`; it is opened again when it is next needed."""
        opened: Vectorizer | Vectors = self.__dict__.pop(name)
        return opened
