"""The loss that tuning is loss to end at, from what a probe saw."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from settle.base.statistics import Interval
from settle.machine import COMPUTE_DTYPES
from settle.plan.tuning_forecast import HALF_MEMORY_GROWTH, MEMORY_GROWTH, Measured, _label_loss, _loss, memory_growth
from settle.train.proof.prove import GRADIENT_TOLERANCE

PLAN: Any = SimpleNamespace(loop=SimpleNamespace(tokens_per_step=1000))
SEEN = Measured(
    steps=4, step_seconds=1.0, step_spread=0.0, evaluation_seconds=0.0, memory=0, watts=1.0, watts_source="asked",
    before=3.0, after=2.0, stderr=0.02,
)  # fmt: skip


def test_a_loss_that_hardly_fell_stays_about_where_it_is():
    loss = _loss(PLAN, replace(SEEN, before=2.01), Interval(50_000, 40_000, 60_000))
    assert 1.9 < loss.value < 2.0 and loss.low > 1.5


def test_a_loss_that_fell_fast_may_fall_to_nearly_nothing():
    """By half of itself with every factor e of tokens: the lower end goes on so, the value ever more slowly."""
    loss = _loss(PLAN, SEEN, Interval(400_000, 400_000, 400_000))
    assert loss.low < 2.0 * (400_000 / 4_000) ** -0.5 * 1.01 < loss.value <= loss.high < 2.0
    never = _loss(PLAN, replace(SEEN, before=1.0), Interval(400_000, 400_000, 400_000))
    assert never.low < never.value == 2.0 < never.high


def test_the_loss_of_labels_may_stay_or_go():
    """Whatever the few steps of the probe did."""
    loss = _label_loss(replace(SEEN, before=1.5, after=1.4))
    assert loss.low < 0.15 * 1.5 < loss.value < 1.5 == loss.high


def test_every_type_that_a_device_may_compute_in_has_its_memory_and_its_proof():
    """float16 is what CUDA cards older than Ampere compute in."""
    assert [memory_growth(dtype) for dtype in COMPUTE_DTYPES] == [MEMORY_GROWTH, HALF_MEMORY_GROWTH, HALF_MEMORY_GROWTH]
    assert {getattr(torch, dtype) for dtype in COMPUTE_DTYPES} <= GRADIENT_TOLERANCE.keys()


def test_the_page_says_what_is_added_to_the_memory():
    page = " ".join((Path(__file__).parents[2] / "docs" / "forecast.md").read_text().split())
    assert f"grow by {MEMORY_GROWTH - 1:.0%} after these steps in float32".replace("%", " %") in page
    assert f"by {HALF_MEMORY_GROWTH - 1:.0%} in a half type".replace("%", " %") in page
