"""Brings a collection up to date with its folders: reads what changed, cuts, embeds and commits it, some at a time.

A run that dies loses at most the documents it was working on; the next one goes on.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from settle.base.events import Events
from settle.retrieve.catalogue import Change, Known, digest
from settle.retrieve.collection import Collection
from settle.retrieve.document import Chunk
from settle.retrieve.folders import Found, LeftOut, sha256_of, walk
from settle.retrieve.reading import Read, read_all

BATCH = 512  # new passages that are embedded and committed together
BATCH_SECONDS = 10.0  # a slow batch is committed earlier
COMPACT_SHARE = 0.1  # of the passages: so many removed ones are worth the work of giving their room back


@dataclass
class Report:
    """What an update did. failed: (path, why) of changed documents that nothing could be read of."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    left_out: LeftOut = field(default_factory=LeftOut)
    embedded: int = 0
    chunks: int = 0
    seconds: float = 0.0


@dataclass
class _Work:
    """What differs between the folders and the catalogue."""

    new: list[tuple[Found, bytes]] = field(default_factory=list)
    moved: list[tuple[str, Known]] = field(default_factory=list)
    touched: list[Known] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


def update(collection: Collection, events: Events) -> Report:
    """Reads what changed below the collection's roots. Raises RunError when another process does so already."""
    report = Report()
    began = time.monotonic()
    with collection.writing():
        _remove_loose(collection)
        work = _compare(collection, report)
        catalogue = collection.catalogue
        catalogue.touch(work.touched)
        catalogue.move(work.moved)
        report.moved, report.deleted = len(work.moved), len(work.gone)
        if work.new:
            _index(collection, work.new, report, events)
        for first in range(0, len(work.gone), BATCH):
            catalogue.commit((), work.gone[first : first + BATCH])
        removed = _remove_loose(collection)
        if removed > COMPACT_SHARE * max(1, catalogue.counts()["passages"]):
            collection.vectors.compact()
            catalogue.compact()
    report.seconds = time.monotonic() - began
    return report


def _compare(collection: Collection, report: Report) -> _Work:
    work = _Work()
    known = {k.path: k for k in collection.catalogue.known()}
    unread: list[Found] = []
    for found in walk(collection.roots, report.left_out):
        before = known.get(found.path)
        if before and (before.size, before.changed) == (found.size, found.changed):
            del known[found.path]
            report.unchanged += 1
        else:
            unread.append(found)
    gone = {k.sha256: k for k in known.values() if not Path(k.path).exists()}
    for found in unread:
        try:
            sha = sha256_of(found.path)
        except OSError as e:
            report.failed.append((found.path, f"cannot be read: {e.strerror}"))
            known.pop(found.path, None)
            continue
        before = known.pop(found.path, None)
        now = Known(found.path, found.root, found.size, found.changed, sha)
        if before and before.sha256 == sha:
            work.touched.append(now)
            report.unchanged += 1
        elif before is None and sha in gone:
            old = gone.pop(sha)
            known.pop(old.path, None)
            work.moved.append((old.path, now))
        else:
            work.new.append((found, sha))
            report.changed += before is not None
            report.added += before is None
    work.gone = list(known)
    return work


def _index(collection: Collection, new: Sequence[tuple[Found, bytes]], report: Report, events: Events) -> None:
    batch: list[tuple[Known, list[Chunk]]] = []
    held, since = 0, time.monotonic()
    total, done = sum(found.size for found, _ in new), 0
    chunker, vectorizer = collection.chunker, collection.vectorizer
    for (found, sha), read in zip(new, read_all((Path(f.path), f.reader) for f, _ in new), strict=True):
        chunks = list(chunker.cut(read.blocks, vectorizer.count, vectorizer.most))
        error = read.error or ("" if chunks else "no text in it")
        if error:
            report.failed.append((found.path, error))
        known = Known(found.path, found.root, found.size, found.changed, sha, _title(read), read.notes, error)
        batch.append((known, chunks))
        held += len(chunks)
        done += found.size
        if held >= BATCH or time.monotonic() - since > BATCH_SECONDS:
            report.embedded += _commit(collection, batch)
            report.chunks += held
            batch, held, since = [], 0, time.monotonic()
            events.emit("progress", what="index", done=done, total=total, unit="B", detail=f"{report.chunks:,} chunks")
    report.embedded += _commit(collection, batch)
    report.chunks += held
    events.emit("progress", what="index", done=total, total=total, unit="B", detail=f"{report.chunks:,} chunks")


def _commit(collection: Collection, batch: Sequence[tuple[Known, list[Chunk]]]) -> int:
    """Embeds what is new in a batch and makes it count. The number of passages that were embedded."""
    catalogue = collection.catalogue
    digests = [[digest(chunk) for chunk in chunks] for _, chunks in batch]
    flat = {
        d: chunk for (_, chunks), of in zip(batch, digests, strict=True) for d, chunk in zip(of, chunks, strict=True)
    }
    ids = catalogue.ids_of(list(flat))
    new = [d for d in flat if d not in ids]
    if new:
        ids |= zip(new, catalogue.reserve(len(new)), strict=True)
        for some in _slices(new):
            vectors = collection.vectorizer.documents([flat[d].embedded for d in some])
            collection.vectors.add(np.array([ids[d] for d in some], np.int64), vectors)
    changes = [Change(known, chunks, [ids[d] for d in of]) for (known, chunks), of in zip(batch, digests, strict=True)]
    catalogue.commit(changes)
    return len(new)


def _slices(values: list[bytes]) -> Iterator[list[bytes]]:
    for first in range(0, len(values), BATCH):
        yield values[first : first + BATCH]


def _remove_loose(collection: Collection) -> int:
    """Removes from the store what does not count; how many vectors that were."""
    loose = collection.catalogue.loose()
    if loose:
        collection.vectors.remove(loose)
        collection.catalogue.tighten(loose)
    return len(loose)


def _title(read: Read) -> str:
    first = next((b for b in read.blocks if b.kind == "heading"), None)
    return " ".join(first.text.split())[:200] if first else read.path.name
