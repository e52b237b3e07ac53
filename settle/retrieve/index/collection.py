"""A collection: folders of documents, indexed under a name. `lifecycle.py` makes, rebuilds and deletes them."""

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from settle.base.errors import UsageError
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.chunkers import Chunker
from settle.retrieve.index.collection_folder import CATALOGUE, CollectionFolder, collection_names
from settle.retrieve.index.config import IndexConfig, IndexParts, shown
from settle.retrieve.index.vector_index import VectorIndex


class Collection:
    """A collection of this machine, opened. Use it as a context manager.

    Raises UsageError, naming the collections that exist, when there is none of that name.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        """folder: a version other than the current one."""
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
        """Ends what was opened. Calling it twice is harmless."""
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
        """Sets the folders and files that it follows from the next indexing on."""
        self.catalogue.settings.set("roots", [str(root) for root in dict.fromkeys(roots)])

    @property
    def is_replaced(self) -> bool:
        """Whether it was rebuilt or deleted since it was opened; it answers as it was then."""
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
        """Stores how the collection is made, at its first indexing. Raises UsageError when it is made otherwise."""
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
