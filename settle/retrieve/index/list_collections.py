"""The collections of this machine as a table, and their status: what is not indexed, and what changed since."""

import time
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Warn
from settle.retrieve.index.changes import find_changes
from settle.retrieve.index.collection import Collection, collection_names

COLUMNS = ("name", "documents", "passages", "size", "age", "embedder", "follows")
STATUS_COLUMNS = (*COLUMNS[:3], "not read", "new", "changed", "gone", "age", "follows", "size", "embedder")
MOST_SHOWN = 30  # documents that could not be read; --json has them all


class FileFault(TypedDict):
    """A file or folder, and why nothing of it is read."""

    path: str
    why: str


class CollectionFacts(TypedDict):
    """A collection as it is listed, and its status."""

    name: str
    documents: int
    passages: int
    bytes: int  # on this machine's disk
    age: float | None  # seconds since it was last brought up to date, None if it never was
    embedder: str
    roots: list[str]
    failed: NotRequired[list[FileFault]]  # documents that could not be read, or that were left out, and why
    left_out: NotRequired[list[FileFault]]  # the first files that no reader is for, by reason, and how many more
    unseen: NotRequired[list[FileFault]]  # folders that cannot be seen now
    # numbers of files that the next `settle index NAME` adds, reads again and removes
    new: NotRequired[int]
    changed: NotRequired[int]
    gone: NotRequired[int]


def list_collections(events: Events) -> None:
    """Emit every collection with its size, its age and its folders; a damaged one as a warning."""
    collections = _all(collection_names(), False, events)
    rows = [
        [c["name"], c["documents"], c["passages"], {"value": c["bytes"], "unit": "bytes"},
         {"value": c["age"], "unit": "s"}, c["embedder"], ", ".join(c["roots"])]
        for c in collections
    ]  # fmt: skip
    hint = 'ask one: `settle ask NAME "…"`' if collections else "no collections yet; make one: `settle index FOLDER`"
    events.emit(Listing(columns=COLUMNS, rows=rows, note=hint))
    events.emit(ResultReady(result={"collections": collections}))


def list_status(names: Sequence[str], events: Events) -> None:
    """Emit what could not be read of these collections, or all, and what changed in their folders since.

    Changes nothing.
    """
    collections = _all(names or collection_names(), True, events)
    rows = [
        [c["name"], c["documents"], c["passages"], len(c["failed"]), c["new"], c["changed"], c["gone"],
         {"value": c["age"], "unit": "s"}, ", ".join(c["roots"]), {"value": c["bytes"], "unit": "bytes"}, c["embedder"]]
        for c in collections
    ]  # fmt: skip
    events.emit(Listing(columns=STATUS_COLUMNS, rows=rows, note="`settle index NAME` brings one up to date"))
    faults = [fault for c in collections for fault in (*c["unseen"], *c["failed"], *c["left_out"])]
    if faults:
        more = f"{len(faults) - MOST_SHOWN:,} more; --json has them all" if len(faults) > MOST_SHOWN else ""
        shown = [[fault["path"], fault["why"]] for fault in faults[:MOST_SHOWN]]
        events.emit(Listing(title="not indexed", columns=("file", "why"), rows=shown, note=more))
    events.emit(ResultReady(result={"collections": collections}))


def _all(names: Sequence[str], with_status: bool, events: Events) -> list[CollectionFacts]:
    collections: list[CollectionFacts] = []
    for name in names:
        try:
            with Collection(name) as collection:
                collections.append(_facts(collection))
                if with_status:
                    _add_status(collections[-1], collection, events)
        except SettleError as e:
            if name not in collection_names():
                raise
            events.emit(Warn(text=f"{name}: {e.what}"))
    return collections


def _facts(collection: Collection) -> CollectionFacts:
    counts, config = collection.catalogue.counts(), collection.config
    indexed = collection.catalogue.settings.get("indexed", float)
    return {
        "name": collection.name,
        "documents": counts["documents"],
        "passages": counts["passages"],
        "bytes": collection.num_bytes,
        "age": time.time() - indexed if indexed else None,
        "embedder": str(config.embedder["name"]) if config else "",
        "roots": [str(root) for root in collection.roots],
    }


def _add_status(facts: CollectionFacts, collection: Collection, events: Events) -> None:
    changes = find_changes(collection.catalogue, collection.roots, events)
    known = [is_known for _, is_known in changes.new]
    failed = dict(collection.catalogue.documents.failures()) | dict(changes.failed)
    facts["failed"] = [{"path": path, "why": why} for path, why in failed.items()]
    facts["left_out"] = [{"path": _named(paths, changes.left_out[why]), "why": why}
                         for why, paths in changes.left_out_paths.items()]  # fmt: skip
    facts["unseen"] = [{"path": root, "why": why} for root, why in changes.kept]
    facts["new"], facts["changed"] = known.count(False), known.count(True) + len(changes.moved)
    facts["gone"] = len(changes.gone)


def _named(paths: Sequence[str], number: int) -> str:
    return ", ".join(paths) + (f" and {number - len(paths):,} more" if number > len(paths) else "")
