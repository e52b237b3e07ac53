"""Sentences against passages: by words, numbers, names and negation."""

import pytest

from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.citation_check import Checker
from settle.retrieve.index.collection import Collection
from settle.retrieve.index.words import sentences
from settle.retrieve.search import search
from tests.retrieve.asked import TEXTS, index


@pytest.fixture(scope="module")
def checker(tmp_path_factory, joined):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        index("docs", tmp_path_factory.mktemp("docs"), TEXTS)
        with Collection("docs") as collection:
            hits = search(collection, "rotate the key, the file of the key, the kitchen, the notebook", 10)
            pieces = sorted((Piece(hit.passage, hit.occurrences[0]) for hit in hits), key=lambda p: p.place)
            yield Checker(collection, [Source(number, (piece,)) for number, piece in enumerate(pieces, 1)])


@pytest.mark.parametrize(
    ("sentence", "place"),
    [
        ("The kitchen opens at noon.", "food.md:3"),
        ("Run `vault rotate` to rotate the key.", "keys.md:5"),
        ("The old key works for 15 minutes.", "keys.md:5"),
        ("The key lies in the file `server/key`.", "keys.md:9"),
        ("Every storm was written into a green notebook.", "storm.txt:1"),
    ],
)
def test_a_sentence_that_is_there_is_cited_whatever_number_the_model_gave(checker, sentence, place):
    for number in (1, 2, 3, 4):
        found = checker.best(sentence, number)
        assert found.enough and found.piece.place.endswith(place), found


@pytest.mark.parametrize(
    ("sentence", "differs"),
    [
        ("The old key works for 50 minutes.", "50"),
        ("The notebook of the lighthouse keeper has 2,120 pages.", "2,120"),
        ("The key lies in the file `server/key`, readable by Anna Holm only.", "Holm"),
        ("To rotate the key, run `vault_turn` and restart the gateway.", "`vault_turn`"),
        ("The key is written to the log.", "not"),
        ("The kitchen never opens at noon and serves no soup with bread.", "never"),
    ],
)
def test_a_wrong_number_name_or_negation_is_found(checker, sentence, differs):
    found = checker.best(sentence, 1)
    assert differs in found.differs and not found.enough


def test_what_is_nowhere_is_not_supported(checker):
    found = checker.best("Paris is the capital of France and lies on the Seine.", 2)
    assert not found.enough and found.score < 0.4


def test_sentences():
    text = 'He said "Stop." Then Dr. Berg left, e.g. by train.\nAt 3.5 km\n- one item\n- two\n\nEnd! Is it? Yes'
    assert list(sentences(text)) == [
        'He said "Stop."',
        "Then Dr. Berg left, e.g. by train.",
        "At 3.5 km",
        "- one item",
        "- two",
        "End!",
        "Is it?",
        "Yes",
    ]
    assert list(sentences("")) == [] and list(sentences("一。二。")) == ["一。", "二。"]
