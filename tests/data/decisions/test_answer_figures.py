"""How sure an answer is, by the two published formulas; which column may be a label."""

from typing import Any

import pytest

from settle.data.decisions.questions import DecisionAnswer, Option, Question
from settle.data.decisions.rows import _may_label


def answer(kind: str, *probabilities: float) -> Any:
    options = tuple(Option(str(n)) for n in range(len(probabilities)))
    return DecisionAnswer(Question(kind, "?", options), probabilities)


def test_a_choice_is_as_sure_as_it_is_above_an_even_share() -> None:
    assert answer("choice", 0.25, 0.25, 0.25, 0.25).confidence == pytest.approx(0.0)
    assert answer("choice", 1.0, 0.0, 0.0).confidence == pytest.approx(1.0)
    assert answer("choice", 0.7, 0.2, 0.1).confidence == pytest.approx((0.7 - 1 / 3) / (2 / 3))
    assert answer("choice", 1.0).confidence == 1.0


def test_a_score_is_as_sure_as_its_levels_are_near_the_likeliest() -> None:
    assert answer("score", 0.0, 1.0, 0.0, 0.0, 0.0).confidence == pytest.approx(1.0)
    # levels 0 to 4: on average 1.2 from the middle; here 0.2 at one step and 0.1 at two
    assert answer("score", 0.0, 0.2, 0.7, 0.0, 0.1).confidence == pytest.approx(1 - (0.2 + 0.2) / 1.2)
    assert answer("score", 0.5, 0.0, 0.5).confidence == pytest.approx(0.0)  # 1 away on average, 2/3 for even shares


@pytest.mark.parametrize(
    ("values", "repeats", "may"),
    [
        (["a", "b"] * 5, 5.0, True), (["a", "b"] * 5, 5.1, False), (["a"] * 10, 5.0, False), (["a"], 1.0, True),
        (["a", "b", "c"], 1.0, True), ([""] * 4, 1.0, False), (["x" * 5000, "y"] * 5, 2.0, False),
        ([["a"], "b"], 1.0, False),
    ],
)  # fmt: skip
def test_a_label_is_short_and_comes_again(values: list[Any], repeats: float, may: bool) -> None:
    assert _may_label([{"label": value} for value in values], "label", repeats) is may
