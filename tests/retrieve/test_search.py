"""What is found, in which order, and what is not."""

import threading

import pytest

from settle.base.event_log import Events
from settle.retrieve.index import collection as collection_module
from settle.retrieve.index.update_index import update
from settle.retrieve.index.words import words
from settle.retrieve.search import query, search, terms
from tests.retrieve.asked import opened

KEYS = "# Keys\n\n## Rotation\n\nRun the rotation job, then restart the gateway.\n\n## Backup\n\nCopy the vault.\n"
KEEPER = "The lighthouse keeper wrote every storm into a green notebook"
TEXTS = {
    "keys.md": KEYS,
    "food.md": "# Lunch\n\nThe kitchen opens at noon and serves soup with bread.\n",
    "notes.txt": f"{KEEPER}.\n",
    "copied.txt": f"{KEEPER}.\n",
    "nearly.txt": f"{KEEPER}!\n",
    "colour.txt": "The colour of the organisation's flag is grey; a café shows it.\n",
    "holiday-calendar.txt": "Nobody works on the first of May.\n",
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Of those texts; nobody changes it."""
    with opened(tmp_path_factory.mktemp("search"), TEXTS, tokens=200) as made:
        yield made


@pytest.fixture
def changing(tmp_path):
    """One that a test may change."""
    with opened(tmp_path, TEXTS, tokens=200) as made:
        yield made


def names(hits) -> list[str]:
    return [hit.citation.rsplit("/", 1)[-1] for hit in hits]


def test_the_best_comes_first_and_knows_where_it_stands(collection):
    (hit, *_) = hits = search(collection, "How do I rotate a key?")
    assert names(hits)[0] == "keys.md:5" and hit.passage.headings == ("Keys", "Rotation")
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert all(-1.001 <= h.similarity <= 1.001 and h.bm25 >= 0 for h in hits)
    assert len(search(collection, "How do I rotate a key?", k=2)) == 2


def test_a_small_collection_is_searched_without_its_store(collection, monkeypatch):
    found = search(collection, "How do I rotate a key?")
    assert "store" not in vars(collection.vectors)
    monkeypatch.setattr(collection_module, "SMALL", 0)
    assert search(collection, "How do I rotate a key?") == found and "store" in vars(collection.vectors)


def test_words_are_found_however_they_are_spelled(collection):
    for question in ("color organization", "CAFE", "colours of flags"):
        (hit, *_) = search(collection, question)
        assert names([hit]) == ["colour.txt:1"] and hit.bm25 > 0


def test_the_same_text_is_found_once_and_stands_at_all_its_places(collection):
    hits = search(collection, "the keeper of the lighthouse")
    same = [hit for hit in hits if "lighthouse" in hit.passage.text]
    assert len(same) == 1
    assert {s.path.rsplit("/", 1)[-1] for s in same[0].occurrences} in ({"copied.txt", "notes.txt"}, {"nearly.txt"})


def test_a_document_is_found_by_its_title_and_its_name(changing):
    (folder,) = changing.roots
    (hit, *_) = search(changing, "where is the calendar of holidays?")
    assert names([hit]) == ["holiday-calendar.txt:1"] and hit.bm25 == 0
    (folder / "holiday-calendar.txt").rename(folder / "days-off.txt")
    update(changing, Events())
    assert names(search(changing, "days off"))[0] == "days-off.txt:1"
    assert changing.catalogue.words.search_titles(words("calendar"), 5) == []
    (folder / "days-off.txt").unlink()
    update(changing, Events())
    assert changing.catalogue.words.search_titles(words("days off"), 5) == []


@pytest.mark.parametrize(
    ("question", "found"),
    [("lightouse", "lighthous"), ("lighthosue", "lighthous"), ("kitchn", "kitchen"), ("organi", "organiz")],
)
def test_words_that_stand_nowhere_are_looked_for_as_what_they_are_like(collection, question, found):
    assert terms(collection.catalogue, query(question)).stems == (found,)


def test_words_that_are_like_none_stay_as_they_are(collection):
    assert terms(collection.catalogue, query("zebra x1y")).stems == tuple(words("zebra x1y"))
    assert terms(collection.catalogue, query("the of")).stems == ()
    assert search(collection, "zebra") and search(collection, "the of")


def test_the_commonest_words_are_left_out_where_they_stand_too_often(collection, monkeypatch):
    question = "the lighthouse keeper"
    assert len(terms(collection.catalogue, query(question)).stems) == 2
    monkeypatch.setattr("settle.retrieve.search._MOST_ROWS", 1)
    assert len(terms(collection.catalogue, query(question)).stems) == 1
    assert "lighthouse" in search(collection, question)[0].passage.text


def test_threads_may_search_while_it_is_indexed(changing):
    (folder,) = changing.roots
    failed = []

    def ask():
        for _ in range(20):
            hits = search(changing, "How do I rotate a key?")
            if names(hits)[0] not in ("keys.md:5", "keys.md:7"):
                failed.append(names(hits))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(5):
        (folder / "keys.md").write_text(("" if number % 2 else "A line.\n\n") + KEYS)
        update(changing, Events())
    for thread in threads:
        thread.join()
    assert not failed


def test_documents_can_be_looked_at_as_if_they_were_not_there(collection):
    question = "the keeper of the lighthouse"
    (first, *_) = search(collection, question)
    without = {s.document for s in first.occurrences}
    left = search(collection, question, without=without)
    assert left and not without & {s.document for hit in left for s in hit.occurrences}
    assert "lighthouse" in left[0].passage.text  # the other of those that say the same
    assert search(collection, question, without=set(range(100))) == []
