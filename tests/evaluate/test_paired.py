"""The statistics of paired scores."""

import numpy as np
import pytest

from settle.evaluate.compare.paired import paired


def test_a_clear_gain_and_a_clear_loss():
    base, tuned = [0.0] * 40, [1.0] * 20 + [0.0] * 20
    gain, loss = paired(base, tuned), paired(tuned, base)
    assert gain.verdict == "better" and loss.verdict == "worse"
    assert (gain.wins, gain.losses, gain.rows) == (20, 0, 40)
    assert gain.low == pytest.approx(-loss.high, abs=0.03) and 0.3 < gain.low < 0.5 < gain.high < 0.7
    assert gain.certainty > 0.999


def test_few_rows_prove_little():
    assert paired([0] * 5, [1] * 5).verdict == "no different"
    assert paired([0] * 6, [1] * 6).verdict == "better"  # 2 of 64 ways
    alone = paired([0.3], [0.4])
    assert alone.verdict == "no different" and alone.low < -0.5 and alone.high > 0.5


def test_rows_that_never_differ_are_not_proof_of_equality():
    same = paired([1.0] * 50, [1.0] * 50)
    assert same.verdict == "no different" and same.certainty == 0.5
    assert same.high == -same.low == pytest.approx(3 / 50, rel=0.05)


def test_same_data_same_figures():
    random = np.random.default_rng(1)
    base, tuned = random.random(300), random.random(300)
    assert paired(base, tuned) == paired(base, tuned)


@pytest.mark.parametrize("rows", [12, 60])
def test_coverage_and_false_alarms(rows):
    """Of many comparisons with a true difference of 0.1, the interval misses it in about 5 %; of none, few alarms."""
    random = np.random.default_rng(0)
    missed = alarms = 0
    rounds = 400
    for _ in range(rounds):
        hard = random.random(rows)
        base, equal = random.random(rows) < hard, random.random(rows) < hard
        found = paired(base, base + random.normal(0.1, 0.4, rows), resamples=400)
        missed += not found.low <= 0.1 <= found.high
        alarms += paired(base, equal, resamples=400).verdict != "no different"
    assert missed <= 0.09 * rounds and alarms <= 0.07 * rounds
    assert missed >= 0.01 * rounds
