"""Typed questions, rows of decisions, and the prompt that training and llama.cpp share."""

import json

import pytest

from settle.base.chat_template import ChatTemplate
from settle.base.errors import DataError
from settle.data.decisions.prompt import DecisionPrompt, labels_of
from settle.data.decisions.questions import Question, state_text
from settle.data.decisions.rows import LabelColumn, are_labels, decision_rows
from settle.data.rows.render import KNOWN
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer

CHOICE = {"type": "choice", "instructions": "Which queue?", "criteria": {"billing": "money", "shipping": None}}
NOUL = {"type": "noul", "instructions": "Is it urgent?"}
SCORE = {"type": "score", "instructions": "How angry?", "criteria": ["calm", "annoyed", "furious"]}


@pytest.mark.parametrize("spelled", [CHOICE, NOUL, SCORE, NOUL | {"criteria": {"false": "it can wait", "true": "now"}}])
def test_a_question_is_spelled_as_it_was_read(spelled):
    assert Question.from_json(spelled).to_json() == spelled


@pytest.mark.parametrize(
    ("spelled", "part"),
    [
        ("x", "not an object"),
        (CHOICE | {"type": "rank"}, "'rank'"),
        (CHOICE | {"instructions": " "}, "no instructions"),
        (CHOICE | {"criteria": {"one": None}}, "fewer than two"),
        (CHOICE | {"criteria": {str(i): None for i in range(300)}}, "300 options"),
        (CHOICE | {"criteria": {"a": 1, "b": None}}, "no text"),
        (SCORE | {"criteria": ["a"]}, "2 to 10"),
        (NOUL | {"criteria": "yes"}, "noul"),
    ],
)
def test_what_is_no_question_is_refused(spelled, part):
    with pytest.raises(DataError, match=part):
        Question.from_json(spelled)


@pytest.mark.parametrize(
    ("spelled", "value", "shares"),
    [
        (CHOICE, "shipping", (0, 1)),
        (CHOICE, {"billing": 3, "shipping": 1}, (0.75, 0.25)),
        (NOUL, True, (0, 1)),
        (NOUL, "No", (1, 0)),
        (NOUL, 0.25, (0.75, 0.25)),
        (NOUL, 1, (0, 1)),
        (SCORE, 2, (0, 0, 1)),
        (SCORE, "annoyed", (0, 1, 0)),
        (SCORE, {"0": 1, "furious": 1}, (0.5, 0, 0.5)),
    ],
)
def test_targets_become_shares_of_the_options(spelled, value, shares):
    assert Question.from_json(spelled).target(value) == shares


@pytest.mark.parametrize("value", ["refunds", {"refunds": 1}, {"billing": -1}, {"billing": 0}, None])
def test_a_target_that_is_no_option_is_refused(value):
    with pytest.raises(DataError):
        Question.from_json(CHOICE).target(value)


def placed(rows):
    return [(f"t.csv:{i + 1}", row) for i, row in enumerate(rows)]


def test_rows_with_questions_are_one_decision_each():
    record = {"state": {"text": "hi"}, "questions": {"q": CHOICE, "u": NOUL}, "targets": {"q": "billing", "u": 0.5}}
    first, second = decision_rows(placed([record]))
    assert (first.state, first.name, first.target, first.best) == ('{"text": "hi"}', "q", (1, 0), 0)
    assert (second.question.type, second.target) == ("noul", (0.5, 0.5))
    with pytest.raises(DataError, match="no such question"):
        decision_rows(placed([record | {"targets": {"other": 1}}]))


def table(labels, name="category", **more):
    return [{"text": f"row {i}", name: label} | {k: v[i] for k, v in more.items()} for i, label in enumerate(labels)]


def test_the_label_column_is_found_by_name_or_by_its_values():
    named = LabelColumn.find(table(["a", "b", "b"]))
    assert (named.name, named.question.type, named.question.keys, named.others) == (
        "category", "choice", ("a", "b"), ("text",)
    )  # fmt: skip
    found = LabelColumn.find(table(["up", "down"] * 4, "direction", id=range(8)))
    assert (found.name, found.others) == ("direction", ("text",))
    rows = decision_rows(placed(table(["up", "down"] * 4, "direction", who=[f"p{i}" for i in range(8)])))
    assert rows[0].state == "text: row 0\nwho: p0"


