"""Answers and what follows from their probabilities; rows as tokens, their orders, and the four sides they go to."""

import json
from collections import Counter

import numpy as np
import pytest

from settle.base.errors import DataError
from settle.data.decisions.corpus import HELD_OUT, SELECTION, TRAIN, prepare_decisions, prompt_for, split_decisions
from settle.data.decisions.prompt import (
    DecisionEncoder,
    labels_of,
    num_variants,
    orders_of,
    own_order,
    with_changing_options,
)
from settle.data.decisions.questions import DecisionAnswer, Question, ranked
from settle.data.decisions.rows import DecisionRow, LabelColumn, decision_rows, state_columns
from settle.data.settings import RowSettings
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer

CHOICE = Question.from_json(
    {"type": "choice", "instructions": "Which?", "criteria": {"a": "one", "b": None, "c": None}}
)
NOUL = Question.from_json({"type": "noul", "instructions": "Is it?"})
SCORE = Question.from_json({"type": "score", "instructions": "How much?", "criteria": ["none", "some", "", "all"]})


def test_a_choice_is_as_sure_as_it_is_above_an_even_share():
    answer = DecisionAnswer(CHOICE, (0.2, 0.6, 0.2))
    assert (answer.best, answer.key, answer.highest) == (1, "b", 0.6)
    assert answer.confidence == pytest.approx((0.6 - 1 / 3) / (2 / 3))
    assert (
        DecisionAnswer(CHOICE, (1 / 3, 1 / 3, 1 / 3)).confidence == pytest.approx(0)
        and DecisionAnswer(CHOICE, (0, 0, 1)).confidence == 1
    )
    assert list(ranked(DecisionAnswer(CHOICE, (0.2, 0.5, 0.3)))) == [1, 2, 0] and answer.name_of(0) == "a"
    assert answer.to_json() == {
        "type": "choice",
        "choice": "b",
        "probabilities": {"a": 0.2, "b": 0.6, "c": 0.2},
        "confidence": answer.confidence,
    }


def test_a_score_is_as_sure_as_its_levels_are_near_the_likeliest():
    answer = DecisionAnswer(SCORE, (0.0, 0.5, 0.25, 0.25))
    assert answer.expected == pytest.approx(1 * 0.5 + 2 * 0.25 + 3 * 0.25)
    # levels away from the likeliest: 0.25 · 1 + 0.25 · 2; an even share lies 1 from the middle on average
    assert answer.confidence == pytest.approx(1 - 0.75 / 1.0)
    assert (
        DecisionAnswer(SCORE, (0.5, 0.0, 0.0, 0.5)).confidence == 0
        and DecisionAnswer(SCORE, (0, 0, 1, 0)).confidence == 1
    )
    five = Question.from_json({"type": "score", "instructions": "How much?", "criteria": [*"abcde"]})
    # an even share lies 2 + 1 + 0 + 1 + 2 from the middle, a fifth of it on average
    assert DecisionAnswer(five, (0.0, 0.0, 0.7, 0.3, 0.0)).confidence == pytest.approx(1 - 0.3 / (6 / 5))
    assert (answer.name_of(1), answer.name_of(2)) == ("some", "2")
    told = answer.to_json()
    assert told["score"] == answer.expected and told["legend"]["0"] == "none" and told["type"] == "score"


def test_a_noul_says_how_likely_it_is_true():
    answer = DecisionAnswer(NOUL, (0.3, 0.7))
    assert answer.to_json() == {"type": "noul", "noul": 0.7} and answer.expected == 0.7
    assert answer.confidence == pytest.approx(0.4)


def test_every_option_has_every_label_equally_often():
    random = np.random.default_rng(3)
    orders = orders_of(CHOICE, 7, random)
    assert len(orders) == 7 and all(sorted(order) == [0, 1, 2] for order in orders)
    for place in range(3):
        assert {order[place] for order in orders[:3]} == {0, 1, 2} == {order[place] for order in orders[3:6]}
    assert len({orders_of(CHOICE, 1, np.random.default_rng(seed))[0] for seed in range(40)}) == 6
    assert orders_of(SCORE, 2, random) == [(0, 1, 2, 3)] * 2 and orders_of(NOUL, 1, random) == [(0, 1)]


