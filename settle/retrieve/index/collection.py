"""A collection: folders of documents, indexed under a name.

    $SETTLE_HOME/collections/<name>/<number>/    the highest number counts; `.<number>.part` is one that is being made

Indexing changes a collection where it lies, some documents at a time. Making it anew fills another folder beside it,
whose renaming puts it in the old one's place.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from settle.base.errors import DataError, RunError, UsageError
from settle.base.registry import Part, part, part_names
from settle.base.run import NAME, fsync_folder, home
from settle.retrieve.index.catalogue import Catalogue
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.embedders import Embedder, Vectorizer
from settle.retrieve.index.stores import Store, Vectors

DEFAULTS = {"embedder": "minilm", "store": "lancedb", "chunker": "structure"}
_CATALOGUE = "catalogue.sqlite"


@dataclass(frozen=True)
class Made:
    """How a collection is made, kept with it. embedder, store, chunker: each the name of a part with its settings.
    identity: of the embedder, whose vectors are the only ones that can be compared; width: of those. table: what the
    store calls them, which nobody else does.
    """

    embedder: dict[str, Any]
    store: dict[str, Any]
    chunker: dict[str, Any]
    identity: str
    width: int
    table: str

    def differing(self, wanted: dict[str, dict[str, Any]]) -> list[str]:
        """Those of the parts (by family) that are wanted otherwise."""
        return [family for family, told in wanted.items() if getattr(self, family) != told]


class Collection:
    """A collection on this machine; opened, not made. Use it as a context manager.

    Raises UsageError naming the collections there are when there is none of that name.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        found = folder or _newest(place_of(name))
        if found is None:
            known = ", ".join(names()) or "none yet"
            raise UsageError(
                f"there is no collection {name!r}; there are: {known}", f"settle index FOLDER --name {name}"
            )
        self.name, self.folder = name, found
        self.catalogue = Catalogue(found / _CATALOGUE)

    @classmethod
    def create(cls, name: str) -> Self:
        """The collection of that name, made when there is none."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not a usable name", "letters, digits, dot, dash and underscore")
        place = place_of(name)
        place.mkdir(parents=True, exist_ok=True)
        if _newest(place) is None:
            with _alone(name):
                for left in [*_numbered(place), *place.glob(".*.part")]:
                    shutil.rmtree(left)  # of one that was half made or half deleted
                part = place / ".1.part"
                part.mkdir()
                Catalogue(part / _CATALOGUE).close()
                _put_in_place(part)
        return cls(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what was opened. Calling it twice is harmless."""
        if "_beside" in self.__dict__:
            self.__dict__.pop("_beside").shutdown()
        self.__dict__.pop("meaning", None)
        for opened in ("vectorizer", "vectors"):
            if opened in self.__dict__:
                self.__dict__.pop(opened).close()
        self.catalogue.close()

    @property
    def made(self) -> Made | None:
        """How it is made, or None before anything was indexed."""
        said = self.catalogue.setting("made")
        return Made(**said) if said else None

    @property
    def roots(self) -> list[Path]:
        """The folders and files that it follows."""
        return [Path(root) for root in self.catalogue.setting("roots") or []]

    def follow(self, roots: Sequence[Path]) -> None:
        """From the next indexing on these count, and no others."""
        self.catalogue.keep_setting("roots", [str(root) for root in dict.fromkeys(roots)])

    @property
    def is_replaced(self) -> bool:
        """Whether another has taken its place, or it was deleted: it answers as it was when it was opened."""
        return _newest(place_of(self.name)) != self.folder

    @property
    def num_bytes(self) -> int:
        """On the disk here."""
        total = 0
        for path in self.folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # put together with others by another process
                total += path.stat().st_size if path.is_file() else 0
        return total

    def decide(self, embedder: Embedder, store: Store, chunker: Chunker) -> Made:
        """Keeps how the collection is made, from its first indexing on. Raises UsageError when it is made otherwise."""
        wanted = _wanted(embedder, store, chunker)
        made = self.made
        if made is None:
            self.__dict__["vectorizer"] = opened = embedder.open()
            table = f"{self.name}-{secrets.token_hex(4)}"
            made = Made(**wanted, identity=opened.identity, width=opened.width, table=table)
            self.catalogue.keep_setting("made", asdict(made))
        for family in made.differing(wanted):
            raise UsageError(
                f"{self.name} is made with {_shown(getattr(made, family))} as its {family}, not"
                f" {_shown(wanted[family])}",
                f"index under another --name, or `settle index {self.name} --anew`",
            )
        return made

    @contextlib.contextmanager
    def renewed(self, embedder: Embedder, store: Store, chunker: Chunker) -> Iterator[Self]:
        """Another collection of the same roots, to be filled. When the block has ended it takes this one's place, which
        answers until then. One that was left half done, made with the same parts, is gone on with.
        """
        beside = self.folder.with_name(f".{_number(self.folder) + 1}.part")
        beside.mkdir(exist_ok=True)
        new = type(self)(self.name, beside)
        if new.made and new.made.differing(_wanted(embedder, store, chunker)):
            new.discard()
            beside.mkdir()
            new = type(self)(self.name, beside)
        with new:
            new.decide(embedder, store, chunker)
            new.follow(self.roots)
            yield new
        with self.writing():
            _put_in_place(beside)
        self.discard()

    @cached_property
    def vectorizer(self) -> Vectorizer:
        """The embedder it was made with, loaded. Raises DataError when that gives other vectors now."""
        made = self._made()
        opened: Vectorizer = _part("embedders", made.embedder).open()
        if opened.identity != made.identity:
            opened.close()
            raise DataError(
                f"{self.name} was made with another version of {made.embedder['name']}: its vectors cannot be compared",
                f"`settle index {self.name} --anew` makes it again",
            )
        return opened

    @cached_property
    def meaning(self) -> Callable[[str], np.ndarray]:
        """A question's float32 (width,) vector of length 1. The last ones are kept: whoever searches, judges or quotes
        asks for the same."""
        return lru_cache(64)(self.vectorizer.query)

    @cached_property
    def vectors(self) -> Vectors:
        """The store it was made with, opened."""
        made = self._made()
        opened: Vectors = _part("stores", made.store).open(self.folder, made.table, made.width)
        return opened

    @property
    def is_elsewhere(self) -> bool:
        """Whether its vectors are kept at a server or an object store."""
        return bool(self._made().store["url"])

    def empty_vectors(self) -> None:
        """Begins the store anew, with nothing in it."""
        self.vectors.drop()
        self.__dict__.pop("vectors").close()

    def seek(self, vector: np.ndarray, k: int) -> Callable[[], dict[int, float]]:
        """Begins to look for the k passages nearest to a float32 (width,) vector of length 1. Calling what it returns
        waits for them: the cosine by passage, the nearest first.

        Within a snapshot of the catalogue they are those of the snapshot: what it counts was in the store before.
        """
        begun = self._beside.submit(self.vectors.near, vector, k)

        def found() -> dict[int, float]:
            there = self.catalogue.vectors(begun.result().tolist())
            cosines = [(id, float(kept @ vector)) for id, kept in there.items()]
            return dict(sorted(cosines, key=lambda found: (-found[1], found[0]))[:k])

        return found

    @cached_property
    def _beside(self) -> ThreadPoolExecutor:
        """The store is asked here while the catalogue is."""
        return ThreadPoolExecutor(1, "settle-near")

    @property
    def chunker(self) -> Chunker:
        found: Chunker = _part("chunkers", self._made().chunker)
        return found

    def _made(self) -> Made:
        made = self.made
        if made is None:
            raise UsageError(f"nothing is indexed in {self.name} yet", f"settle index FOLDER --name {self.name}")
        return made

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time changes a collection. Raises RunError when another does."""
        with _alone(self.name):
            place = place_of(self.name)
            for folder in _numbered(place):
                if folder != _newest(place):
                    type(self)(self.name, folder).discard()  # replaced by a process that died before it did this
            yield

    def discard(self) -> None:
        """Removes its files, and what its store keeps elsewhere."""
        made = self.made
        try:
            if made and self.is_elsewhere:
                self.vectors.drop()
        finally:
            self.close()
            (self.folder / _CATALOGUE).unlink()  # what has none counts no more, however far the rest comes
            shutil.rmtree(self.folder)


def delete(name: str) -> None:
    """Removes a collection, a damaged one too; the documents stay where they are. Raises UsageError if there is none,
    DataError when a store elsewhere cannot be reached: then only what it keeps there is left."""
    place = place_of(name)
    if _newest(place) is None:
        Collection(name)  # says which there are
    with _alone(name):
        for folder in [*place.glob(".*.part"), *_numbered(place)]:
            try:
                opened = Collection(name, folder)
            except DataError:
                shutil.rmtree(folder)
            else:
                opened.discard()
    shutil.rmtree(place)


def place_of(name: str) -> Path:
    """Where a collection lies."""
    return home() / "collections" / name


def names() -> list[str]:
    """The collections of this machine."""
    folder = home() / "collections"
    return sorted(p.name for p in folder.iterdir() if _newest(p)) if folder.is_dir() else []


def _numbered(place: Path) -> list[Path]:
    """Folders of a collection that count or have counted, the oldest first."""
    return sorted(place.glob("[0-9]*"), key=_number)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix(".").removesuffix(".part"))


def _newest(place: Path) -> Path | None:
    return next((p for p in reversed(_numbered(place)) if (p / _CATALOGUE).is_file()), None)


def _put_in_place(part: Path) -> None:
    """From here on this folder is the collection."""
    part.rename(part.with_name(str(_number(part))))
    fsync_folder(part.parent)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    try:
        with FileLock(place_of(name) / "lock", timeout=0):
            yield
    except Timeout:
        raise RunError(f"{name} is being indexed by another process", "wait for it, or end it") from None


def _wanted(embedder: Embedder, store: Store, chunker: Chunker) -> dict[str, dict[str, Any]]:
    given = {"embedder": embedder, "store": store, "chunker": chunker}
    return {
        family: {"name": _name_of(family, thing), **thing.model_dump(mode="json")} for family, thing in given.items()
    }


def _name_of(family: str, thing: Part) -> str:
    known = part_names(f"retrieve/index/{family}s")
    likely = type(thing).__module__.rsplit(".", 1)[-1]  # asked first, as others may take seconds to load
    names = sorted(known, key=lambda name: name != likely)
    return next(name for name in names if part(f"retrieve/index/{family}s", name) is type(thing))


def _shown(told: dict[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in told.items() if k != "name" and v not in ("", None))
    return f"{told['name']} ({settings})" if settings else str(told["name"])


def _part(family: str, told: dict[str, Any]) -> Any:
    settings = {k: v for k, v in told.items() if k != "name"}
    return part(f"retrieve/index/{family}", told["name"])(**settings)
