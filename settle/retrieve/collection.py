"""A collection: folders of documents, indexed under a name."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from settle.base.errors import DataError, RunError, UsageError
from settle.base.registry import part
from settle.base.run import NAME, home
from settle.retrieve.catalogue import Catalogue
from settle.retrieve.chunkers import Chunker
from settle.retrieve.embedders import Embedder, Vectorizer
from settle.retrieve.stores import Store, Vectors

DEFAULTS = {"embedder": "minilm", "store": "lancedb", "chunker": "structure"}


@dataclass(frozen=True)
class Made:
    """How a collection is made, kept with it. embedder, store, chunker: each the name of a part with its settings.
    identity: of the embedder, whose vectors are the only ones that can be compared; width: of those.
    """

    embedder: dict[str, Any]
    store: dict[str, Any]
    chunker: dict[str, Any]
    identity: str
    width: int


class Collection:
    """A collection on this machine; opened, not made. Use it as a context manager.

    Raises UsageError naming the collections there are when there is none of that name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = folder_of(name)
        if not (self.folder / "catalogue.sqlite").is_file():
            known = ", ".join(names()) or "none yet"
            raise UsageError(
                f"there is no collection {name!r}; there are: {known}", f"settle index FOLDER --name {name}"
            )
        self.catalogue = Catalogue(self.folder / "catalogue.sqlite")

    @classmethod
    def create(cls, name: str) -> Self:
        """The collection of that name, made when there is none."""
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not a usable name", "letters, digits, dot, dash and underscore")
        folder = folder_of(name)
        folder.mkdir(parents=True, exist_ok=True)
        Catalogue(folder / "catalogue.sqlite").close()
        return cls(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what was opened. Calling it twice is harmless."""
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

    def decide(self, embedder: Embedder, store: Store, chunker: Chunker) -> Made:
        """Keeps how the collection is made, from its first indexing on. Raises UsageError when it is made otherwise."""
        told = {"embedder": _told(embedder), "store": _told(store), "chunker": _told(chunker)}
        made = self.made
        if made is None:
            self.__dict__["vectorizer"] = opened = embedder.open()
            made = Made(**told, identity=opened.identity, width=opened.width)
            self.catalogue.keep_setting("made", asdict(made))
            return made
        for kind, wanted in told.items():
            if getattr(made, kind) != wanted:
                raise UsageError(
                    f"{self.name} is made with {_shown(getattr(made, kind))} as its {kind}, not {_shown(wanted)}",
                    f"index under another --name, or `settle index {self.name} --anew`",
                )
        return made

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
    def vectors(self) -> Vectors:
        """The store it was made with, opened."""
        made = self._made()
        opened: Vectors = _part("stores", made.store).open(self.folder, self.name, made.width)
        return opened

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
        lock = FileLock(self.folder / "lock", timeout=0)
        try:
            with lock:
                yield
        except Timeout:
            raise RunError(f"{self.name} is being indexed by another process", "wait for it, or end it") from None

    def delete(self) -> None:
        """Removes the collection; the documents stay where they are."""
        with self.writing():
            self.close()
            shutil.rmtree(self.folder)


def folder_of(name: str) -> Path:
    """Where a collection lies."""
    return home() / "collections" / name


def names() -> list[str]:
    """The collections of this machine."""
    folder = home() / "collections"
    return sorted(p.parent.name for p in folder.glob("*/catalogue.sqlite")) if folder.is_dir() else []


def _told(thing: Embedder | Store | Chunker) -> dict[str, Any]:
    return {"name": type(thing).__module__.rsplit(".", 1)[-1], **thing.model_dump(mode="json")}


def _shown(told: dict[str, Any]) -> str:
    settings = ", ".join(f"{k} {v}" for k, v in told.items() if k != "name" and v not in ("", None))
    return f"{told['name']} ({settings})" if settings else str(told["name"])


def _part(family: str, told: dict[str, Any]) -> Any:
    settings = {k: v for k, v in told.items() if k != "name"}
    return part(f"retrieve/{family}", told["name"])(**settings)
