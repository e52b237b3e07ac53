"""What goes into a prompt, and that its tokens are counted as they are."""

import pytest

from settle.retrieve.answer.write_answer import pack
from settle.retrieve.index.collection import Collection
from settle.retrieve.search import search
from tests.retrieve.asked import TEXTS, index, opened

LONG = "# Guide\n\n" + "\n\n".join(
    f"## Part {number}\n\nThe {word} valve of the boiler is turned by {number} degrees, slowly and with care."
    for number, word in enumerate(("first", "second", "third", "fourth", "fifth", "sixth"), 1)
)


@pytest.fixture(scope="module")
def collection(tmp_path_factory, joined):
    with opened(tmp_path_factory.mktemp("packing"), {**TEXTS, "guide.md": LONG}, tokens=30) as collection:
        yield collection


def words(text: str) -> int:
    return len(text.split())


def test_everything_that_fits_is_in_best_last_and_counted(collection):
    hits = search(collection, "how do I rotate the key?", 4)
    packed = pack(collection, hits, words, 1000)
    assert not packed.dropped and [source.number for source in packed.sources] == [*range(1, len(packed.sources) + 1)]
    assert hits[0].passage.id in {piece.passage.id for piece in packed.sources[-1].pieces}
    assert packed.tokens == sum(words(text) for source in packed.sources for text in source.texts)
    place = packed.sources[-1].pieces[0].place
    assert "keys.md:" in place


def test_what_does_not_fit_is_told_and_nothing_is_cut(collection):
    hits = search(collection, "valve of the boiler", 5)
    for room in (0, 25, 50, 90):
        packed = pack(collection, hits, words, room)
        assert packed.tokens <= room
        kept = {piece.passage.id for source in packed.sources for piece in source.pieces}
        dropped = {hit.passage.id for hit in packed.dropped}
        assert {hit.passage.id for hit in hits} <= kept | dropped and not kept & dropped
        assert bool(packed.sources) == (room > 0)
        for source in packed.sources:
            assert all(piece.passage.text in "".join(source.texts) for piece in source.pieces)


def test_neighbours_are_joined_into_one_source(collection):
    hits = search(collection, "the third valve is turned", 1)
    (source,) = pack(collection, hits, words, 1000).sources
    assert [piece.occurrence.ordinal for piece in source.pieces] == [
        hits[0].occurrences[0].ordinal + step for step in (-1, 0, 1)
    ]
    number, text = source.texts
    assert number == "[1]" and source.title == "Guide" and "second" in text and "Part 3" in text and "fourth" in text


def test_hits_that_adjoin_are_one_source_in_the_order_of_the_document(collection):
    hits = search(collection, "valve of the boiler is turned by degrees", 6)
    packed = pack(collection, hits, words, 1000)
    guide = [source for source in packed.sources if source.pieces[0].occurrence.path.endswith("guide.md")]
    assert len(guide) == 1
    ordinals = [piece.occurrence.ordinal for piece in guide[0].pieces]
    assert ordinals == sorted(ordinals) and len(ordinals) == 6


def test_what_looks_like_a_citation_in_a_passage_is_none(collection, tmp_path):
    index("notes", tmp_path / "notes", {"n.txt": "As shown in [3] and [12], the bridge holds."})
    with Collection("notes") as notes:
        (source,) = pack(notes, search(notes, "does the bridge hold?", 1), words, 100).sources
    assert "in (3) and (12), the bridge" in source.texts[1]
