"""The order that the trained judge gives the first hits."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from settle.retrieve.answer import evidence
from settle.retrieve.answer.answer_judge import (
    HEADING_TOKENS,
    QUESTION_TOKENS,
    SCALE,
    TEXT_TOKENS,
    AnswerJudge,
    JudgeReading,
    _dense,
    _unit,
)
from settle.retrieve.answer.evidence import JUDGE_WEIGHT, RERANKED, read_best
from settle.retrieve.index.catalogue import Passage
from settle.retrieve.search import Hit


class Reader:
    """A judge for which a passage answers as far as its text says."""

    def read(self, question: str, passages: list[Passage]) -> list[JudgeReading]:
        assert question == "asked" and len(passages) <= RERANKED
        return [JudgeReading(float(passage.text), 0) for passage in passages]


def hits(*logits: float, gap: float = 0.01) -> list[Hit]:
    """The best first, each `gap` below the one before."""
    return [Hit(Passage(place, str(logit), (), 1), (), 1 - gap * place, 0.5, 0.0) for place, logit in enumerate(logits)]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "answer_judge", lambda collection: Reader())


@pytest.mark.usefixtures("judged")
def test_the_first_hits_follow_the_judge_and_the_others_stay() -> None:
    given = hits(-9, -9, -9, 9, 9, 9)
    found, readings = read_best(None, "asked", given)  # type: ignore[arg-type]
    assert [hit.passage.id for hit in found] == [3, 0, 1, 2, 4, 5]
    assert readings == {number: JudgeReading(9 if number == 3 else -9, 0) for number in range(RERANKED)}


@pytest.mark.usefixtures("judged")
def test_a_hit_that_is_found_much_better_stays_first() -> None:
    given = hits(-9, 9, gap=2 * JUDGE_WEIGHT)
    assert [hit.passage.id for hit in read_best(None, "asked", given)[0]] == [0, 1]  # type: ignore[arg-type]


def test_without_a_judge_the_order_is_that_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "answer_judge", lambda collection: None)
    given = hits(-9, 9)
    assert read_best(None, "asked", given) == (given, {})  # type: ignore[arg-type]


# --- the judge itself, by hand ---


def judge(**weights: np.ndarray) -> AnswerJudge:
    """Without an encoder; a word is a token, numbered by its letters."""
    made = object.__new__(AnswerJudge)
    made._w = weights

    def encode(text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        words = list(re.finditer(r"\S+", text))
        ids, offsets = [2000 + len(m[0]) for m in words], [m.span() for m in words]
        ends = ([101], [102]) if add_special_tokens else ([], [])
        return SimpleNamespace(ids=[*ends[0], *ids, *ends[1]], offsets=[(0, 0), *offsets, (0, 0)])

    made._tokenizer = SimpleNamespace(encode=encode)  # type: ignore[assignment]
    return made


def test_a_long_question_is_cut_and_closed() -> None:
    assert judge().question_ids("a bb") == [101, 2001, 2002, 102]
    long = judge().question_ids("a " * 90)
    assert len(long) == QUESTION_TOKENS and long[0] == 101 and long[-1] == 102
    assert len(judge().question_ids("a " * (QUESTION_TOKENS - 2))) == QUESTION_TOKENS


def test_a_passage_that_is_not_long_is_read_whole_with_its_last_headings() -> None:
    passage = Passage(0, "one three", ("a " * 40, "End"), 1)
    window = judge().window([101, 2001, 102], passage)
    assert window.ids[0] == 101 and window.ids[-4:] == [2003, 2003, 2005, 102]
    assert len(window.ids) == HEADING_TOKENS + 4 and len(window.places) == len(window.ids)
    assert window.places[-4:] == [-1, 0, 4, -1] and set(window.places[:-3]) == {-1}


def test_of_a_long_passage_the_part_that_is_like_the_question_is_read() -> None:
    words = np.zeros((2010, 8), np.float32)
    words[2001:2009] = np.eye(8, dtype=np.float32)
    made = judge()
    made._encoder = SimpleNamespace(words=lambda ids: words[list(ids)])  # type: ignore[assignment]
    text = "a " * 300 + "bbbb " + "a " * 99
    window = made.window([101, 2004, 102], Passage(0, text, (), 1))
    assert 2004 in window.ids and len(window.ids) == TEXT_TOKENS + 2
    assert all(text[place] in "ab" and text[place - 1] == " " for place in window.places[1:-1])
    assert made.window([101, 2005, 102], Passage(0, text, (), 1)).places[1] == 0, "where none is like it, the first"


def test_shares_of_evidence_are_of_what_is_there() -> None:
    made = judge(**{"importance.1.weight": np.array([[2.0, 0.0]]), "importance.1.bias": np.array([0.5])})
    x = np.array([[[1.0, 9.0], [2.0, 9.0], [50.0, 9.0]], [[400.0, 1.0], [399.0, 1.0], [0.0, 1.0]]])
    shares = made._shares(x, np.array([[True, True, False], [True, True, True]]), 1)
    expected = 1 / (1 + np.exp(2.0))
    assert shares[0] == pytest.approx([expected, 1 - expected, 0.0]) and shares.sum(1) == pytest.approx(1)
    assert shares[1] == pytest.approx([1 - expected, expected, 0.0], abs=1e-9)
    assert made._linear(np.array([[3.0, 1.0]]), "importance.1") == pytest.approx(6.5)


def test_matrices_in_int8_are_multiplied_by_the_scales_of_their_rows() -> None:
    stored = {
        "a": np.array([[2, -4], [6, 8]], np.int8),
        "a" + SCALE: np.array([0.5, 0.25]),
        "b": np.ones(2, np.float16),
    }
    dense = _dense(stored)
    assert set(dense) == {"a", "b"} and dense["a"].tolist() == [[1.0, -2.0], [1.5, 2.0]]
    assert dense["b"].dtype == np.float32 and dense["b"].tolist() == [1.0, 1.0]
    assert np.linalg.norm(_unit(np.array([[3.0, 4.0]]))) == pytest.approx(1)
