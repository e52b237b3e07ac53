"""The comparison core by its numbers: what is known in closed form, and what a simulation of many races shows."""

import numpy as np
import pytest

from settle.base.statistics import Interval, PairedTest, holm
from settle.evaluate.compare.sample_size import (
    chance_to_decide,
    more_rows,
    sign_test_power,
    smallest_visible,
)
from settle.experiment.race import EARLY_SHARE, ERROR, Race, anytime_interval, evidence, shaffer


def raced(shares, rows, seed, families=None, step=4, is_share=True):
    """The outcome of a race of candidates that are right on a share of the rows, each by itself."""
    random = np.random.default_rng(seed)
    scores = [(random.random(rows) < share).astype(float) for share in shares]
    race = Race([f"m{k}" for k in range(len(shares))], families or list(range(rows)), is_share, seed=seed)
    while chosen := race.next_rows(step):
        race.record({k: [float(scores[k][row]) for row in chosen] for k in race.left})
    return race.outcome()


def test_wealth_of_rows_that_agree_is_the_mean_over_stakes():
    """Bets of a share x on n wins grow to (1 + x)^n; spread evenly that is (2^(n+1) - 1) / (n + 1)."""
    assert evidence([1.0] * 9) == pytest.approx((2**10 - 1) / 10, rel=0.01)
    assert evidence([0.0] * 50) == pytest.approx(1.0) and evidence([]) == 1.0
    assert evidence([-1.0] * 9) == 1.0, "wealth never has to be below what one began with"


def test_evidence_is_the_most_that_there_ever_was():
    won = [1.0] * 9
    assert evidence([*won, *[-1.0] * 9]) == pytest.approx(evidence(won))


def test_wealth_seldom_grows_where_nothing_is_true():
    random = np.random.default_rng(1)
    grown = [evidence(random.choice([-1.0, 0.0, 1.0], 60)) >= 20 for _ in range(300)]
    assert np.mean(grown) <= 0.05


def test_the_anytime_interval_holds_the_mean_and_narrows():
    random = np.random.default_rng(2)
    draws = [
        np.where(random.random(40) < 0.6, 1.0, 0.0) - np.where(random.random(40) < 0.4, 1.0, 0.0) for _ in range(80)
    ]
    intervals = [anytime_interval(d) for d in draws]
    assert np.mean([i.contains(0.2) for i in intervals]) >= 0.95
    few, many = anytime_interval(draws[0]), anytime_interval(np.tile(draws[0], 4))
    assert many.high - many.low < few.high - few.low and few.low < few.value < few.high
    assert anytime_interval([]).ends == (0.0, -1.0, 1.0)


def test_the_power_of_the_sign_test_by_hand():
    """Five rows and a candidate that is always ahead: all five must agree, 2 · 2^-5 = 0.0625."""
    assert sign_test_power(5, 1.0, 0.07) == pytest.approx(1.0)
    assert sign_test_power(5, 1.0, 0.06) == 0.0
    assert smallest_visible(5, 0.05) is None
    # a known table (two-sided 5 %, power 80 %): at 28 % of rows that differ, ten points take about 210 rows
    assert 0.095 < smallest_visible(210, 0.05) < 0.112


def test_more_rows_are_asked_for_where_they_would_decide():
    clear, equal = [1.0] * 8 + [0.0] * 12, [1.0, -1.0] * 10
    assert 1 <= more_rows(clear, 0.01) <= 25 and more_rows(equal, 0.01) is None
    # 12 wins, 4 losses of 40: d = 0.2, variance 0.36, z = 1.96 + 0.84: 71 rows in all
    assert more_rows([1.0] * 12 + [-1.0] * 4 + [0.0] * 24, 0.05) == pytest.approx(31, abs=1)


def test_the_rest_has_a_chance_or_none():
    assert chance_to_decide([0.0] * 20, 20, 0.01) < 0.05 < chance_to_decide([1.0] * 6 + [0.0] * 6, 20, 0.01)
    assert chance_to_decide([1.0] * 12, 0, 0.01) == 0.0


