"""Updates of a collection: read what changed in its folders, cut it into passages, embed and commit them.

Documents are committed in batches: a run that dies loses at most one, and the next run continues. A file's stamp is
compared before and after it is read; a file that changed in between is read again the next time. Followed folders are
brought up to date a moment after each change.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from settle.base.errors import DataError, ResourceError, SettleError, UsageError
from settle.base.event_log import Events
from settle.base.events import Progress, Warn
from settle.base.files import home
from settle.base.out_of_memory import missing_bytes
from settle.base.python_command import extra_command
from settle.documents.blocks import LEFT_OUT
from settle.documents.reader_pool import Read, read_all
from settle.documents.walk import FoundFile, path_text, sha256_of
from settle.retrieve.index.catalogue import DocumentChange, DocumentRecord, digest
from settle.retrieve.index.changes import UNSURE, Changes, find_changes
from settle.retrieve.index.collection import Collection, exclusive

if TYPE_CHECKING:
    from watchfiles import Change

BATCH = 512  # new passages that are embedded and committed together
BATCH_SECONDS = 10.0  # a slow batch is committed earlier
_LONGEST_TITLE = 200  # characters
COMPACT_SHARE = 0.1  # of the passages: when so many were removed, giving their room back is worth the work
_TICK_SECONDS = 2.0  # after which roots are examined that the system sends no notice of
_DEBOUNCE_SECONDS = 1.6  # changes within this time are taken together


@dataclass
class UpdateReport:
    """The result of an update."""

    added: int = 0  # documents that are new and could be read
    changed: int = 0
    moved: int = 0
    deleted: int = 0
    unchanged: int = 0  # that could be read
    failed: list[tuple[str, str]] = field(default_factory=list)  # path, why it could not be read, earlier too
    kept: list[tuple[str, str]] = field(default_factory=list)  # folders that cannot be seen now: their documents stay
    partly: list[tuple[str, str]] = field(default_factory=list)  # path and what was not read as it is meant, just now
    left_out: dict[str, int] = field(default_factory=dict)  # how many files for each reason
    left_out_paths: dict[str, list[str]] = field(default_factory=dict)  # the first of them
    embedded: int = 0  # passages that were new
    documents: int = 0  # of the collection now
    passages: int = 0
    seconds: float = 0.0


def update(collection: Collection, events: Events) -> UpdateReport:
    """Index what changed below the collection's roots.

    Raises RunError when another process does so already, ResourceError when the disk is full: what was committed is
    kept, and the next update continues.
    """
    began = time.monotonic()
    catalogue = collection.catalogue
    with exclusive(collection.name):
        changes = find_changes(catalogue, collection.roots, events)
        if changes.new or changes.gone or catalogue.ids.loose() or catalogue.settings.is_on("unfinished"):
            catalogue.settings.set("unfinished", True)
            _reset_damaged_store(collection)
            _remove_loose(collection)
            _restore_vectors(collection)
        catalogue.touch(changes.touched)
        catalogue.move(changes.moved)
        unread = {path for path, _ in catalogue.documents.failures()} - {file.text for file, _ in changes.new}
        indexed = _Indexer(collection, changes, events)
        indexed.run()
        for first in range(0, len(changes.gone), BATCH):
            catalogue.commit((), removed=changes.gone[first : first + BATCH])
        _tidy(collection, bool(changes.new))
        catalogue.settings.set("unfinished", False)
        catalogue.settings.set("indexed", time.time())
        counts, unused = catalogue.counts(), catalogue.documents.failures()
        failures = [(path, why) for path, why in unused if not why.startswith(LEFT_OUT)]
        for path, why in unused:
            if why.startswith(LEFT_OUT):
                changes.leave_out(why.removeprefix(LEFT_OUT), path)
        return UpdateReport(
            added=indexed.added,
            changed=indexed.changed,
            moved=len(changes.moved),
            deleted=len(changes.gone),
            unchanged=changes.unchanged - len(unread & {path for path, _ in unused}),
            failed=sorted([*changes.failed, *failures]),
            kept=changes.kept,
            partly=indexed.partly,
            left_out=dict(changes.left_out),
            left_out_paths=dict(changes.left_out_paths),
            embedded=indexed.embedded,
            documents=counts["documents"],
            passages=counts["passages"],
            seconds=time.monotonic() - began,
        )


class _Indexer:
    """Brings the new and changed documents into a collection."""

    def __init__(self, collection: Collection, changes: Changes, events: Events) -> None:
        self._collection, self._changes, self._events = collection, changes, events
        self._total = sum(file.size for file, _ in changes.new)
        self._done = self.added = self.changed = self.embedded = 0
        self.partly: list[tuple[str, str]] = []

    def run(self) -> None:
        if not self._changes.new:
            return
        batch: list[DocumentChange] = []
        chunks, size, since = 0, 0, time.monotonic()
        paths = ((Path(file.path), file.reader) for file, _ in self._changes.new)
        roots = {file.root for file, _ in self._changes.new}
        for (file, is_known), read in zip(self._changes.new, read_all(paths, roots=roots), strict=True):
            size += file.size
            change = self._change(file, read)
            if change is None:
                self._changes.unchanged += is_known
                continue
            batch.append(change)
            chunks += len(change.chunks)
            self.changed += is_known
            self.added += not is_known and not change.record.error
            if chunks >= BATCH or time.monotonic() - since > BATCH_SECONDS:
                self._commit(batch, size)
                batch, chunks, size, since = [], 0, 0, time.monotonic()
        self._commit(batch, size)

    def _change(self, file: FoundFile, read: Read) -> DocumentChange | None:
        """Return the document that a file became; None where the file has gone or its disk fails."""
        chunker, vectorizer = self._collection.chunker, self._collection.vectors.vectorizer
        try:
            sha, changed = sha256_of(file.path), self._changes.stamp(file)
            status = Path(file.path).stat()
        except OSError as e:
            self._changes.failed.append((file.text, f"cannot be read: {e.strerror}"))
            return None
        if (status.st_size, status.st_mtime_ns) != (file.size, file.changed):
            sha, changed = b"", UNSURE  # what was read may be neither the old content nor the new
        chunks = list(chunker.cut(read.blocks, vectorizer.count, vectorizer.most))
        error = read.error or ("" if chunks else "no text in it")
        heading = next((block for block in read.blocks if block.kind == "heading"), None)
        title = " ".join(heading.text.split())[:_LONGEST_TITLE] if heading else path_text(read.path.name)
        if notes := [note for note in read.notes if not note.startswith(LEFT_OUT)]:
            self.partly.append((file.text, notes[0] + (f", and {len(notes) - 1:,} more" if len(notes) > 1 else "")))
        record = DocumentRecord(file.text, file.size, changed, sha, title, read.notes, error)
        return DocumentChange(record, chunks)

    def _commit(self, batch: Sequence[DocumentChange], size: int) -> None:
        """Embed what is new in a batch and make it count. size: bytes of its files."""
        catalogue = self._collection.catalogue
        digests = [[digest(chunk) for chunk in change.chunks] for change in batch]
        pairs = zip(batch, digests, strict=True)
        chunks = {d: chunk for change, of in pairs for d, chunk in zip(of, change.chunks, strict=True)}
        ids = catalogue.passages.ids_of(list(chunks))
        new = [d for d in chunks if d not in ids]
        if new:
            ids |= zip(new, catalogue.ids.reserve(len(new)), strict=True)
        vectors: dict[int, np.ndarray] = {}
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            embedded = self._embedded([chunks[d].embedded for d in some])
            self._collection.vectors.store.add(np.array([ids[d] for d in some], np.int64), embedded)
            vectors |= zip((ids[d] for d in some), embedded, strict=True)
            self.embedded += len(some)
            self._report(self._done + size * (first + len(some)) // (len(new) + 1))
        for change, of in zip(batch, digests, strict=True):
            change.ids = [ids[d] for d in of]
        catalogue.commit(batch, vectors)
        self._done += size
        self._report(self._done)

    def _embedded(self, texts: Sequence[str]) -> np.ndarray:
        """Return the vectors of texts. Raises ResourceError when memory runs out."""
        try:
            return self._collection.vectors.vectorizer.documents(texts)
        except (MemoryError, RuntimeError) as e:
            if missing_bytes(e) is None:
                raise
            fix = "close other programs, or allow more (`ulimit -v`); what was indexed is kept"
            raise ResourceError("out of memory while passages were embedded", fix) from e

    def _report(self, done: int) -> None:
        detail = f"{self.embedded:,} passages"
        self._events.emit(Progress(what="index", done=done, total=self._total, unit="bytes", detail=detail))


def _reset_damaged_store(collection: Collection) -> None:
    """Create a local store again that cannot be read, as after a disk that was full to its last byte."""
    try:
        len(collection.vectors.store)
    except DataError:
        if collection.vectors.is_remote:
            raise
        collection.vectors.reset()


def _restore_vectors(collection: Collection) -> None:
    """Store vectors again that are lost: files were damaged, or power was cut before they were on the disk."""
    catalogue, store = collection.catalogue, collection.vectors.store
    if len(store) >= catalogue.counts()["passages"]:
        return
    last = 0
    while page := catalogue.passages.page(last, BATCH):
        last = page[-1].id
        vectors = catalogue.passages.vectors([passage.id for passage in page])
        store.add(np.array(list(vectors), np.int64), np.stack(list(vectors.values())))


def _tidy(collection: Collection, has_grown: bool) -> None:
    """Remove what no longer counts, and return room where that is worth the work."""
    catalogue = collection.catalogue
    removed = _remove_loose(collection)
    if removed or has_grown:
        collection.vectors.store.compact()
    if removed:
        removed += catalogue.settings.get("removed", int) or 0
        if removed > COMPACT_SHARE * catalogue.counts()["passages"]:
            catalogue.compact()
            removed = 0
        catalogue.settings.set("removed", removed)


def _remove_loose(collection: Collection) -> int:
    """Remove from the store what does not count, and return how many vectors that were."""
    loose = collection.catalogue.ids.loose()
    if loose:
        collection.vectors.store.remove(loose)
        collection.catalogue.ids.clear_loose(loose)
    return len(loose)


def follow(collection: Collection, events: Events, on_report: Callable[[UpdateReport], None]) -> NoReturn:
    """Update the collection whenever something changes, and pass each report on; ends with KeyboardInterrupt.

    What cannot be done now, as on a full disk or while another process indexes, is reported once and tried again.
    Raises UsageError when the library is missing, ResourceError when the system cannot watch so many folders.
    """
    last_error = ""
    while True:
        roots = collection.roots
        states, is_due = _states(roots), True  # what happened before the watch began
        for has_changed in _changes([root for root in roots if root.is_dir()]):
            if is_due or has_changed:
                try:
                    on_report(update(collection, events))
                    is_due, last_error = False, ""
                except SettleError as e:
                    is_due = True
                    if e.what != last_error:
                        events.emit(Warn(text=f"{e.what}; trying again"))
                        last_error = e.what
            if collection.roots != roots or _states(roots) != states:
                break


def _states(roots: Sequence[Path]) -> list[bool | tuple[int, int]]:
    """Return the state of each root itself: whether a folder exists, or the size and time of a file."""
    stats = {root: root.stat() for root in roots if root.is_file()}
    return [(s.st_size, s.st_mtime_ns) if (s := stats.get(root)) else root.is_dir() for root in roots]


def _changes(folders: Sequence[Path]) -> Iterator[bool]:
    """Yield at every change and at every tick whether something has changed below the folders."""
    try:
        from watchfiles import DefaultFilter, watch
    except ImportError:
        raise UsageError("following folders needs watchfiles", extra_command("rag")) from None
    if not folders:  # only files, or disks that are not mounted
        while True:
            time.sleep(_TICK_SECONDS)
            yield False
    default_filter = DefaultFilter(ignore_paths=[home()])

    def is_relevant(change: "Change", path: str) -> bool:
        below = next((Path(path).relative_to(f) for f in folders if Path(path).is_relative_to(f)), Path())
        return default_filter(change, path) and not any(part.startswith(".") for part in below.parts)

    try:
        changes = watch(
            *folders,
            watch_filter=is_relevant,
            debounce=int(_DEBOUNCE_SECONDS * 1000),
            rust_timeout=int(_TICK_SECONDS * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        yield from map(bool, changes)
    except OSError as e:
        fix = "follow fewer folders, or allow the system to watch more of them (fs.inotify.max_user_watches)"
        raise ResourceError(f"the folders cannot be watched: {e}", fix) from None
