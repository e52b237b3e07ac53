"""The threshold by which answers are refused: on worlds of known truth, families, and too few rows."""

import numpy as np
import pytest

from settle.data.decisions.calibration import CLAIMED, ERROR, binomial_tail, least_risk, refusal_for, rows_needed

RISK = 0.05


def world(random: np.random.Generator, rows: int, over: float, wrong: float = 0.0, family: int = 1):
    """Confidences, whether each answer is right, and families; the truth of logit c is logit c / over."""
    families = np.arange(rows) // family
    drawn = random.normal(2.5, 1.5, families[-1] + 1)[families]
    luck = random.random(families[-1] + 1)[families]
    right = luck < (1 - wrong) / (1 + np.exp(-np.abs(drawn)))
    return 1 / (1 + np.exp(-np.abs(drawn) * over)), right, families


@pytest.mark.parametrize(
    ("over", "wrong", "family"), [(1.0, 0.0, 1), (5.0, 0.0, 1), (2.0, 0.06, 1), (1.0, 0.0, 5), (5.0, 0.03, 5)]
)
def test_the_true_risk_is_above_the_one_asked_for_in_one_of_ten_at_most(over, wrong, family):
    fresh, is_right, _ = world(np.random.default_rng(0), 40_000, over, wrong)
    rounds, above = 120, 0
    for number in range(rounds):
        sure, right, families = world(np.random.default_rng([1, number]), 200, over, wrong, family)
        refusal = refusal_for(RISK, sure.tolist(), right.tolist(), families.tolist())
        answered = ~np.array([refusal.threshold is None]) & (fresh >= (refusal.threshold or 0))
        above += answered.any() and (~is_right[answered]).mean() > RISK
    assert above <= rounds * CLAIMED + 2 * (rounds * CLAIMED * (1 - CLAIMED)) ** 0.5


def test_a_calibrated_model_answers_nearly_what_it_could():
    answered, possible = 0, 0
    for number in range(20):
        sure, right, families = world(np.random.default_rng([2, number]), 600, 1.0)
        refusal = refusal_for(RISK, sure.tolist(), right.tolist(), families.tolist())
        risks = np.cumsum(~right[np.argsort(-sure)]) / np.arange(1, 601)
        answered += refusal.answered
        possible += int(np.flatnonzero(risks <= RISK)[-1] + 1)
        if refusal.threshold is not None:
            assert refusal.wrong == (~right[sure >= refusal.threshold]).sum()
            assert not refusal.refuses(refusal.threshold) and refusal.refuses(refusal.threshold - 1e-9)
    assert 0.5 * possible < answered < possible


def test_too_few_rows_promise_nothing_and_say_how_many_it_takes():
    needed = rows_needed(RISK)
    assert (1 - RISK) ** needed <= ERROR < (1 - RISK) ** (needed - 1) and needed == 50
    for rows, answers in ((needed - 1, False), (needed, True)):
        refusal = refusal_for(RISK, [0.99] * rows, [True] * rows, range(rows))
        assert (refusal.threshold is not None, refusal.needed) == (answers, needed)
    assert least_risk(needed) <= RISK < least_risk(needed - 1) and least_risk(0) == 1.0
    assert refusal_for(RISK, [], [], []).threshold is None


def test_rows_of_a_family_count_as_one():
    apart = refusal_for(RISK, [0.99] * 200, [True] * 200, range(200))
    together = refusal_for(RISK, [0.99] * 200, [True] * 200, [i // 10 for i in range(200)])
    assert apart.threshold == 0.99 and apart.independent == pytest.approx(200)
    assert together.threshold is None and together.independent == pytest.approx(20)


def test_equally_sure_answers_are_answered_together():
    """The right ones come first in the table, which is chance: those after them would be answered, too."""
    refusal = refusal_for(RISK, [0.9] * 200, [True] * 150 + [False] * 50, range(200))
    assert refusal.threshold is None


def test_the_binomial_tail_is_the_sum_of_its_terms():
    from math import comb

    for n, share in ((12, 0.3), (60, 0.05), (400, 0.5)):
        for errors in (0, 1, 5):
            terms = sum(comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(errors + 1))
            assert binomial_tail(errors, n, share) == pytest.approx(terms, rel=1e-9)
    assert binomial_tail(3, 3, 0.5) == binomial_tail(0, 5, 0.0) == 1.0 and binomial_tail(1, 5, 1.0) == 0.0
    assert binomial_tail(0.5, 10, 0.2) > binomial_tail(0, 10, 0.2)
