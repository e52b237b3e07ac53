"""The collections of this machine as a table."""

import time
from typing import TypedDict

from settle.base.errors import SettleError
from settle.base.event_log import Events
from settle.base.events import Listing, ResultReady, Warn
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.collection_folder import collection_names


class CollectionFacts(TypedDict):
    """bytes: on this machine's disk; age: seconds since it was last brought up to date, None if it never was."""

    name: str
    documents: int
    passages: int
    bytes: int
    age: float | None
    embedder: str
    roots: list[str]


def list_collections(events: Events) -> None:
    """Emits every collection with its size, its age and its folders; a damaged one as a warning."""
    collections: list[CollectionFacts] = []
    for name in collection_names():
        try:
            with Collection(name) as collection:
                collections.append(_facts(collection))
        except SettleError as e:
            events.emit(Warn(text=f"{name}: {e.what}"))
    rows = [
        [
            facts["name"],
            facts["documents"],
            facts["passages"],
            {"value": facts["bytes"], "unit": "bytes"},
            {"value": facts["age"], "unit": "s"},
            facts["embedder"],
            ", ".join(facts["roots"]),
        ]
        for facts in collections
    ]
    hint = 'ask one: `settle ask NAME "…"`' if collections else "no collections yet; make one: `settle index FOLDER`"
    columns = ("name", "documents", "passages", "size", "age", "embedder", "follows")
    events.emit(Listing(columns=columns, rows=rows, note=hint))
    events.emit(ResultReady(result={"collections": collections}))


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
