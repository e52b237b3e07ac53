"""A collection: folders of documents, indexed under a name; made, rebuilt in a new version, and deleted.

    $SETTLE_HOME/collections/<name>/<number>/    the highest number counts; `.<number>.part` is being made

A collection that is rebuilt fills another folder beside the old one; renaming that folder makes it the one that counts.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from settle.base.errors import DataError, SettleError, UsageError
from settle.base.files import fsync_folder, home
from settle.base.python_command import shell_line
from settle.base.run import NAME, WorkFolder
from settle.retrieve.index.catalogue import Catalogue
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.database import StoredSettings
from settle.retrieve.index.embedders import Embedder, Vectorizer
from settle.retrieve.index.stores import Store, Vectors

CATALOGUE = "catalogue.sqlite"  # a version without one does not count
SMALL = 2_000_000  # numbers in all vectors together
_REMEMBERED_QUESTIONS = 64  # searching, judging and quoting embed the same question


class CollectionFolder(WorkFolder):
    """The folder of one collection, whether it exists or not; one process at a time changes it."""

    lock_file = "lock"

    def __init__(self, name: str) -> None:
        super().__init__(home() / "collections" / name, name, f"indexing {name!r}")

    def versions(self) -> list[Path]:
        """Return versions that count or have counted, the oldest first."""
        return sorted(self.path.glob("[0-9]*"), key=_number)

    def unfinished(self) -> list[Path]:
        """Return versions that were never published."""
        return list(self.path.glob(".*.part"))

    def current(self) -> Path | None:
        """Return the version that counts, or None when there is no such collection."""
        return next((p for p in reversed(self.versions()) if (p / CATALOGUE).is_file()), None)

    def next_version(self) -> Path:
        """Return where the version after the current one is made, until it is published."""
        current = self.current()
        return self.path / f".{_number(current) + 1 if current else 1}.part"

    def publish(self, version: Path) -> None:
        """Make this version the current one."""
        version.rename(self.path / str(_number(version)))
        fsync_folder(self.path)


def collection_names() -> list[str]:
    """Return the collections of this machine."""
    folder = home() / "collections"
    return sorted(p.name for p in folder.iterdir() if CollectionFolder(p.name).current()) if folder.is_dir() else []


def indexed_names() -> list[str]:
    """Return the collections that hold text, and damaged ones, which are told of where they are opened."""
    return [name for name in collection_names() if _holds_text(name)]


def _holds_text(name: str) -> bool:
    try:
        with Collection(name) as collection:
            return collection.catalogue.counts()["passages"] > 0
    except SettleError:
        return True


def _number(version: Path) -> int:
    return int(version.name.removeprefix(".").removesuffix(".part"))


PartRecord = dict[str, object]  # the name of a part under "name", and its settings, as JSON holds them


class IndexParts(NamedTuple):
    """The parts that a collection is made with."""

    embedder: Embedder
    store: Store
    chunker: Chunker

    def records(self) -> dict[str, PartRecord]:
        """Return the stored record of each part."""
        parts = self._asdict().items()
        return {family: {"name": part.part_name(), **part.model_dump(mode="json")} for family, part in parts}


@dataclass(frozen=True)
class IndexConfig:
    """How a collection is made."""

    embedder: PartRecord
    store: PartRecord
    chunker: PartRecord
    identity: str  # of the embedder, as only its vectors can be compared
    width: int  # of the vectors
    table: str  # name of the collection in its store, which no other collection uses

    @classmethod
    def stored(cls, settings: StoredSettings) -> "IndexConfig | None":
        """Return the stored configuration of a collection, or None before anything was indexed."""
        record = settings.get("made", dict)
        return cls(**record) if record else None

    def record(self, family: str) -> PartRecord:
        """Return the record of the "embedder", "store" or "chunker"."""
        record: PartRecord = getattr(self, family)
        return record

    def make_embedder(self) -> Embedder:
        return Embedder.make(*_split(self.embedder))

    def make_store(self) -> Store:
        return Store.make(*_split(self.store))

    def make_chunker(self) -> Chunker:
        return Chunker.make(*_split(self.chunker))

    def has(self, family: str, settings: PartRecord) -> bool:
        """Return whether a part is the one that these settings (with a "name", or without) ask for."""
        record = self.record(family)
        return all(str(record.get(key)) == str(value) for key, value in settings.items())

    def differing(self, wanted: dict[str, PartRecord]) -> list[str]:
        """Return the families of which another part, or other settings, are wanted."""
        return [family for family, record in wanted.items() if self.record(family) != record]


def shown(record: PartRecord) -> str:
    """Return a part with its settings, for a message."""
    settings = ", ".join(f"{k} {v}" for k, v in record.items() if k != "name" and v not in ("", None))
    return f"{record['name']} ({settings})" if settings else str(record["name"])


def _split(record: PartRecord) -> tuple[str, PartRecord]:
    return str(record["name"]), {key: value for key, value in record.items() if key != "name"}


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
        candidates = None if self._is_small else self._thread.submit(self.store.near, vector, k)

        def wait() -> dict[int, float]:
            stored = self._catalogue.passages.vectors(None if candidates is None else candidates.result().tolist())
            cosines = [(passage, float(other @ vector)) for passage, other in stored.items()]
            return dict(sorted(cosines, key=lambda pair: (-pair[1], pair[0]))[:k])

        return wait

    @property
    def _is_small(self) -> bool:
        """Whether the catalogue's own vectors are all compared: opening a store takes longer."""
        return not self.is_remote and self._catalogue.counts()["passages"] * self.config.width <= SMALL

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
        self.store.close()
        del self.__dict__["store"]  # it is opened again when it is next needed

    def close(self) -> None:
        """Close the embedder and the store. Calling it twice is harmless."""
        if "_thread" in self.__dict__:
            self.__dict__.pop("_thread").shutdown()
        self.__dict__.pop("embed_query", None)
        for name in ("vectorizer", "store"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()


class Collection:
    """A collection of this machine, opened. Use it as a context manager.

    Raises UsageError, naming the collections that exist, when there is none of that name.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """Open a collection. folder: a version other than the current one."""
        version = folder or (CollectionFolder(name).current() if name else None)
        if version is None:
            known = ", ".join(collection_names()) or "none yet"
            what = f"there is no collection {name!r}; there are: {known}"
            raise UsageError(what, f"`settle index FOLDER --name {shell_line(name)}`")
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
            self.catalogue.settings.set("made", asdict(config))
        for family in config.differing(wanted):
            raise UsageError(
                f"{self.name} is made with {shown(config.record(family))} as its {family}, not {shown(wanted[family])}",
                f"index under another --name, or `settle index {self.name} --anew`",
            )
        return config


def create(name: str) -> Collection:
    """Return the collection of that name, made when there is none. Raises UsageError for a name that cannot be used."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a usable name", "letters, digits, dot, dash and underscore")
    folder = CollectionFolder(name)
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.current() is None:
        with folder.lock():
            for left in [*folder.versions(), *folder.unfinished()]:
                shutil.rmtree(left)  # of a collection that was half made or half deleted
            version = folder.next_version()
            version.mkdir()
            Catalogue(version / CATALOGUE).close()
            folder.publish(version)
    return Collection(name)


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Let this process alone change the collection inside. Raises RunError when another one does."""
    folder = CollectionFolder(name)
    with folder.lock():
        for version in folder.versions():
            if version != folder.current():
                discard(Collection(name, version))  # replaced by a process that died before it did this
        yield


@contextlib.contextmanager
def rebuilt(collection: Collection, parts: IndexParts) -> Iterator[Collection]:
    """Provide another version of a collection with the same roots, to be filled.

    When the block has ended it takes the place of the old one, which answers until then. A version that was left half
    done, made with the same parts, is resumed.
    """
    name, folder = collection.name, CollectionFolder(collection.name)
    version = folder.next_version()
    version.mkdir(exist_ok=True)
    new = Collection(name, version)
    if new.config and new.config.differing(parts.records()):
        discard(new)
        version.mkdir()
        new = Collection(name, version)
    with new:
        new.decide(parts)
        new.follow(collection.roots)
        yield new
    with exclusive(name):
        folder.publish(version)
    discard(collection)


def discard(collection: Collection) -> None:
    """Remove the files of this version, and what its store keeps elsewhere."""
    try:
        if collection.config and collection.vectors.is_remote:
            collection.vectors.store.drop()
    finally:
        collection.close()
        (collection.folder / CATALOGUE).unlink()  # without a catalogue it does not count, even if the rest fails
        shutil.rmtree(collection.folder)


def delete(name: str) -> None:
    """Remove a collection, a damaged one too; the documents stay where they are.

    Raises UsageError if there is none, DataError when a store elsewhere cannot be reached: then only what is kept there
    is left.
    """
    folder = CollectionFolder(name)
    if folder.current() is None:
        Collection(name)  # raises, naming the collections that exist
    with folder.lock():
        for version in [*folder.unfinished(), *folder.versions()]:
            try:
                collection = Collection(name, version)
            except DataError:
                shutil.rmtree(version)
            else:
                discard(collection)
    shutil.rmtree(folder.path)
