"""A collection: folders of documents, indexed under a name. `lifecycle.py` makes, rebuilds and deletes them."""

import contextlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Self

import numpy as np

from settle.base.errors import DataError, UsageError
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection_folder import CATALOGUE, CollectionFolder, collection_names
from settle.retrieve.index.config import IndexConfig, IndexParts, shown
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
        """Return whether the vectors are stored at a server or in an object store."""
        return bool(self.config.store["url"])

    def nearest(self, vector: np.ndarray, k: int) -> Callable[[], dict[int, float]]:
        """Begin to look for the k passages nearest to a float32 (width,) vector of length 1.

        Calling what it returns waits for them: the cosine by passage, the nearest first. Within a snapshot of the
        catalogue they are those of the snapshot: the store had them before the catalogue did.
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
        """Take over an embedder that is loaded already."""
        self.__dict__["vectorizer"] = vectorizer

    def reset(self) -> None:
        """Create the store again, with nothing in it."""
        self.store.drop()
        self._forget("store").close()

    def close(self) -> None:
        """Close the embedder and the store. Calling it twice is harmless."""
        if "_thread" in self.__dict__:
            self._thread.shutdown()
            self._forget("_thread")
        self.__dict__.pop("embed_query", None)
        for name in ("vectorizer", "store"):
            if name in self.__dict__:
                self._forget(name).close()

    def _forget(self, name: str) -> "Vectorizer | Vectors":
        """Take out what was opened under `name`; it is opened again when it is next needed."""
        opened: Vectorizer | Vectors = self.__dict__.pop(name)
        return opened


class Collection:
    """A collection of this machine, opened. Use it as a context manager.

    Raises UsageError, naming the collections that exist, when there is none of that name.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """Open a collection. folder: a version other than the current one."""
        version = folder or (CollectionFolder(name).current() if name else None)
        if version is None:
            known = ", ".join(collection_names()) or "none yet"
            raise UsageError(
                f"there is no collection {name!r}; there are: {known}", f"settle index FOLDER --name {name}"
            )
        self.name, self.folder = name, version
        self.catalogue = Catalogue(version / CATALOGUE)
        self.vectors = VectorIndex(name, version, self.catalogue)

    def __repr__(self) -> str:
        folders = ", ".join(map(str, self.roots))
        counts = self.catalogue.counts()
        held = f"{counts['passages']:,} passages of {counts['documents']:,} documents"
        return f"<{type(self).__name__} {self.name}: {held} in {folders or 'no folder yet'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened. Calling it twice is harmless."""
        self.vectors.close()
        self.catalogue.close()

    @property
    def config(self) -> IndexConfig | None:
        """How it is made, or None before anything was indexed."""
        return IndexConfig.stored(self.catalogue.settings)

    @property
    def chunker(self) -> Chunker:
        """The chunker that cuts its documents into passages."""
        return self.vectors.config.make_chunker()

    @property
    def roots(self) -> list[Path]:
        """The folders and files that it follows."""
        return [Path(root) for root in self.catalogue.settings.get("roots", list) or []]

    def follow(self, roots: Sequence[Path]) -> None:
        """Set the folders and files that it follows from the next indexing on."""
        self.catalogue.settings.set("roots", [str(root) for root in dict.fromkeys(roots)])

    @property
    def is_replaced(self) -> bool:
        """Return whether it was rebuilt or deleted since it was opened; it answers as it was then."""
        return CollectionFolder(self.name).current() != self.folder

    @property
    def num_bytes(self) -> int:
        """Its size on this machine's disk."""
        total = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # merged with other files by another process
                total += path.stat().st_size if path.is_file() else 0
        return total

    def decide(self, parts: IndexParts) -> IndexConfig:
        """Store how the collection is made, at its first indexing. Raises UsageError when it is made otherwise."""
        wanted = parts.records()
        config = self.config
        if config is None:
            vectorizer = parts.embedder.open()
            self.vectors.use(vectorizer)
            table = f"{self.name}-{secrets.token_hex(4)}"
            config = IndexConfig(**wanted, identity=vectorizer.identity, width=vectorizer.width, table=table)
            config.store_in(self.catalogue.settings)
        for family in config.differing(wanted):
            raise UsageError(
                f"{self.name} is made with {shown(config.record(family))} as its {family}, not {shown(wanted[family])}",
                f"index under another --name, or `settle index {self.name} --anew`",
            )
        return config
