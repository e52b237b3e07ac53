"""When the rows of a run count as learned: a pass over them costs less than the held-out sample can tell apart."""

import pytest

from settle.train.evaluation import Evaluation
from settle.train.watch import LEFT_SHARE, learned


def history(*losses: float, stderr: float = 0.1) -> list[Evaluation]:
    return [Evaluation(i, 64 * i, loss, stderr, None, (loss,)) for i, loss in enumerate([1.4, 1.3, 1.2, 1.1, *losses])]


def test_a_pass_that_costs_less_than_the_held_out_loss_is_uncertain_by_is_learned() -> None:
    told = learned(history(0.5, 0.9), [1.0] * 10 + [0.09] * 10, passes=2.0, steps=20)
    assert "loss was 0.0900" in told and "0.9000 ± 0.1000" in told and "more rows would help" in told
    assert not learned(history(0.5, 0.9), [1.0] * 10 + [0.11] * 10, passes=2.0, steps=20)


def test_only_the_last_pass_counts_and_the_whole_of_it() -> None:
    losses = [0.0] * 16 + [1.0] * 4  # ten steps are a pass: its mean is 0.4
    assert not learned(history(0.5, stderr=0.3), losses, passes=2.0, steps=20)
    assert learned(history(0.5, stderr=0.5), losses, passes=2.0, steps=20)


@pytest.mark.parametrize(("passes", "stderr"), [(1.99, 0.1), (3.0, float("nan"))])
def test_neither_before_the_second_pass_nor_without_a_standard_error(passes: float, stderr: float) -> None:
    assert not learned(history(0.5, stderr=stderr), [0.01] * 40, passes=passes, steps=40)


def test_nor_before_five_evaluations() -> None:
    assert learned(history(0.5), [0.01] * 40, passes=3.0, steps=40)
    assert not learned(history(), [0.01] * 40, passes=3.0, steps=40)


def test_one_lucky_evaluation_does_not_say_how_sure_the_sample_is() -> None:
    evaluations = history(0.5, 0.6, stderr=0.2)
    evaluations[-2] = Evaluation(9, 900, 0.04, 0.01, None, (0.04,))
    assert learned(evaluations, [0.1] * 40, passes=4.0, steps=40)
    evaluations[-4:] = history(0.5, 0.4, 0.5, 0.4, stderr=0.05)[-4:]
    assert not learned(evaluations, [0.1] * 40, passes=4.0, steps=40)


def test_a_handful_of_held_out_rows_does_not_make_rows_learned_that_are_not() -> None:
    unsure = history(0.5, 0.9, stderr=0.4)  # of seven rows
    assert learned(unsure, [0.3] * 20, passes=4.0, steps=20)
    floor = 1.386
    assert not learned(unsure, [0.3] * 20, passes=4.0, steps=20, floor=floor)
    assert learned(unsure, [LEFT_SHARE * floor - 0.001] * 20, passes=4.0, steps=20, floor=floor)
    sure = history(0.5, 0.9, stderr=0.02)  # the narrower bar
    assert not learned(sure, [0.03] * 20, passes=4.0, steps=20, floor=floor)
    assert learned(sure, [0.019] * 20, passes=4.0, steps=20, floor=floor)
