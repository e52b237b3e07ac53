"""The arithmetic of a plan: phases, budgets, steps, warm-up, checkpoints, evaluations, by numbers worked out."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.statistics import FORECAST_LEVEL, Interval, two_sided_z
from settle.evaluate.compare.candidate import SLOTS
from settle.evaluate.compare.compare import INSTRUCTION_TOKENS
from settle.evaluate.compare.forgetting import INSTRUCTIONS, TEXTS, TOKENS
from settle.plan import phases, tuning_plan
from settle.plan.forecast import LOOP_MEMORY, budgeted, cost, cost_interval, peak_memory, power_spread, token_budget
from settle.plan.forecast_figures import BUDGET_SECONDS, BUDGET_SHARE, budgeted_time
from settle.plan.memory import _what_fits
from settle.plan.phases import Phases, comparison_seconds, export_seconds, give_way
from settle.plan.settings import TuningSettings
from settle.plan.size import Speed
from settle.plan.training_plan import shapes
from settle.plan.tuning_plan import _evaluation_cost, _loop, _sample
from settle.train.settled import EVALUATION_COST, MIN_HISTORY, sample_size
from settle.train.state import LoopPlan
from tests.plan.test_plan_files import PLAN


def test_phases_add_up_and_name_what_takes_time() -> None:
    times = Phases(before=1.0, proof=2.0, loop=4.04, judge=8.0, export=16.0, compare=0.0)
    assert times.after_loop == 24.0 and times.total == pytest.approx(31.04)
    assert Phases(1.0, 2.0, 4.0, 8.0, 16.0, 32.0).total == 63.0
    assert times.to_json() == {"before": 1.0, "proof": 2.0, "loop": 4.0, "judge": 8.0, "export": 16.0}


def test_an_export_takes_longer_with_the_weights_and_with_slow_passes(home: Path) -> None:
    least = export_seconds(0, 0.0, 1)
    assert least == phases.EXPORT_SECONDS  # nothing is known of this machine yet
    per_weight = (export_seconds(1_000_000, 0.0, 1) - least) / 1_000_000
    assert per_weight == pytest.approx(4 * phases.EXPORT_SECONDS_PER_BYTE)  # fp32
    assert export_seconds(0, 1e-3, 1) - least == pytest.approx(1e-3 * phases.GATE_TOKENS)


def test_the_next_export_is_planned_by_the_last_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "others_are_busy", lambda: False)
    phases.remember(phases.EXPORT, 1, planned=10.0, took=20.0)
    assert export_seconds(0, 0.0, 1) == pytest.approx(2 * phases.EXPORT_SECONDS)  # the first is believed as it is
    phases.remember(phases.EXPORT, 1, planned=10.0, took=5.0)
    assert phases.correction(phases.EXPORT, 1) == pytest.approx(2 * 0.5**phases.NEWEST)
    assert export_seconds(0, 0.0, 2) == phases.EXPORT_SECONDS  # another machine, as far as times go
    for _ in range(20):
        phases.remember(phases.EXPORT, 1, planned=1.0, took=100.0)
    assert phases.correction(phases.EXPORT, 1) == phases.MOST_CORRECTION
    before = phases.correction(phases.EXPORT, 1)
    phases.remember(phases.EXPORT, 1, planned=0.0, took=5.0)
    monkeypatch.setattr(phases, "others_are_busy", lambda: True)
    phases.remember(phases.EXPORT, 1, planned=10.0, took=1.0)
    assert phases.correction(phases.EXPORT, 1) == before  # nothing was learned


def test_a_phase_of_less_than_a_second_is_learned_from_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "others_are_busy", lambda: False)
    phases.remember(phases.EXPORT, 1, planned=0.5, took=0.2)
    assert phases.correction(phases.EXPORT, 1) == pytest.approx(0.4)
    phases.remember(phases.EXPORT, 1, planned=0.4, took=0.0)  # no time is no measurement
    assert phases.correction(phases.EXPORT, 1) == pytest.approx(0.4)


def test_a_comparison_reads_and_writes_every_row() -> None:
    """By two models; a token that is written reads the weights, once for all that are written at the same time."""
    fast = 1e30  # bytes per second of memory
    assert comparison_seconds(0, 0, 0, 0.0, 0, fast) == phases.COMPARISON_SECONDS
    loading = comparison_seconds(0, 0, 0, 0.0, 10**8, fast) - phases.COMPARISON_SECONDS
    assert loading == pytest.approx(1e8 * phases.LOADING_SECONDS_PER_PARAMETER)
    rows = comparison_seconds(20, 50, 30, 1e-3, 0, fast) - comparison_seconds(0, 50, 30, 1e-3, 0, fast)
    assert rows == pytest.approx(2 * 20 * (50 + 30 * phases.WRITING_PASSES) * 1e-3)
    beside = comparison_seconds(0, 0, 0, 1e-3, 0, fast) - phases.COMPARISON_SECONDS
    assert beside == pytest.approx((phases.WRITTEN_BESIDE * phases.WRITING_PASSES + phases.READ_BESIDE) * 1e-3)
    slow = comparison_seconds(0, 0, 0, 0.0, 10**9, 1e10) - comparison_seconds(0, 0, 0, 0.0, 10**9, fast)
    assert slow == pytest.approx(phases.WRITTEN_BESIDE * 2e9 / 1e10 / phases.WRITTEN_TOGETHER)


def test_what_is_written_beside_the_rows_is_what_the_comparison_asks() -> None:
    asked = 2 * len(INSTRUCTIONS) * INSTRUCTION_TOKENS * 3 / 4 + TEXTS * TOKENS
    assert asked == phases.WRITTEN_BESIDE and phases.WRITTEN_TOGETHER == SLOTS


def test_the_comparison_gives_way_to_the_first_steps() -> None:
    """Twenty steps of 4 seconds are 80; what is missing is taken from the comparison, and a rest too short to say
    anything is left out."""
    loop = {"seconds": 300.0, "step_seconds": 4.0, "seconds_after": 20.0, "seconds_comparing": 70.0}
    for spent, kept in ((100.0, 70.0), (150.0, 37.0), (175.0, 12.0), (180.0, 0.0), (250.0, 0.0)):
        assert give_way(PLAN.with_loop(**loop), spent, 10.0).loop.seconds_comparing == pytest.approx(kept), spent
    free = PLAN.with_loop(**{**loop, "seconds": None})
    assert give_way(free, 250.0, 10.0).loop.seconds_comparing == 70.0


@pytest.mark.parametrize("budget", [60.0, 3600.0])
def test_the_time_of_a_budget_is_the_budget(budget: float) -> None:
    off = max(BUDGET_SHARE * budget, BUDGET_SECONDS)
    longer = budgeted_time(Interval(9 * budget, 8 * budget, 10 * budget, FORECAST_LEVEL), budget)
    assert (longer.value, longer.low, longer.high) == (budget, budget - off, budget + off)
    shorter = budgeted_time(Interval(budget / 2, budget / 4, budget, FORECAST_LEVEL), budget)
    assert (shorter.value, shorter.low, shorter.high) == (budget / 2, budget / 4, budget + off)


def test_a_budget_shorter_than_its_tolerance_still_takes_time() -> None:
    time = budgeted_time(Interval(9.0, 8.0, 10.0, FORECAST_LEVEL), 4.0)
    assert (time.value, time.low, time.high) == (4.0, 4.0 / 20, 4.0 + BUDGET_SECONDS)


def test_a_run_far_shorter_than_its_budget_is_within_its_interval() -> None:
    time = budgeted_time(Interval(28.0, 25.0, 31.0, FORECAST_LEVEL), 600.0)
    assert time.low == time.value == 28.0 < time.high


def test_a_step_takes_what_its_layers_and_its_flops_take() -> None:
    model: Any = SimpleNamespace(
        options=lambda: SimpleNamespace(layers=[None] * 3), flops_per_token=lambda context: 10 * context
    )
    assert Speed(layer=0.5, flop=0.0).step(model, 100, 8) == 1.5
    assert Speed(layer=0.0, flop=0.25).step(model, 100, 8) == 0.25 * 100 * 80
    assert Speed(layer=0.5, flop=0.25).step(model, 100, 8) == 1.5 + 2000


def test_the_products_of_a_layer_are_those_it_computes() -> None:
    layer = SimpleNamespace(width=12, inner=30, heads=4, kv_heads=2, head_dim=5)
    model: Any = SimpleNamespace(options=lambda: SimpleNamespace(layers=[layer]))
    assert shapes(model, 7) == [(7, 12, 20 + 2 * 2 * 5), (7, 20, 12), (7, 12, 60), (7, 30, 12)]


def _rows(train: int = 120, held_out: int = 12, tokens: int = 50, longest: int = 80) -> Any:
    """A corpus of rows of `tokens` tokens each."""
    lengths = SimpleNamespace(max=lambda: longest)

    def store(rows: int) -> SimpleNamespace:
        return SimpleNamespace(num_rows=rows, num_inputs=rows * tokens, lengths=lengths)

    return SimpleNamespace(train=store(train), selection=store(held_out))


@pytest.mark.parametrize(
    ("asked", "steps"),
    [
        ({"steps": 40}, 40),
        ({"tokens": "4000"}, 10),  # 8 rows of 50 tokens a step
        ({"epochs": 2.0}, 30),  # 15 steps an epoch
        ({"epochs": 2.0, "steps": 40}, 30),
        ({"epochs": 2.0, "steps": 20, "tokens": "6000"}, 15),
        ({"tokens": "1"}, 1),
        ({"epochs": 0.01}, 1),
        ({}, None),
    ],
)
def test_a_tuning_run_ends_at_the_least_of_what_was_asked(asked: dict[str, Any], steps: int | None) -> None:
    why: dict[str, str] = {}
    loop = _loop(TuningSettings(batch_rows=8, **asked), _rows(), 3.0, 4, 1, why)
    assert loop.max_steps == steps
    assert (loop.tokens_per_step, loop.micro_batches, loop.sequence_length) == (400, 2, 79)
    assert ("steps" in why) == (steps is not None and steps != asked.get("steps"))


@pytest.mark.parametrize(
    ("steps", "warmup", "checkpoint", "decay"),
    [(10, 2, 10, 0.4), (75, 7, 10, 0.4), (1010, 100, 21, 0.4), (1999, 100, 40, 0.4), (2000, 100, 40, 0.25)],
)
def test_warm_up_checkpoints_and_decay_follow_the_steps(steps: int, warmup: int, checkpoint: int, decay: float) -> None:
    """Of rows that are many: their own warm-up would be longer."""
    loop = _loop(TuningSettings(batch_rows=8, steps=steps), _rows(train=100_000), 3.0, 8, 1, {})
    assert (loop.warmup_steps, loop.checkpoint_steps, loop.decay_fraction) == (warmup, checkpoint, decay)


def test_few_rows_have_a_warm_up_of_their_passes() -> None:
    """Three passes of 1,000 rows are 375 steps, whatever the budget: 4 % of them."""
    loops = [_loop(TuningSettings(batch_rows=8, steps=steps), _rows(1000), 3.0, 8, 1, {}) for steps in (300, 9000)]
    assert [loop.warmup_steps for loop in loops] == [15, 15]
    # 74.25 steps are 75, of which three are 4 %
    assert _loop(TuningSettings(batch_rows=8), _rows(198), 3.0, 8, 1, {}).warmup_steps == 3
    # twice the passes: 148.5 steps are 149, of which five are 4 %
    assert _loop(TuningSettings(batch_rows=8), _rows(198), 6.0, 8, 1, {}).warmup_steps == 5


def test_an_evaluation_reads_more_of_few_rows_and_never_more_than_there_are() -> None:
    few = _sample(_rows(train=8_000, held_out=10_000), 100, why := {})
    assert few == 400_000 // 40 > sample_size(400_000, 100) and "10,000 of 500,000" in why["held_out_tokens"]
    many = _sample(_rows(train=10_000_000, held_out=100_000), 10**9, {})
    assert many == sample_size(500_000_000, 10**9) > tuning_plan.SMALL_SAMPLE
    assert _sample(_rows(train=400, held_out=5), 10**9, {}) == 5 * 50


def test_evaluations_cost_more_when_rows_are_few() -> None:
    """So that MIN_HISTORY of them fit into the epochs before the earliest verdict, up to a fifth of the time."""
    assert _evaluation_cost(_rows(train=10**6), 100) == EVALUATION_COST
    assert _evaluation_cost(_rows(train=12), 10**6) == 0.2
    rows, sample = _rows(train=1200), 1000
    spacing = tuning_plan.FIRST_VERDICT * 60_000 / MIN_HISTORY
    assert EVALUATION_COST < sample / (3 * spacing) < 0.2
    assert _evaluation_cost(rows, sample) == pytest.approx(sample / (3 * spacing))


def _plan(**loop: Any) -> Any:
    """A plan of 100 tokens a step."""
    made = LoopPlan(
        tokens_per_step=100, sequence_length=10, warmup_steps=3, decay_fraction=0.4, checkpoint_steps=8, **loop
    )
    return replace(PLAN, loop=made)


def test_a_budget_in_tokens_is_the_least_of_steps_and_time() -> None:
    assert token_budget(_plan(), 0.5) == math.inf
    assert token_budget(_plan(max_steps=7), 0.5) == 700
    in_time = token_budget(_plan(seconds=1000.0), 0.5)
    assert token_budget(_plan(seconds=1000.0), 0.25) == pytest.approx(2 * in_time)
    assert token_budget(_plan(seconds=1000.0), 0.5, spent=400.0) == pytest.approx(in_time - 400 / 0.5)
    assert token_budget(_plan(max_steps=7, seconds=1000.0), 0.5) == 700
    assert token_budget(_plan(max_steps=10**6, seconds=1000.0), 0.5) == in_time


def test_figures_that_were_asked_for_are_not_forecast() -> None:
    tokens, time = Interval(700, 600, 700, FORECAST_LEVEL), Interval(1000, 900, 1100, FORECAST_LEVEL)
    assert budgeted(_plan(), tokens, time) == ()
    assert budgeted(_plan(max_steps=7), tokens, time) == ("tokens",)
    assert budgeted(_plan(max_steps=8), tokens, time) == ()
    assert budgeted(_plan(seconds=1000.0), tokens, time) == ("time",)
    assert budgeted(_plan(seconds=5000.0), tokens, time) == ()
    assert budgeted(_plan(max_steps=7, seconds=1000.0), tokens, time) == ("tokens",)


def test_power_is_surest_where_it_was_stated_and_least_where_it_was_guessed() -> None:
    assert power_spread("asked") == 0.0 < power_spread("measured (RAPL)") < power_spread("estimated")
    assert power_spread("estimated + measured (NVML)") == power_spread("estimated")
    assert power_spread("estimated") == pytest.approx(math.log(3) / 2 / two_sided_z(FORECAST_LEVEL))  # 4 to 12 W a core


def test_memory_grows_with_every_doubling_of_the_probes_steps() -> None:
    probed: Any = SimpleNamespace(memory=1000.0, memory_growth=10.0, steps=4)
    found = [peak_memory(_plan(), probed, steps * 100) for steps in (0, 4, 12, 28, 10**6)]
    assert [f - LOOP_MEMORY for f in found] == [1000, 1010, 1020, 1030, 1060]


def test_money_is_of_the_energy_and_of_the_hours() -> None:
    assert cost(3.6e6 * 2, 3600 * 3, 0.5, 4.0) == 1.0 + 12.0
    settings = TuningSettings(price_per_kwh=0.5, price_per_hour=4.0)
    energy, time = Interval(7.2e6, 3.6e6, 1.08e7, FORECAST_LEVEL), Interval(7200, 3600, 10800, FORECAST_LEVEL)
    figure = cost_interval(energy, time, settings)
    assert (figure.low, figure.value, figure.high) == (4.5, 9.0, 13.5)


def test_what_would_fit_is_said_in_round_numbers() -> None:
    plan = _plan()
    assert _what_fits(plan, 10**8, 2_600_000) == "--size 2M would fit, or fewer --batch-tokens"
    assert _what_fits(plan, 10**8, 1_000_000).startswith("--size 1M ")
    assert _what_fits(plan, 10**8, 999_999).startswith("--size 999k ") and "--size 1k " in _what_fits(plan, 10**8, 5)
    assert "--context" in _what_fits(plan, 10**6, 10**6)  # as large as it is: the model is not what is too large
    asked = replace(plan, origin={"context": "asked"})
    assert "--context" in _what_fits(asked, 10**8, 2_600_000)
    assert "--size" in _what_fits(replace(plan, origin={"context": "derived"}), 10**8, 2_600_000)
