"""The life of a collection: made, changed by one process at a time, rebuilt in a new version, and deleted."""

import contextlib
import shutil
from collections.abc import Iterator

from settle.base.errors import DataError, UsageError
from settle.base.run import NAME
from settle.retrieve.index.catalogue.catalogue import Catalogue
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.collection_folder import CATALOGUE, CollectionFolder
from settle.retrieve.index.config import IndexParts


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
