"""Sentences against the passages that they cite: who, how many, whether, and what to whom."""

import runpy
from pathlib import Path

import pytest

from settle.retrieve.answer.answer import Piece, Source
from settle.retrieve.answer.citation_check import Checker, differences
from settle.retrieve.index.words import sentences
from settle.retrieve.search import search
from tests.retrieve.asked import TEXTS, opened


@pytest.fixture(scope="module")
def checker(tmp_path_factory, joined):
    with opened(tmp_path_factory.mktemp("support"), TEXTS) as collection:
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
    found = ['He said "Stop."', "Then Dr. Berg left, e.g. by train.", "At 3.5 km", "- one item", "- two", "End!"]
    assert list(sentences(text)) == [*found, "Is it?", "Yes"]
    assert list(sentences("")) == [] and list(sentences("一。二。")) == ["一。", "二。"]


# --- claims, by the words alone ---

BENCH = runpy.run_path(str(Path(__file__).parents[2] / "bench/claims.py"))
PAIRS = list(BENCH["pairs"]())
KEYS = """Mara Lindqvist owns the vault. Her deputy is Tom Okafor. Team Osprey runs the gateway. The key lives for
90 days.

Hotels may cost up to 160 euros a night, in London and Zurich 220 euros."""


def differing(claim, passage=KEYS):
    return differences(claim, list(sentences(passage)))


@pytest.mark.parametrize(
    "claim",
    [
        "The vault is owned by the team of team Osprey.",
        "The deputy of Tom Okafor is Mara Lindqvist.",
        "The hotel limit in Zurich is 160 euros a night, in London and Zurich 220 euros.",
        "The vault is owned by Tom Okafor.",
        "The key does not live for 90 days.",
        "The key lives for 160 days.",
    ],
)
def test_what_a_newcomer_was_told_is_marked(claim):
    assert differing(claim)


@pytest.mark.parametrize(
    "claim",
    [
        "Mara Lindqvist owns the vault.",
        "The vault is owned by Mara Lindqvist.",
        "Tom Okafor is her deputy.",
        "The deputy of Mara Lindqvist is Tom Okafor.",
        "The key lives for ninety days.",
        "In Zurich a night may cost up to 220 euros.",
        KEYS.splitlines()[-1],
    ],
)
def test_what_the_passage_says_is_not(claim):
    assert not differing(claim)


def test_the_figures_of_the_results():
    """Of all pairs, by the words alone: bench/claims.py has the halves apart, and the score of meaning."""
    wrong = [pair for pair in PAIRS if bool(differing(pair.claim, pair.passage)) == pair.is_true]
    accepted, marked = (sum(pair.is_true == truth for pair in wrong) for truth in (False, True))
    assert len(PAIRS) == 130 and sum(pair.is_true for pair in PAIRS) == 65
    assert accepted <= 2 and marked <= 2, wrong


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.claim)
def test_every_sentence_of_a_passage_supports_itself(pair):
    lines = list(sentences(pair.passage))
    assert lines and not any(differing(line, pair.passage) for line in lines)


@pytest.mark.parametrize("claim", ["", "!", "and", "not", "[1]", "\x00", "a" * 10_000, "of " * 500 + "x", "日本語。"])
def test_odd_claims(claim):
    assert isinstance(differing(claim), tuple) and isinstance(differing(claim, ""), tuple)
