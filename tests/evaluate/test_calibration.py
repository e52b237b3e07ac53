"""Temperatures, calibration error, Brier score and risk against coverage, on probabilities of known truth."""

import numpy as np
import pytest

from settle.data.decisions.calibration import cross_entropy, fit_temperature, probabilities
from settle.evaluate.calibration import (
    CalibrationReport,
    brier,
    calibration_error,
    measure_calibration,
    risk_coverage,
    risk_curve,
)


def drawn(rows: int, options: int, heat: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, K) that are `heat` times too large, and targets drawn from the right probabilities."""
    random = np.random.default_rng(seed)
    scores = random.normal(0, 1.5, (rows, options))
    shares = probabilities(scores)
    chosen = (shares.cumsum(1) > random.random((rows, 1))).argmax(1)
    return scores * heat, np.eye(options)[chosen]


@pytest.mark.parametrize("heat", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_on_is_found(heat):
    scores, targets = drawn(4000, 4, heat)
    assert fit_temperature(scores, targets) == pytest.approx(heat, rel=0.08)


@pytest.mark.parametrize(("lead", "share"), [(1.0, 31 / 32), (14.0, 0.75)])
def test_rows_that_agree_leave_the_expected_temperature_behind(lead, share):
    """A model that stopped early is right on nearly all of 32 rows and says 0.5, another is right on three of four and
    says 1: these rows are enough to see it."""
    random = np.random.default_rng(3)
    scores, right = random.normal(0, 0.1 * lead, (32, 4)), np.arange(32) % 4
    scores[np.arange(32), right] += lead
    wrong = np.arange(32) >= round(32 * share)
    targets = np.eye(4)[np.where(wrong, (right + 1) % 4, right)]
    confidence = probabilities(scores, fit_temperature(scores, targets)).max(1).mean()
    assert confidence == pytest.approx(share, abs=0.1) != probabilities(scores).max(1).mean()


def test_few_rows_move_the_temperature_little_and_none_leaves_it():
    scores, targets = drawn(4000, 3, 1.0)
    wrong = np.eye(3)[scores.argmin(1)]  # sure and never right
    assert 1 < fit_temperature(scores[:2], wrong[:2]) < fit_temperature(scores[:200], wrong[:200])
    assert fit_temperature(scores[:0], targets[:0]) == 1.0


def test_options_that_a_row_lacks_get_nothing():
    shares = probabilities(np.array([[1.0, 1.0, -np.inf]]), 0.5)
    assert shares.tolist() == [[0.5, 0.5, 0.0]]
    assert cross_entropy(shares, np.array([[1.0, 0.0, 0.0]])) == pytest.approx(np.log(2))
    assert brier(shares, np.array([[1.0, 0.0, 0.0]])) == pytest.approx(0.5)


def test_the_calibration_error_is_the_gap_that_was_put_in():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.3, 0.95, 20_000)
    right = (random.random(20_000) < confidence - 0.1).astype(float)
    assert calibration_error(confidence, right) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("gap", [0.0, 0.08])
def test_its_interval_holds_the_gap_and_reaches_zero_where_there_is_none(gap, monkeypatch):
    monkeypatch.setattr("settle.evaluate.calibration.RESAMPLES", 80)
    random, held, with_zero, rounds = np.random.default_rng(2), 0, 0, 20
    for _ in range(rounds):
        confidence = np.clip(random.beta(5, 1.5, 150), 0.2, 0.999)
        right = random.random(150) < np.clip(confidence - gap, 0, 1)
        measured = measure_calibration(confidence, right)
        held += measured.error.contains(gap)
        with_zero += measured.error.low == 0
    assert held >= 0.85 * rounds
    assert with_zero >= 0.85 * rounds if gap == 0 else with_zero < 0.85 * rounds


def test_rows_of_one_family_widen_the_interval():
    random = np.random.default_rng(3)
    confidence, right = np.repeat(random.uniform(0.4, 0.9, 40), 10), np.repeat(random.random(40) < 0.65, 10)
    apart = measure_calibration(confidence, right).error
    together = measure_calibration(confidence, right, np.repeat(np.arange(40), 10).tolist()).error
    assert together.high - together.low > apart.high - apart.low


def test_refusing_above_a_risk_answers_the_sure_rows_only():
    confidence, right = np.array([0.99, 0.96, 0.9, 0.5]), np.array([1, 1, 0, 0])
    five, twenty = risk_coverage(confidence, right, risks=(0.05, 0.2))
    assert (five.coverage, five.wrong.value) == (0.5, 0.0)
    assert (twenty.coverage, twenty.wrong.value) == (0.75, pytest.approx(1 / 3))
    assert risk_coverage(confidence, right, risks=(0.001,))[0].wrong is None
    coverage, risk = risk_curve(confidence, right)
    assert (coverage.tolist(), risk.tolist()) == ([0.25, 0.5, 0.75, 1.0], [0, 0, pytest.approx(1 / 3), 0.5])


def test_the_report_says_what_was_measured():
    scores, targets = drawn(400, 3, 1.0)
    report = CalibrationReport.of(probabilities(scores), targets)
    assert report.to_json()["rows"] == 400
    assert report.error.error.low == 0, "these probabilities are right"
    text = "\n".join(report.lines() + report.refused_lines())
    assert report.warning == ""
    assert f"{report.accuracy.value:.1%} of 400 rows" in text
    assert "refusing above a risk of 5%" in text


def test_probabilities_that_are_too_low_or_too_high_are_named():
    """One tuned model was right on 97 % and said 43 %: every answer is refused, and the calibration error does not say
    in which direction it errs."""
    targets = np.eye(2)[[0] * 97 + [1] * 3]
    low, high = np.tile([0.57, 0.43], (100, 1)), np.tile([0.999, 0.001], (100, 1))
    assert CalibrationReport.of(low, targets).warning == "under-confident: says 57% on average, is right on 97%"
    mixed = np.eye(2)[[0, 1] * 50]
    assert CalibrationReport.of(high, mixed).warning == "over-confident: says 100% on average, is right on 50%"
    assert CalibrationReport.of(np.tile([0.97, 0.03], (100, 1)), targets).warning == ""
    few = CalibrationReport.of(low[:6], targets[:6], [0] * 6)
    assert few.warning == "", "one family shows nothing"


def test_shares_of_people_are_held_against_the_share_that_agrees() -> None:
    """Of ten people six say the first: 0.6 is the right probability, though the first is always the likeliest."""
    shares = np.tile([0.6, 0.3, 0.1], (200, 1))
    report = CalibrationReport.of(shares, shares)
    assert report.accuracy.value == 1.0 and report.error.error.value == pytest.approx(0.0, abs=1e-12)
    assert CalibrationReport.of(shares, np.tile([1.0, 0.0, 0.0], (200, 1))).error.error.value == pytest.approx(0.4)
