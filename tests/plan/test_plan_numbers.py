"""The arithmetic of a plan: phases, budgets, steps, warm-up, checkpoints, evaluations, by numbers worked out."""

from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.plan import phases, tuning_plan
from settle.plan.forecast_figures import BUDGET_SECONDS, BUDGET_SHARE, budgeted_time
from settle.plan.phases import Phases, comparison_seconds, export_seconds
from settle.plan.settings import TuningSettings
from settle.plan.speed import Speed
from settle.plan.training_plan import shapes
from settle.plan.tuning_plan import _evaluation_cost, _loop, _sample
from settle.train.settled import EVALUATION_COST, MIN_HISTORY, sample_size


def test_phases_add_up_and_name_what_takes_time() -> None:
    times = Phases(before=1.0, proof=2.0, loop=4.04, judge=8.0, export=16.0, compare=0.0)
    assert times.after_loop == 24.0 and times.total == pytest.approx(31.04)
    assert Phases(1.0, 2.0, 4.0, 8.0, 16.0, 32.0).total == 63.0
    assert times.to_json() == {"before": 1.0, "proof": 2.0, "loop": 4.0, "judge": 8.0, "export": 16.0}


def test_an_export_takes_longer_with_the_weights_and_with_slow_passes() -> None:
    least = export_seconds(0, 0.0)
    assert least == phases.EXPORT_SECONDS
    per_weight = (export_seconds(1_000_000, 0.0) - least) / 1_000_000
    assert per_weight == pytest.approx(4 * phases.EXPORT_SECONDS_PER_BYTE)  # fp32
    assert export_seconds(0, 1e-3) - least == pytest.approx(1e-3 * phases.GATE_TOKENS)


def test_a_comparison_reads_and_writes_every_row() -> None:
    least = comparison_seconds(0, 0, 0.0, 0)
    assert least == phases.COMPARISON_SECONDS
    loading = comparison_seconds(0, 0, 0.0, 10**8) - least
    assert loading == pytest.approx(1e8 * phases.LOADING_SECONDS_PER_PARAMETER)
    rows = comparison_seconds(20, 50, 1e-3, 0) - comparison_seconds(0, 50, 1e-3, 0)
    assert rows == pytest.approx(20 * 50 * 1e-3 * phases.WRITING_PASSES)
    assert comparison_seconds(0, 0, 1e-3, 0) - least == pytest.approx(
        phases.COMPARED_TOKENS * phases.WRITING_PASSES * 1e-3
    )


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

    return SimpleNamespace(train=store(train), held_out=store(held_out))


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
    loop = _loop(TuningSettings(batch_rows=8, **asked), _rows(), 4, 1, why)
    assert loop.max_steps == steps
    assert (loop.tokens_per_step, loop.micro_batches, loop.sequence_length) == (400, 2, 79)
    assert ("steps" in why) == (steps is not None and steps != asked.get("steps"))


@pytest.mark.parametrize(
    ("steps", "warmup", "checkpoint", "decay"),
    [(10, 2, 10, 0.4), (75, 7, 10, 0.4), (1010, 100, 21, 0.4), (1999, 100, 40, 0.4), (2000, 100, 40, 0.25)],
)
def test_warm_up_checkpoints_and_decay_follow_the_steps(steps: int, warmup: int, checkpoint: int, decay: float) -> None:
    """Of rows that are many: their own warm-up would be longer."""
    loop = _loop(TuningSettings(batch_rows=8, steps=steps), _rows(train=100_000), 8, 1, {})
    assert (loop.warmup_steps, loop.checkpoint_steps, loop.decay_fraction) == (warmup, checkpoint, decay)


def test_few_rows_have_a_warm_up_of_their_passes() -> None:
    """Three passes of 1,000 rows are 375 steps, whatever the budget: 4 % of them."""
    assert tuning_plan.EPOCHS == 3
    loops = [_loop(TuningSettings(batch_rows=8, steps=steps), _rows(1000), 8, 1, {}) for steps in (300, 9000)]
    assert [loop.warmup_steps for loop in loops] == [15, 15]


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
    rows, sample = _rows(train=1200), 500
    spacing = tuning_plan.FIRST_VERDICT * 60_000 / MIN_HISTORY
    assert EVALUATION_COST < sample / (3 * spacing) < 0.2
    assert _evaluation_cost(rows, sample) == pytest.approx(sample / (3 * spacing))
