"""An index follows its folders, whatever happens to them or to it."""

import pytest

from settle.base.events import Events
from settle.base.registry import part
from settle.retrieve.chunkers.structure import Structure
from settle.retrieve.collection import Collection
from settle.retrieve.indexing import update
from settle.retrieve.search import search
from settle.retrieve.stores.lancedb import Lancedb

TEXTS = {
    "keys.md": "# Keys\n\nTo rotate the key, run the rotation job and restart the gateway.\n",
    "food.md": "# Lunch\n\nThe kitchen opens at noon and serves soup with bread.\n",
    "notes.txt": "The lighthouse keeper wrote every storm into a green notebook.\n",
}


@pytest.fixture
def collection(home, folder):
    """A collection of three documents, not indexed yet."""
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    with Collection.create("docs") as made:
        made.decide(part("retrieve/embedders", "hashed")(), Lancedb(), Structure())
        made.follow([folder])
        yield made


def test_what_was_indexed_is_found(collection, folder):
    report = update(collection, Events())
    assert (report.added, report.unchanged, report.failed) == (3, 0, [])
    (hit, *_) = search(collection, "how do I rotate the key?")
    assert hit.citation == f"{folder / 'keys.md'}:3"
    again = update(collection, Events())
    assert (again.added, again.unchanged, again.embedded) == (0, 3, 0)
