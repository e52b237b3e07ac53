"""How long an answer takes: what was expected, and what was measured."""

import math

import pytest

from settle.experiment.run import EXPECTED_SPREAD, LEAST_SPREAD, ArmPace


def test_nothing_is_known_before_anything_ran() -> None:
    pace = ArmPace()
    assert pace.estimate is None
    pace.record(0, 3.0)
    pace.record(2, 0.0)
    assert pace.estimate is None, "neither no answers nor no time says anything"


def test_what_was_measured_outweighs_what_was_expected_by_its_precision() -> None:
    assert ArmPace(2.0).estimate == pytest.approx((math.log(2.0), EXPECTED_SPREAD))
    pace = ArmPace(2.0)
    pace.record(4, 1.0)  # 0.25 s an answer
    both = 2 * EXPECTED_SPREAD**-2
    assert pace.estimate == pytest.approx(((math.log(2.0) + math.log(0.25)) / 2, both**-0.5))
    alone = ArmPace()
    for _ in range(3):
        alone.record(1, 0.5)
    assert alone.estimate == pytest.approx((math.log(0.5), LEAST_SPREAD))
    mixed = ArmPace()
    mixed.record(1, 1.0)
    mixed.record(3, 12.0)  # of all answers together: 13 s for 4
    spread = abs(math.log(4.0)) / math.sqrt(2)  # of two logarithms
    assert mixed.estimate == pytest.approx((math.log(13 / 4), max(LEAST_SPREAD, spread / math.sqrt(2))))
