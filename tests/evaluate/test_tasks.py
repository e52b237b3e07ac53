"""Scores, and the choice of one from the data."""

import json

import pytest

from settle.base.errors import DataError, UsageError
from settle.base.registry import part_names, parts
from settle.data.layouts import Example
from settle.evaluate.compare.cases import Case, cases
from settle.evaluate.tasks import best_suited, named
from settle.evaluate.tasks.json import Json

CALL = '{"name": "search", "arguments": {"query": "rice", "most": 3}}'


def wanted(*references: str) -> list[Case]:
    return [
        Case(number, reference, ({"role": "user", "content": "?"},)) for number, reference in enumerate(references, 1)
    ]


def score(name: str, answer: str, reference: str) -> float:
    return named(name).score(answer, wanted(reference)[0])


def test_every_task_says_what_it_is():
    for name, task in parts("evaluate/tasks").items():
        assert task.__doc__ and isinstance(task.rank, int), name
    ranks = [task.rank for task in parts("evaluate/tasks").values() if task.rank]
    assert len(ranks) == len(set(ranks)) == len(part_names("evaluate/tasks")) - 1


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [("Paris", " paris.\n", 1), ("1,200", "$1200.00", 1), ("Paris, France", "Paris", 0), ("", "", 1), ("1", "10", 0)],
)
def test_exact(answer, reference, right):
    assert score("exact", answer, reference) == right


def test_f1():
    assert score("f1", "the cat sat", "A cat sat down.") == pytest.approx(0.8)
    assert score("f1", "猫が好き", "猫が好き") == 1 and score("f1", "", "word") == 0 == score("f1", "word", "other")


def test_regex():
    final = r"regex:####\s*(.+)"
    assert score(final, "so\n#### 12", "2 × 6\n#### 12.0") == 1
    assert score(final, "#### 3\n#### 12", "#### 3") == 0  # the last one counts
    assert score(final, "12", "#### 12") == 0
    assert score(r"regex:\d{4}", "in 1789", "no year") == 1  # nothing wanted: having one is right


def test_json():
    nearly = ('```json\n{"a": 1, "b": [1, 2]}\n```', '{"a": 1.0, "b": [1, 3]}')
    assert score("json", *nearly) == 0 and score("json:values", *nearly) == pytest.approx(2 / 3)
    assert score("json", '{"b": [1, 3], "a": 1}', nearly[1]) == 1
    assert score("json", '{"a": 1} and more', '{"a": 1}') == 0 == score("json:valid", '{"a": }', "{}")
    assert score("json:valid", "[]", '{"a": 1}') == 1
    assert [task.want for task in Json().beside()] == ["values", "valid"] and not Json(want="valid").beside()
    assert [task.want for task in Json(want="values").beside()] == ["match", "valid"]
    assert score("json", '{"a": 1, "more": 2}', '{"a": 1}') == 0, "what was not asked for counts as wrong"
    assert score("json:values", '{"a": 1, "more": 2}', '{"a": 1}') == pytest.approx(2 / 3)
    assert score("json:values", "[1, 2, 3, 4]", "[1]") == pytest.approx(2 / 5)
    assert score("json", "{}", "{}") == 1 and score("json", '{"a": true}', '{"a": 1}') == 0


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", 1),
        (f"[TOOL_CALLS] [{CALL}]", 1),
        ("<function=search><parameter=query>rice</parameter><parameter=most>3</parameter></function>", 1),
        ("search(query='rice', most=3)", 1),
        ("<tool_call>search\n<arg_key>query</arg_key><arg_value>rice</arg_value></tool_call>", 5 / 6),
        ('{"function": {"name": "search", "arguments": "{\\"query\\": \\"rice\\", \\"most\\": 3}"}}', 1),
        ('{"name": "search", "parameters": {"query": "rice", "most": 4}}', 0.75),
        ('{"name": "find", "arguments": {"query": "rice", "most": 3}}', 0),
        (f"{CALL}\n{CALL}", 0.5),
        ("I will look for rice.", 0),
        ('{"name": "search", "arguments": {"query"', 0),
    ],
)  # fmt: skip
def test_tool_call(answer, right):
    assert score("tool_call", answer, CALL) == pytest.approx(right)


def test_no_call_where_none_is_wanted():
    assert score("tool_call", "Hello!", "Hi, what can I do?") == 1 and score("tool_call", CALL, "Hi!") == 0