def test_a_worse_candidate_drops_out_early_and_is_shown_to_be_worse():
    outcome = raced((0.95, 0.1, 0.1), 40, seed=3)
    assert list(outcome.left) == [0] and max(outcome.asked) < 40 and outcome.saved > 0.3
    pair = outcome.pair(1, 0)
    assert pair.better == 0 and pair.early and pair.difference.high < 0
    assert outcome.pair(0, 1).difference.low == -pair.difference.high


def test_equals_are_not_told_apart_and_the_rest_is_not_asked():
    same = [raced((0.6, 0.6, 0.6), 40, seed) for seed in range(16)]
    assert sum(any(p.is_shown for p in o.pairs) for o in same) <= 1
    assert np.mean([o.saved for o in same]) > 0.2 and all(o.why for o in same if o.saved)


def test_rows_of_one_family_count_once_and_stay_together():
    families = [row // 5 for row in range(35)]
    race = Race(["a", "b"], families)
    asked = []
    while rows := race.next_rows(4):
        assert len({families[r] for r in rows}) == len(rows) / 5, "families are asked whole"
        asked += rows
        race.record({k: [float(k == 0)] * len(rows) for k in race.left})
    outcome = race.outcome()
    assert sorted(asked) == list(range(35))
    assert not outcome.pair(0, 1).is_shown, "seven families that agree are too few for an error of 1 %"
    alone = raced((1.0, 0.0), 40, seed=0)
    assert list(alone.left) == [0] and alone.asked[0] < 20


def test_scores_without_bounds_are_judged_at_the_end_alone():
    race = Race(["a", "b"], list(range(20)), is_share=False)
    while rows := race.next_rows(4):
        assert race.record({0: [300.0 + row for row in rows], 1: [float(row) for row in rows]}) == []
    pair = race.outcome().pair(0, 1)
    assert pair.better == 0 and not pair.early and pair.rows == 20


def test_one_candidate_alone_answers_everything():
    outcome = raced((0.5,), 12, seed=0)
    assert list(outcome.left) == [0] and outcome.asked == [12] and not outcome.pairs


def test_of_all_pairs_fewer_claims_can_be_false_at_once_than_there_are():
    def corrected(candidates, *p_values):
        tests = [PairedTest(0, 0, Interval(0, 0, 0), p, 9, 0, 0, 9, p) for p in p_values]
        return [one.adjusted_p for one in shaffer(tests, candidates)]

    assert corrected(2, 0.02) == [0.02]
    # of three: none is shown yet, so all three may be equal; then at most one pair
    assert corrected(3, 0.001, 0.008, 0.009) == pytest.approx([0.003, 0.008, 0.009])
    assert corrected(3, 0.009, 0.03, 0.001) == pytest.approx([0.009, 0.03, 0.003])
    # of four: 6, then 3 (three that are alike), 3, 3, 2, 1
    six = corrected(4, *(0.001 * k for k in range(1, 7)))
    assert six == pytest.approx([0.006, 0.006, 0.009, 0.012, 0.012, 0.012])
    assert all(ours <= theirs.adjusted_p for ours, theirs in zip(
        corrected(3, 0.004, 0.005, 0.02),
        holm([PairedTest(0, 0, Interval(0, 0, 0), p, 9, 0, 0, 9, p) for p in (0.004, 0.005, 0.02)]), strict=True
    ))  # fmt: skip


def test_a_bet_is_paid_for_in_both_directions():
    """Who drops out early is shown by twice the evidence that one direction would take."""
    pairs, early = 1, ERROR * EARLY_SHARE
    wins = next(n for n in range(1, 60) if evidence([1.0] * n) >= pairs / early)
    enough = next(n for n in range(1, 60) if evidence([1.0] * n) >= 2 * pairs / early)
    assert wins < enough < 60
    for rows, dropped in ((enough - 1, []), (enough, [1])):
        race = Race(["a", "b"], range(200))
        assert len(race.next_rows(rows)) == rows
        assert race.record({0: [1.0] * rows, 1: [0.0] * rows}) == dropped
