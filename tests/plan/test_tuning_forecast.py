"""The loss that tuning is told to end at, from what a probe saw."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from settle.base.statistics import Interval
from settle.plan.tuning_forecast import Measured, _loss

PLAN: Any = SimpleNamespace(loop=SimpleNamespace(tokens_per_step=1000))
SEEN = Measured(
    steps=4, step_seconds=1.0, step_spread=0.0, look_seconds=0.0, memory=0, watts=1.0, watts_source="asked",
    before=3.0, after=2.0, stderr=0.02,
)  # fmt: skip


def test_a_loss_that_hardly_fell_stays_about_where_it_is():
    told = _loss(PLAN, replace(SEEN, before=2.01), Interval(50_000, 40_000, 60_000))
    assert 1.9 < told.value < 2.0 and told.low > 1.5


def test_a_loss_that_fell_fast_may_fall_to_nearly_nothing():
    """By half of itself with every factor e of tokens: the lower end goes on so, the value ever more slowly."""
    told = _loss(PLAN, SEEN, Interval(400_000, 400_000, 400_000))
    assert told.low < 2.0 * (400_000 / 4_000) ** -0.5 * 1.01 < told.value <= told.high < 2.0
    never = _loss(PLAN, replace(SEEN, before=1.0), Interval(400_000, 400_000, 400_000))
    assert never.low < never.value == 2.0 < never.high
