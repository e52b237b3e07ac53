"""A stream of changes: what is kept without a gain, what is found, and what an interval covers."""

import math

import numpy as np
import pytest
from scipy import integrate

from settle.experiment.recipes import (
    EFFECTS,
    ERROR,
    FEWEST_PAIRS,
    HALF_SPENT,
    LEAST_STD,
    MOST_FREEDOM,
    Noise,
    error_of,
    evidence,
    gain_interval,
    state,
)

STD = 0.002
KNOWN = Noise(3 * STD**2, 3)


def test_all_changes_together_err_as_often_as_one_session_may():
    errors = [error_of(number) for number in range(100_000)]
    assert sum(errors[:HALF_SPENT]) == pytest.approx(ERROR / 2)
    assert 0.99 * ERROR < sum(errors) < ERROR and errors == sorted(errors, reverse=True)


def test_evidence_is_the_bayes_factor_of_a_mean_against_none():
    """By a direct integral over the spread, of an independent formula."""
    gains, noise = [0.004, 0.001, 0.003], Noise(2 * 0.0015**2, 2)

    def likelihood(effect):
        def at(log_std):
            std = math.exp(log_std)
            squares = sum((gain - effect * std) ** 2 for gain in gains) + noise.squares
            return std ** -(len(gains) + noise.freedom) * math.exp(-squares / (2 * std**2))

        return integrate.quad(at, math.log(1e-4), math.log(1), limit=400)[0]

    wanted = np.mean([likelihood(effect) for effect in EFFECTS]) / likelihood(0.0)
    assert evidence(gains, noise) == pytest.approx(wanted, rel=1e-3)


def test_evidence_has_no_unit_and_earlier_runs_count_for_a_few_pairs():
    gains = [0.01, 0.02, 0.015]
    assert evidence([10 * g for g in gains], Noise(3e-2, 3)) == pytest.approx(evidence(gains, Noise(3e-4, 3)))
    assert evidence(gains, Noise(1e-4 * 50, 50)) == evidence(gains, Noise(1e-4 * MOST_FREEDOM, MOST_FREEDOM))
    assert evidence([], KNOWN) == 1.0
    assert evidence([0.0] * 3, Noise()) < 1, "equal runs are no evidence of anything"


def test_whoever_looks_after_every_pair_errs_no_more_often():
    """Noise known from three pairs; bets at 1/20 are won in 5 % of streams at most, however long one goes on."""
    random, won, streams = np.random.default_rng(1), 0, 400
    for _ in range(streams):
        noise = Noise.of_equals(random.normal(0, STD, 3).tolist())
        gains = random.normal(0, STD, 12).tolist()
        won += any(evidence(gains[:n], noise) >= 20 for n in range(1, 13))
    assert won / streams <= 0.05


@pytest.mark.parametrize("draw", ["normal", "student", "unequal"])
def test_a_session_without_an_effect_keeps_nothing(draw):
    random, kept = np.random.default_rng(2), 0
    for number in range(1000):
        scale = random.uniform(0.5, 2) if draw == "unequal" else 1.0
        gains = (random.standard_t(3, 6) if draw == "student" else random.normal(0, scale, 6)) * STD
        seen = (state(gains[:n].tolist(), KNOWN, error_of(number % 200), 0.005) for n in range(1, 7))
        kept += next((s for s in seen if s), None) == "kept"
    assert kept <= 1


def test_a_gain_of_one_percent_is_found_within_six_pairs():
    random, found = np.random.default_rng(3), 0
    for _ in range(100):
        noise = Noise.of_equals(random.normal(0, STD, 3).tolist())
        gains = random.normal(0.01, STD, 6).tolist()
        found += any(state(gains[:n], noise, error_of(0), 0.005) == "kept" for n in range(FEWEST_PAIRS, 7))
    assert found >= 90


def test_a_loss_is_discarded_at_once_and_two_pairs_keep_nothing():
    assert state([-0.05], KNOWN, error_of(0), 0.005) == "discarded"
    assert state([0.1, 0.1], Noise(6 * STD**2, 6), error_of(0), 0.005) is None
    assert state([0.1, 0.1, 0.1], Noise(6 * STD**2, 6), error_of(0), 0.005) == "kept"
    assert state([0.001, -0.001], KNOWN, error_of(0), 0.5) == "discarded", "it gains less than matters"


def test_what_matters_is_seldom_discarded():
    random, missed = np.random.default_rng(4), 0
    for _ in range(300):
        noise = Noise.of_equals(random.normal(0, STD, 3).tolist())
        gains = random.normal(0.005, STD, 6).tolist()
        states = (state(gains[:n], noise, error_of(0), 0.005) for n in range(1, 7))
        missed += next((s for s in states if s), None) == "discarded"
    assert missed / 300 <= 0.1


def test_the_interval_covers_wherever_one_stops():
    random, missed = np.random.default_rng(5), 0
    for _ in range(60):
        noise = Noise.of_equals(random.normal(0, STD, 3).tolist())
        gains = random.normal(0.003, STD, 6).tolist()
        intervals = [gain_interval(gains[:n], noise) for n in (2, 4, 6)]
        missed += not all(i.contains(0.003) for i in intervals)
        last = intervals[-1]
        assert last.is_bounded and last.low < last.value < last.high
        assert evidence(gains, noise, last.low) == pytest.approx(40, rel=0.01)
    assert missed <= 5
    assert not gain_interval([0.01], Noise()).is_bounded


def test_noise_is_pooled_over_changes_whatever_they_gained():
    noise = KNOWN.with_pairs([0.5, 0.5 + STD, 0.5 - STD])
    assert noise == Noise(pytest.approx(KNOWN.squares + 2 * STD**2), 5)
    assert KNOWN.with_pairs([0.1]) is KNOWN
    assert Noise().std == LEAST_STD and KNOWN.std == pytest.approx(STD)