def test_own_scorer(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def score(answer, reference, case):\n    return len(answer) / case.number\n")
    task = named(str(file))
    assert task.score("abcd", wanted("x")[0]) == 4 and not task.is_share
    file.write_text("def score(answer, reference, case):\n    return float('nan')\n")
    with pytest.raises(DataError, match="row 1"):
        named(str(file)).score("a", wanted("b")[0])
    file.write_text("def score(answer, reference, case):\n    return answer.nothing\n")
    with pytest.raises(DataError, match="AttributeError.*|row 1"):
        named(str(file)).score("a", wanted("b")[0])
    for text in ("x = 1\n", "def score(:\n"):
        file.write_text(text)
        with pytest.raises(UsageError, match="mine.py"):
            named(str(file))


@pytest.mark.parametrize("bad", ["exakt", "regex:(", "regex:", "exact:3", "nofile.py", "json:wrong"])
def test_scores_that_are_none(bad):
    with pytest.raises(UsageError):
        named(bad)


@pytest.mark.parametrize(
    ("references", "name"),
    [
        (["yes", "no", "yes"] * 3, "exact"),
        (["The meaning of this review is positive on the whole"] * 30, "exact"),  # a label, if a long one
        ([f"step {i}\n#### {i}" for i in range(9)], "regex"),
        ([json.dumps({"name": "Ada", "age": i}) for i in range(9)], "json"),
        ([CALL, "Here you are, that is what I found for you."] * 5, "tool_call"),
        ([f"A longer answer, number {i}, that nobody would repeat word for word." for i in range(9)], "f1"),
        (["12", "7", "1,000"], "exact"),
    ],
)
def test_choice(references, name):
    assert type(best_suited(wanted(*references))).__module__.endswith(f".{name}")


@pytest.mark.parametrize(
    ("references", "title", "beside"),
    [
        ([f"WED|{h:02}:00|CHEN|SECURITY" for h in range(20)], "token F1", ["exact match"]),
        (["WED|08:00|CHEN|SECURITY", "FRI|09:00|ADA|HIRING"] * 10, "exact match", ["token F1"]),  # two labels
        ([f"Chen Wei {n}" for n in range(20)], "exact match", ["token F1"]),
        ([f"$1,234,567.{n:02}" for n in range(20)], "exact match", ["token F1"]),  # a number is one thing
        (['{"day": 1, "at": 8, "who": "Ada", "why": "x"}'] * 9, "JSON values", ["JSON match", "valid JSON"]),
        ([json.dumps({"day": n}) for n in range(9)], "JSON match", ["JSON values", "valid JSON"]),
        ([f"It leaves from platform {n} at noon, so be there in time." for n in range(9)], "token F1", []),
    ],
)  # fmt: skip
def test_what_can_show_a_change_decides(references: list[str], title: str, beside: list[str]) -> None:
    """Answers of several parts are judged by their parts, which move before the whole is right."""
    task = best_suited(wanted(*references))
    assert task.title == title and [other.title for other in task.beside()] == beside


def test_rows_as_cases():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    found = cases(
        [
            Example("chat", turns, single=True),
            Example("text", text="no question"),
            Example("preference", turns[:1], chosen=turns[1:], rejected=[call]),
            Example("chat", [*turns, {"role": "user", "content": "c"}, call], [{"type": "function"}]),
        ]
    )
    assert [(c.number, c.reference, c.question, c.prompt) for c in found] == [
        (1, "b", "a", "a"),
        (3, "b", "a", "a"),
        (4, '{"name": "f", "arguments": {"x": 1}}', "c", None),
    ]
    assert len(found[-1].messages) == 3 and found[-1].tools


def test_answers_of_a_few_words_are_matched_exactly() -> None:
    exact = parts("evaluate/tasks")["exact"]
    assert exact.suited(wanted("one two three"))
    assert exact.suited(wanted("one two three four")) is None
    assert exact.suited(wanted("x" * 120)) and exact.suited(wanted("x" * 121)) is None  # some languages have no spaces
    label = "the first of two labels that are long {}"
    assert exact.suited(wanted(*[label.format(i % 2) for i in range(10)]))  # a label for every five rows
    assert exact.suited(wanted(*[label.format(i % 2) for i in range(9)])) is None
    many = [label.format(i % 20) for i in range(100)]
    assert exact.suited(wanted(*many)) and exact.suited(wanted(*many, *[label.format(20)] * 50)) is None
