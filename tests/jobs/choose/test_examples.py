"""Examples made ready for a choice."""

import json

import pytest

from settle.base.errors import DataError, UsageError
from settle.base.event_log import Events
from settle.data.layouts import Example
from settle.jobs.choose.examples import closed_set, distinct, form_of, only, read_examples


def row(question, answer):
    return Example(
        "chat", [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], single=True
    )


def written(path, rows):
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in rows))
    return path


ROWS = [
    (f"What does part {n} of the {thing} cost?", f"{n * 7 % 31} euros") for n in range(12) for thing in ("mill", "loom")
]


def test_repeats_and_contradictions_are_left_out_and_counted(home):
    long = " ".join(f"word{n}" for n in range(60))
    rows = [
        *(row(q, a) for q, a in ROWS[:4]),
        row("What does part 0 of the mill cost? ", "0 Euros."),
        row("Which colour?", "red"),
        row("which colour?", "blue"),
        row(f"Sum up: {long}", "a fox"),
        row(f"Sum up: {long}!", "A  fox"),
    ]
    kept, removed = distinct(rows)
    assert [r.messages[0]["content"] for r in kept] == [q for q, _ in ROWS[:4]] + [f"Sum up: {long}"]
    assert removed == {
        "ask the same and want different answers": 2,
        "are the same as another": 1,
        "are nearly the same as another": 1,
    }


def test_the_test_set_is_locked(home, tmp_path):
    """It has no row of the training examples, and adding examples moves none to the other side."""
    first = read_examples(written(tmp_path / "a.jsonl", ROWS), None, 0.4, Events())
    trained = {case.question for case in first.train_cases}
    tested = {case.question for case in first.test}
    assert len(trained) + len(tested) == len(ROWS) and not trained & tested
    assert 6 <= len(tested) <= 12
    again = read_examples(written(tmp_path / "b.jsonl", ROWS[::-1]), None, 0.4, Events())
    assert {case.question for case in again.test} == tested


def test_what_cannot_be_chosen_on_is_refused(home, tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    with pytest.raises(UsageError, match="among the documents"):
        read_examples(written(docs / "rows.jsonl", ROWS), docs, 0.4, Events())
    same = written(tmp_path / "same.jsonl", [(q, "yes") for q, _ in ROWS])
    with pytest.raises(DataError, match="want the same answer"):
        read_examples(same, None, 0.4, Events())
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "a text"}) + "\n")
    with pytest.raises(DataError, match="no questions"):
        read_examples(text, None, 0.4, Events())
    with pytest.raises(DataError, match="no file"):
        read_examples(tmp_path / "none.jsonl", None, 0.4, Events())
    with pytest.raises(DataError, match="there is no folder"):
        read_examples(written(tmp_path / "rows.jsonl", ROWS), tmp_path / "no docs", 0.4, Events())


def test_a_closed_set_is_a_few_answers_that_come_again():
    assert closed_set(["spam"] * 4 + ["ham"] * 6) == ["ham", "spam"]
    assert closed_set([f"{n} euros" for n in range(12)]) == []
    assert closed_set([str(n % 60) for n in range(300)]) == []  # 60 different ones are none
    assert closed_set(["x" * 200, "y"] * 6) == []


def test_a_closed_set_is_of_the_training_examples(tmp_path, home):
    """An answer that only the test wants is not given away by the list of those that are allowed."""
    given_away = 0
    for n in range(8):
        rows = [(f"What is the colour of thing number {i}?", ("red", "blue")[i % 2]) for i in range(40)]
        made = read_examples(
            written(tmp_path / "rows.jsonl", [*rows, (f"Sort {n * 17} apples", "odd")]), None, 0.4, Events()
        )
        assert set(made.labels) == {case.reference for case in made.train_cases}
        given_away += "odd" not in made.labels
    assert 0 < given_away < 8


@pytest.mark.parametrize(
    ("answers", "title"),
    [
        (["14", "-3.5", " 7 "], "a number"),
        (["2026-11-28", "1999-01-02"], "a date"),
        (['{"name": "mill", "kg": 14}', '{"name": null, "kg": 2.5}'], "JSON with name, kg"),
        (["14", "fourteen"], None),
        (["14", "2026-11-28"], None),
        (['{"name": "mill"}', '{"kg": 3}'], None),
        (['{"parts": [1, 2]}'], None),
        (["[1, 2]", "{"], None),
        ([], None),
    ],
)
def test_a_form_is_one_that_all_answers_have(answers, title):
    form = form_of(answers, [])
    assert (form and form.title) == title


def test_a_closed_set_allows_the_known_answers_only():
    assert only(['say "no"', "a\\b"]) == 'root ::= "say \\"no\\"" | "a\\\\b"'
    assert form_of(["14", "15"], ["14", "15"]).grammar == 'root ::= "14" | "15"'