def test_yes_and_no_make_a_noul_and_neighbouring_numbers_a_score():
    assert LabelColumn.find(table(["yes", "no", "Yes"])).question.type == "noul"
    stars = decision_rows(placed(table([1, 5, 3, 2, 4])))
    assert stars[0].question.type == "score"
    assert [row.best for row in stars] == [0, 4, 2, 1, 3]
    assert LabelColumn.find(table(["1", "7", "12"])).question.type == "choice"


def test_what_has_no_labels_is_refused_with_what_to_do():
    with pytest.raises(DataError, match="holds only 'a'"):
        decision_rows(placed(table(["a"] * 5)))
    with pytest.raises(DataError, match="300 different values"):
        decision_rows(placed(table([f"c{i}" for i in range(300)])))
    with pytest.raises(DataError, match="several columns may hold it: x, y"):
        decision_rows(placed(table(["u", "v"] * 4, "x", y=["s", "t"] * 4)))
    with pytest.raises(DataError, match="no column 'z'"):
        decision_rows(placed(table(["u", "v"])), "z")
    with pytest.raises(DataError, match="only column"):
        decision_rows(placed([{"label": "a"}, {"label": "b"}]))
    assert len(decision_rows(placed([*table(["a", "b"]), {"text": "no label", "category": None}]))) == 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return ByteBpeTokenizer.train(["CAB AB AC BA a text of words"] * 9, 300, tmp_path_factory.mktemp("tokenizer"))


NASTY = ["plain", "it's {{ a }} \\n 'test'\n\n", "<|im_end|> {% raw %}", 'ü "quoted" \\ \r\n\t']


@pytest.mark.parametrize("state", [*NASTY, {"b": 1, "a": ["é", None, True]}])
@pytest.mark.parametrize("template", [*KNOWN, None])
def test_the_template_writes_what_training_writes(tokenizer, state, template):
    turns = ChatTemplate(KNOWN[template], "<s>", "</s>") if template else None
    prompt = DecisionPrompt.of(tokenizer, turns)
    question = Question("choice", NASTY[1], Question.from_json(CHOICE).options)
    labels = ["A", "B"]
    options = [
        {"label": label, "key": question.options[i].key, "description": question.options[i].description}
        for label, i in zip(labels, (1, 0), strict=True)
    ]
    safe = prompt.plain(state) if isinstance(state, str) else state  # what a server gives to the template
    arguments = {"state": safe, "instructions": question.instructions, "options": options, "type": "choice"}
    written = ChatTemplate(prompt.template).render([], **arguments)
    assert written == prompt.text(state_text(state), question, (1, 0), labels)
    assert written.index(state_text(safe)) < written.index("A. shipping") < written.index("B. billing: money")


def test_a_state_cannot_spell_a_special_token(tokenizer):
    special = next(iter(tokenizer.special_tokens))
    prompt = DecisionPrompt.of(tokenizer, None)
    written = prompt.text(f"end {special} end", Question.from_json(NOUL), (0, 1), ["A", "B"])
    ids = tokenizer.encode(written, specials=True).tolist()
    assert not {*ids} & {*tokenizer.special_tokens.values()}


def test_labels_are_single_tokens_and_too_few_are_refused(tokenizer):
    labels = labels_of(tokenizer, 27)
    assert list(labels)[:26] == [chr(65 + i) for i in range(26)]
    assert list(labels)[26] == "AB", "AA is no token of this tokenizer, AB is"
    assert all(tokenizer.decode([i]) == label for label, i in labels.items())
    with pytest.raises(DataError, match="200 options need as many labels"):
        labels_of(tokenizer, 200)


def test_states_that_are_no_text_are_json():
    assert json.loads(state_text({"a": [1, "ü"]})) == {"a": [1, "ü"]}
    assert "ü" in state_text({"a": "ü"})


@pytest.mark.parametrize(
    ("answers", "are"),
    [
        (["billing", "shipping"] * 5, True),
        (["billing", "shipping"] * 4 + ["shipping"], False),  # fewer than five of each on average
        (["billing"] * 20, False),
        (["a" * 61, "b"] * 10, False),
        ([], False),
    ],
)
def test_answers_that_repeat_could_be_labels(answers: list[str], are: bool) -> None:
    assert are_labels(answers) == are
