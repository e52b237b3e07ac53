"""The loss that tuning is loss to end at, from what a probe saw."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch

from settle.base.event_log import Events
from settle.base.events import Eval, LossForecast
from settle.base.statistics import Interval
from settle.machine.cores import COMPUTE_DTYPES
from settle.plan.forecast import HALF_MEMORY_GROWTH, MEMORY_GROWTH, label_loss, memory_growth, tuning_loss
from settle.plan.outlook import Outlook, TuningStart
from settle.plan.probe import ProbeResult
from settle.train.proof import GRADIENT_TOLERANCE

PLAN: Any = SimpleNamespace(loop=SimpleNamespace(tokens_per_step=1000))
SEEN = ProbeResult(
    steps=4, step_seconds=1.0, step_spread=0.0, evaluation_seconds=0.0, memory=0, watts=1.0, watts_source="asked",
    before=3.0, after=2.0, stderr=0.02,
)  # fmt: skip


def test_a_loss_that_hardly_fell_stays_about_where_it_is():
    loss = tuning_loss(PLAN, replace(SEEN, before=2.01), Interval(50_000, 40_000, 60_000))
    assert 1.9 < loss.value < 2.0 and loss.low > 1.5


def test_a_loss_that_fell_fast_may_fall_to_nearly_nothing():
    """By half of itself with every factor e of tokens: the lower end goes on so, the value ever more slowly."""
    loss = tuning_loss(PLAN, SEEN, Interval(400_000, 400_000, 400_000))
    assert loss.low < 2.0 * (400_000 / 4_000) ** -0.5 * 1.01 < loss.value <= loss.high < 2.0
    never = tuning_loss(PLAN, replace(SEEN, before=1.0), Interval(400_000, 400_000, 400_000))
    assert never.low < never.value == 2.0 < never.high


def test_rows_that_the_probe_has_nearly_learned_are_not_expected_to_cost_nothing():
    """Seen on a tuning of 25 times the probe's tokens: 0.008 after it, 0.0043 at the end."""
    learned = replace(SEEN, before=1.9, after=0.008, stderr=0.0004)
    loss = tuning_loss(PLAN, learned, Interval(100_000, 80_000, 120_000))
    assert loss.contains(0.0043) and loss.value > 0.002 and loss.low > 0.0001 and loss.high < 0.008


def falling(last: int, steps: int = 30) -> list[tuple[float, float]]:
    """Evaluations of a run whose loss falls from 2 to 0.13 by a power law, at growing distances."""
    return [
        (t, 0.1 + 1.9 * (t / 1000) ** -0.9) for t in (1000 * (last / 1000) ** (i / steps) for i in range(steps + 1))
    ]


def test_what_a_tuning_run_ends_with_is_estimated_anew_from_its_own_evaluations():
    start = TuningStart(stderr=0.02, since=1000.0)
    told: list[LossForecast] = []
    outlook = Outlook(
        start, 120_000, 1000, Events(listeners=[lambda e: told.append(e) if isinstance(e, LossForecast) else None])
    )
    for tokens, loss in falling(100_000):
        outlook(Eval(step=round(tokens / 1000), tokens=round(tokens), loss=loss))
    actual = 0.1 + 1.9 * 120**-0.9
    assert len(told) > 5 and told[-1].low < actual < told[-1].high < 0.2
    spans = [math.log(t.high / t.low) for t in told]
    assert spans[-1] < 0.5 * spans[0]
    assert outlook.further(0.13, 1e5) is None  # the verdict goes by the evaluations at the constant rate
    half = outlook.figures()
    assert half is not None and half["tokens"] <= 60_000


def test_few_evaluations_of_a_tuning_run_say_nothing_of_its_end():
    start = TuningStart(stderr=0.02, since=1000.0)
    assert math.isnan(start.loss_under_way(falling(5000, steps=4), 120_000).value)
    flat = [(1000.0 * i, 0.0) for i in range(1, 40)]  # rows that are known by heart cost exactly nothing
    assert 0 <= start.loss_under_way(flat, 120_000).value < 1e-4


def test_what_a_tuning_run_begins_with_is_kept_in_its_forecast():
    start = TuningStart(stderr=0.02, since=1000.0)
    assert TuningStart.from_json([*map(list, start.to_json())]) == start
    for other in (None, [], [["stderr", None]], [["facts", {}], ["since", 1.0]], {"curve": 1}, 3):
        assert TuningStart.from_json(other) is None


def test_the_loss_of_labels_may_stay_or_go():
    """Whatever the few steps of the probe did."""
    loss = label_loss(replace(SEEN, before=1.5, after=1.4))
    assert loss.low < 0.15 * 1.5 < loss.value < 1.5 == loss.high


def test_every_type_that_a_device_may_compute_in_has_its_memory_and_its_proof():
    """float16 is what CUDA cards older than Ampere compute in."""
    assert [memory_growth(dtype) for dtype in COMPUTE_DTYPES] == [MEMORY_GROWTH, HALF_MEMORY_GROWTH, HALF_MEMORY_GROWTH]
    assert {getattr(torch, dtype) for dtype in COMPUTE_DTYPES} <= GRADIENT_TOLERANCE.keys()
