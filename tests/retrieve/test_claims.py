"""Claims against the passages that they cite: who, how many, whether, and what to whom."""

import runpy
from pathlib import Path

import pytest

from settle.retrieve.answer.citation_check import differences
from settle.retrieve.index.words import sentences

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
