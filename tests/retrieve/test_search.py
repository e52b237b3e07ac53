"""What is found, in which order, and what is not."""

import pytest

from settle.base.events import Events
from settle.base.registry import part
from settle.retrieve.chunkers.structure import Structure
from settle.retrieve.collection import Collection
from settle.retrieve.indexing import update
from settle.retrieve.search import search
from settle.retrieve.stores.lancedb import Lancedb

TEXTS = {
    "keys.md": "# Keys\n\n## Rotation\n\nRun the rotation job, then restart the gateway.\n\n## Backup\n\nCopy it.\n",
    "food.md": "# Lunch\n\nThe kitchen opens at noon and serves soup with bread.\n",
    "notes.txt": "The lighthouse keeper wrote every storm into a green notebook.\n",
    "copied.txt": "The lighthouse keeper wrote every storm into a green notebook.\n",
    "nearly.txt": "The lighthouse keeper wrote every storm into a green notebook!\n",
    "colour.txt": "The colour of the organisation's flag is grey; a café shows it.\n",
}  # fmt: skip


@pytest.fixture
def collection(home, folder):
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    with Collection.create("docs") as made:
        made.decide(part("retrieve/embedders", "hashed")(), Lancedb(), Structure())
        made.follow([folder])
        update(made, Events())
        yield made


def names(hits) -> list[str]:
    return [hit.citation.rsplit("/", 1)[-1] for hit in hits]


def test_the_best_comes_first_and_knows_where_it_stands(collection):
    (hit, *_) = hits = search(collection, "How do I rotate a key?")
    assert names(hits)[0] == "keys.md:5" and hit.passage.headings == ("Keys", "Rotation")
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert all(-1.001 <= h.similarity <= 1.001 and h.bm25 >= 0 for h in hits)
    assert len(search(collection, "How do I rotate a key?", k=2)) == 2


def test_words_are_found_however_they_are_spelled(collection):
    for question in ("color organization", "CAFE", "colours of flags"):
        (hit, *_) = search(collection, question)
        assert names([hit]) == ["colour.txt:1"] and hit.bm25 > 0


def test_the_same_text_is_found_once_and_stands_at_all_its_places(collection):
    hits = search(collection, "the keeper of the lighthouse")
    same = [hit for hit in hits if "lighthouse" in hit.passage.text]
    assert len(same) == 1
    assert {s.path.rsplit("/", 1)[-1] for s in same[0].standings} in ({"copied.txt", "notes.txt"}, {"nearly.txt"})


def test_documents_can_be_looked_at_as_if_they_were_not_there(collection):
    question = "the keeper of the lighthouse"
    known = {s.path.rsplit("/", 1)[-1]: s.document for h in search(collection, question, 50) for s in h.standings}
    (first, *_) = search(collection, question)
    without = {s.document for s in first.standings}
    left = search(collection, question, without=without)
    assert left and not without & {s.document for hit in left for s in hit.standings}
    assert "lighthouse" in left[0].passage.text  # the other of those that say the same
    assert search(collection, question, without=set(range(100))) == []
    assert known
