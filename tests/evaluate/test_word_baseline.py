"""Naive Bayes on the words: what it learns from rows, counted by hand."""

import numpy as np
import pytest

from settle.data.decisions.questions import Question
from settle.data.decisions.rows import DecisionRow
from settle.evaluate.decisions import naive_bayes

QUEUE = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["bills", "parcels", "other"]})
TURNED = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["parcels", "bills"]})


def row(state: str, best: int, question: Question = QUEUE, name: str = "queue") -> DecisionRow:
    return DecisionRow(state, name, question, tuple(float(i == best) for i in range(len(question.options))), "t:1")


def test_its_shares_are_those_that_are_counted_by_hand():
    train = [row("card charged", 0), row("card twice", 0), row("parcel lost", 1)]
    (shares,) = naive_bayes(train, [row("Card, unheard-of!", 0)], 3)
    # prior and one known word of six: (2+1)·(2+1)/(4+5), (1+1)·(0+1)/(2+5), (0+1)·1/(0+5)
    counted = np.array([3 * 3 / 9, 2 / 7, 1 / 5])
    assert shares == pytest.approx(counted / counted.sum())


def test_options_are_known_by_their_keys_and_questions_by_their_names():
    train = [row("card charged", 0), row("parcel lost", 1), row("card charged", 1, name="other")]
    asked = [row("card", 1, TURNED), row("parcel", 0, TURNED), row("card", 1, name="other")]
    shares = naive_bayes(train, asked, 3)
    assert shares.argmax(1).tolist() == [1, 0, 1] and shares[:2, 2].tolist() == [0, 0]
    assert shares.sum(1) == pytest.approx([1, 1, 1])