def test_as_many_variants_are_stored_as_there_is_room_for():
    assert num_variants(1000, 10_500, 4, 24) == 10
    assert num_variants(1000, 3000, 4, 24) == 4 and num_variants(0, 3000, 4, 24) == 24


def row(state, best=0, question=CHOICE, name="q"):
    target = tuple(float(i == best) for i in range(len(question.options)))
    return DecisionRow(state, name, question, target, f"t.csv:{state[:3]}")


def test_questions_whose_options_change_are_known():
    other = Question.from_json({"type": "choice", "instructions": "Which?", "criteria": ["a", "d"]})
    assert with_changing_options([row("x"), row("y", name="p"), row("z", 0, other)]) == {"q"}


WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def states(number, seed=0):
    """Texts of words of their own, so that none is kin to another."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 12)) for _ in range(number)]


def test_sides_have_their_shares_and_every_class():
    rows = [row(state, number % 2) for number, state in enumerate(states(100))]
    sides, families = split_decisions(rows, 0.2)
    counts = Counter(sides.tolist())
    assert counts == {TRAIN: 70, SELECTION: 10, HELD_OUT: 20} and len(set(families.tolist())) == 100
    for side in (TRAIN, SELECTION, HELD_OUT):
        of_a_class = [rows[i].best for i in np.flatnonzero(sides == side)]
        assert of_a_class.count(0) == of_a_class.count(1)


def test_kin_are_on_one_side_and_none_is_beside_given_rows():
    texts = states(60)
    rows = [row(text, number % 2) for number, text in enumerate([*texts, *(f"{t} now" for t in texts[:20])])]
    sides, _ = split_decisions(rows, 0.3)
    assert [sides[i] == sides[60 + i] for i in range(20)] == [True] * 20
    given = [number < 10 for number in range(80)]
    sides, _ = split_decisions(rows, 0.3, given)
    assert (sides[:10] == HELD_OUT).all() and (sides[60:70] == -1).all()
    assert set(sides[10:60].tolist()) == {TRAIN, SELECTION}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ByteBpeTokenizer.train([" ".join(WORDS), "Which fits? A. B. C."] * 3, 300, tmp_path_factory.mktemp("t"))


def test_the_label_of_the_likeliest_option_is_the_target(tokenizer):
    prompt, labels = prompt_for(tokenizer), labels_of(tokenizer, 3)
    encoder = DecisionEncoder(tokenizer, prompt, labels)
    asked = DecisionRow("a text", "q", CHOICE, (0.2, 0.7, 0.1), "t.csv:1")
    encoded = encoder.encode(asked, (2, 0, 1))
    assert encoded.shares.tolist() == pytest.approx([0.1, 0.2, 0.7]) and encoded.text == "a text"
    assert encoded.ids[-1] == labels["C"] and encoded.label_start == len(encoded.ids) - 1
    assert encoded.ids[:-1].tolist() == encoder.prompt_ids("a text", CHOICE, (2, 0, 1)).tolist()
    read = tokenizer.decode(encoded.ids[:-1].tolist())
    assert read.index("A. c") < read.index("B. a: one") < read.index("C. b")
    assert own_order(CHOICE) == (0, 1, 2)


def written(path, rows):
    path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return str(path)


@pytest.fixture
def table(tmp_path):
    texts = states(60, 1)
    return [{"text": text, "queue": "abc"[number % 3]} for number, text in enumerate(texts)]


def test_a_table_becomes_three_stores(home, tmp_path, tokenizer, table):
    path = written(tmp_path / "rows.jsonl", [*table, table[0], {"text": "no label", "queue": None}])
    corpus = prepare_decisions([path], tokenizer, RowSettings())
    sides = {side: getattr(corpus, side) for side in ("train", "selection", "held_out")}
    counts = {side: store.num_rows for side, store in sides.items()}
    assert counts == {"train": 42, "selection": 6, "held_out": 12}
    notes = corpus.ledger
    assert notes["unlabelled"] == 1 and notes["classes"] == {"queue": {"a": 20, "b": 20, "c": 20}}
    assert notes["contradictions"] == 0 and notes["shuffled"] == [] and list(corpus.labels) == ["A", "B", "C"]
    for side, store in sides.items():
        rows = corpus.rows(side)
        assert len(rows) == store.num_rows and store.shares.argmax(1).tolist() == [r.best for r in rows]
        starts = store.document_starts
        for number in range(len(rows)):
            mask = store.supervised[starts[number] : starts[number + 1]]
            assert mask.sum() == 1 and mask[-1] == 1
            ids = store.tokens[starts[number] : starts[number + 1]]
            assert ids[-1] == corpus.labels["ABC"[rows[number].best]]
    question = corpus.questions()["queue"]
    assert (question.type, question.keys, question.instructions) == ("choice", ("a", "b", "c"), "Which queue fits?")
    assert prepare_decisions([path], tokenizer, RowSettings()).fingerprint == corpus.fingerprint
    asked = prepare_decisions([path], tokenizer, RowSettings(), "Which letter?", shuffle=True)
    assert asked.questions()["queue"].instructions == "Which letter?" and asked.fingerprint != corpus.fingerprint
    assert asked.train.variants == 24 and asked.train.num_rows == 42 and asked.held_out.variants == 1
    shown = asked.train.shares.argmax(1).reshape(42, 24)
    assert all(len(set(row.tolist())) == 3 for row in shown), "each row is asked with its options in other places"


def test_tables_that_teach_nothing_are_refused(home, tmp_path, tokenizer, table):
    def prepared(rows, **settings):
        return prepare_decisions([written(tmp_path / "x.jsonl", rows)], tokenizer, RowSettings(**settings))

    with pytest.raises(DataError, match="19 labelled rows are too few"):
        prepared(table[:19])
    assert prepared(table[:20]).train.num_rows == 14
    spelled = [{"state": r["text"], "questions": {"q": NOUL.to_json()}, "targets": {"q": True}} for r in table]
    with pytest.raises(DataError, match="every answer to 'q' is 'true'"):
        prepared(spelled)
    with pytest.raises(DataError, match="60 of 60 rows are longer than 8 tokens"):
        prepared(table, max_tokens=8)
    torn = [*table, {"text": table[0]["text"], "queue": "b"}]
    assert prepared(torn).ledger["contradictions"] == 1
    with pytest.raises(DataError, match="there are no rows"):
        decision_rows([])


def test_columns_of_a_table():
    values = [{"id": n, "text": f"row {n}", "who": "x" if n % 2 else None, "stars": n % 4 + 2} for n in range(12)]
    placed = [(f"t.csv:{n}", value) for n, value in enumerate(values)]
    assert state_columns(placed, "stars") == ("text", "who")
    rows = decision_rows(placed, "stars")
    assert rows[0].question.type == "score" and [r.best for r in rows[:4]] == [0, 1, 2, 3]
    assert rows[0].state == "text: row 0" and rows[1].state == "text: row 1\nwho: x"
    floats = LabelColumn.find([{"text": "t", "label": value} for value in (1.0, 0.0, float("nan"))])
    assert floats.question.type == "noul" and floats.row({"text": "t", "label": float("nan")}, "w") is None
    assert floats.row({"text": "t", "label": True}, "w").target == (0.0, 1.0)
    assert floats.row({"text": " ", "label": True}, "w") is None
    constant = [{"text": f"t{n}", "source": "mail", "direction": "up" if n % 3 else "down"} for n in range(8)]
    assert LabelColumn.find(constant).name == "direction", "a column that always says the same is no label"
    gaps = LabelColumn.find([{"text": "t", "label": str(value)} for value in (1, 2, 4)])
    assert gaps.question.type == "choice", "numbers with gaps are no levels"
    two = LabelColumn.find([{"text": "t", "label": str(value)} for value in (1, 2)])
    assert two.question.type == "choice", "two levels are no score"
