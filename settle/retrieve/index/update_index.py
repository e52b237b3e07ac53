"""Brings a collection up to date with its folders: reads what changed, cuts, embeds and commits it, some at a time.

A run that dies loses at most the documents it was working on; the next one goes on. A file is looked at before and
after it is read: what changed in between is read again the next time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from settle.base.errors import DataError
from settle.base.event_log import Events
from settle.base.events import Progress
from settle.documents.reader_pool import Read, read_all
from settle.documents.walk import FoundFile, sha256_of
from settle.retrieve.index.catalogue import Change, Known, digest
from settle.retrieve.index.changes import UNSURE, Work, compare
from settle.retrieve.index.collection import Collection

BATCH = 512  # new passages that are embedded and committed together
BATCH_SECONDS = 10.0  # a slow batch is committed earlier
COMPACT_SHARE = 0.1  # of the passages: so many removed ones are worth the work of giving their room back


@dataclass
class Report:
    """What an update did. failed: (path, why) of documents that are there and nothing could be read of, those of
    earlier updates too; kept: (root, why) of folders that cannot be seen now, whose documents stay; left_out: how many
    files for each reason; embedded: passages that were new. documents, passages: of the collection now.
    """

    added: int = 0
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    embedded: int = 0
    documents: int = 0
    passages: int = 0
    seconds: float = 0.0


def update(collection: Collection, events: Events) -> Report:
    """Reads what changed below the collection's roots. Raises RunError when another process does so already,
    ResourceError when the disk is full: what was committed is kept, and the next one goes on."""
    began = time.monotonic()
    with collection.writing():
        catalogue = collection.catalogue
        work = compare(catalogue, collection.roots, events)
        if work.new or work.gone or catalogue.loose() or catalogue.setting("unfinished"):
            catalogue.keep_setting("unfinished", True)
            _empty_if_damaged(collection)
            _remove_loose(collection)
            _mend(collection)
        catalogue.touch(work.touched)
        catalogue.move(work.moved)
        indexing = _Indexing(collection, work, events)
        indexing.run()
        for first in range(0, len(work.gone), BATCH):
            catalogue.commit((), removed=work.gone[first : first + BATCH])
        _tidy(collection, bool(work.new))
        catalogue.keep_setting("unfinished", False)
        catalogue.keep_setting("indexed", time.time())
        counts = catalogue.counts()
        return Report(
            added=indexing.added,
            changed=indexing.changed,
            moved=len(work.moved),
            deleted=len(work.gone),
            unchanged=work.unchanged,
            failed=sorted([*work.failed, *catalogue.failures()]),
            kept=work.kept,
            left_out=dict(work.left_out),
            embedded=indexing.embedded,
            documents=counts["documents"],
            passages=counts["passages"],
            seconds=time.monotonic() - began,
        )


class _Indexing:
    """New documents on their way into a collection."""

    def __init__(self, collection: Collection, work: Work, events: Events) -> None:
        self._collection, self._work, self._events = collection, work, events
        self._total = sum(found.size for found, _ in work.new)
        self._done = self.added = self.changed = self.embedded = 0

    def run(self) -> None:
        if not self._work.new:
            return
        batch: list[Change] = []
        held, size, since = 0, 0, time.monotonic()
        paths = ((Path(found.path), found.reader) for found, _ in self._work.new)
        for (found, is_known), read in zip(self._work.new, read_all(paths), strict=True):
            size += found.size
            change = self._change(found, read)
            if change is None:
                self._work.unchanged += is_known
                continue
            batch.append(change)
            held += len(change.chunks)
            self.changed += is_known
            self.added += not is_known
            if held >= BATCH or time.monotonic() - since > BATCH_SECONDS:
                self._commit(batch, size)
                batch, held, size, since = [], 0, 0, time.monotonic()
        self._commit(batch, size)

    def _change(self, found: FoundFile, read: Read) -> Change | None:
        """What became of a file; None for one that cannot be read now, as it has gone or its disk fails."""
        chunker, vectorizer = self._collection.chunker, self._collection.vectorizer
        try:
            sha, changed = sha256_of(found.path), self._work.stamp(found)
            status = Path(found.path).stat()
        except OSError as e:
            self._work.failed.append((found.path, f"cannot be read: {e.strerror}"))
            return None
        if (status.st_size, status.st_mtime_ns) != (found.size, found.changed):
            sha, changed = b"", UNSURE  # what was read may be neither what it was nor what it is
        chunks = list(chunker.cut(read.blocks, vectorizer.count, vectorizer.most))
        error = read.error or ("" if chunks else "no text in it")
        return Change(Known(found.path, found.size, changed, sha, _title(read), read.notes, error), chunks)

    def _commit(self, batch: Sequence[Change], size: int) -> None:
        """Embeds what is new in a batch and makes it count. size: bytes of its files."""
        catalogue, vectorizer = self._collection.catalogue, self._collection.vectorizer
        digests = [[digest(chunk) for chunk in change.chunks] for change in batch]
        flat = {d: c for change, of in zip(batch, digests, strict=True) for d, c in zip(of, change.chunks, strict=True)}
        ids = catalogue.ids_of(list(flat))
        new = [d for d in flat if d not in ids]
        if new:
            ids |= zip(new, catalogue.reserve(len(new)), strict=True)
        vectors: dict[int, np.ndarray] = {}
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            made = vectorizer.documents([flat[d].embedded for d in some])
            self._collection.vectors.add(np.array([ids[d] for d in some], np.int64), made)
            vectors |= zip((ids[d] for d in some), made, strict=True)
            self.embedded += len(some)
            self._tell(self._done + size * (first + len(some)) // (len(new) + 1))
        for change, of in zip(batch, digests, strict=True):
            change.ids = [ids[d] for d in of]
        catalogue.commit(batch, vectors)
        self._done += size
        self._tell(self._done)

    def _tell(self, done: int) -> None:
        detail = f"{self.embedded:,} passages"
        self._events.emit(Progress(what="index", done=done, total=self._total, unit="bytes", detail=detail))


def _empty_if_damaged(collection: Collection) -> None:
    """A store of this machine that cannot be read, as when a disk was full to its last byte, begins anew."""
    try:
        len(collection.vectors)
    except DataError:
        if collection.is_elsewhere:
            raise
        collection.empty_vectors()


def _mend(collection: Collection) -> None:
    """Gives the store again what it has lost: its files were damaged, or power was cut before they were on the disk."""
    catalogue = collection.catalogue
    if len(collection.vectors) >= catalogue.counts()["passages"]:
        return
    last = 0
    while page := catalogue.all_passages(last, BATCH):
        last = page[-1].id
        vectors = catalogue.vectors([passage.id for passage in page])
        collection.vectors.add(np.array(list(vectors), np.int64), np.stack(list(vectors.values())))


def _tidy(collection: Collection, grown: bool) -> None:
    """Forgets what does not count any more, and gives room back where that is worth the work."""
    catalogue = collection.catalogue
    removed = _remove_loose(collection)
    if removed or grown:
        collection.vectors.compact()
    if removed:
        removed += catalogue.setting("removed") or 0
        if removed > COMPACT_SHARE * catalogue.counts()["passages"]:
            catalogue.compact()
            removed = 0
        catalogue.keep_setting("removed", removed)


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
