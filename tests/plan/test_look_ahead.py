"""Every figure of a forecast by what the probe saw, worked out by hand; the probe itself is measured elsewhere."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.plan import forecast as forecasts
from settle.plan import memory, outlook
from settle.plan import probe as probes
from settle.plan.forecast import (
    BEYOND_FIRST,
    EVALUATION_SLOWDOWN,
    LATER_STOP,
    LOOP_MEMORY,
    TIME_SPREAD,
    expected_tokens,
    settling,
    within_budget,
)
from settle.plan.forecast_figures import Forecast
from settle.plan.loss_curve import CurveFacts, Observation, recorded
from settle.plan.memory import must_fit, needed
from settle.plan.phases import COMPARISON_SHARE, SLACK, export_seconds, loop_seconds, too_short, with_phases
from settle.plan.probe import ProbeResult, probe_new
from settle.plan.settings import TrainingSettings
from settle.plan.size import Size
from settle.plan.training_plan import _loop
from settle.train.settled import DECAY_FRACTION, next_evaluation
from settle.train.training_plan import TrainingPlan
from settle.train.world.rank_costs import ONE, Ranks
from tests.plan.test_loss_curve import FACTS
from tests.plan.test_plan_files import PLAN

SAMPLE, STEP_TOKENS = 100, 1000
PROBED = ProbeResult(
    steps=10, step_seconds=2.0, evaluation_seconds=1e-3, step_spread=0.2, memory=10**9,
    memory_growth=10**6, watts=10.0, watts_source="asked", after=3.0, stderr=0.01, offset=0.02, threads=3,
    why_threads="measured: two are slower",
)  # fmt: skip


def plan(**loop: Any) -> TrainingPlan:
    changes = {"tokens_per_step": STEP_TOKENS, "max_steps": None, "checkpoint_steps": 8, "threads": 1}
    architecture = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 512}
    made = dataclasses.replace(PLAN, tuning=None, held_out_tokens=SAMPLE, architecture=architecture)
    return made.with_loop(**(changes | loop))


class Text:
    """A corpus of which only its sizes are asked."""

    held_out = SimpleNamespace(num_tokens=5000)


@pytest.fixture
def probed(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float | None]]:
    """Probes without training; the list: (steps, watts) of each."""
    asked: list[tuple[int, float | None]] = []

    def probe(plan: Any, corpus: Any, steps: int, watts: float | None, events: Any = None) -> ProbeResult:
        asked.append((steps, watts))
        return PROBED

    monkeypatch.setattr(probes, "probe", probe)
    monkeypatch.setattr(probes, "must_fit", lambda plan: None)
    monkeypatch.setattr(CurveFacts, "of", classmethod(lambda cls, plan, corpus: FACTS))
    monkeypatch.setattr(forecasts, "counted", lambda corpus: SimpleNamespace(shifts=[(1.0, 0.0)]))
    return asked


def look_ahead(
    plan: TrainingPlan, settings: TrainingSettings, spent: float = 0.0, log: Events | None = None, ranks: Ranks = ONE
) -> tuple[TrainingPlan, Forecast]:
    """Probe the plan, and forecast it."""
    plan, seen = probe_new(plan, Text, settings.watts, log or Events(), ranks)  # type: ignore[arg-type]
    return forecasts.look_ahead(plan, Text, seen, settings, spent, ranks.hosts)  # type: ignore[arg-type]


def per_token() -> float:
    """Seconds of a token: of its step, and of the evaluations of a run of 540 samples."""
    at, evaluations = 0, 0
    while (at := next_evaluation(at, SAMPLE)) <= 540 * SAMPLE:
        evaluations += 1
    return 2.0 / STEP_TOKENS + evaluations * SAMPLE * 1e-3 * EVALUATION_SLOWDOWN / (540 * SAMPLE)


def test_every_figure_is_what_the_probe_makes_of_it(probed: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[float, float] = {}

    def loss(self: outlook.CurveStart, tokens: float) -> Interval:
        seen[tokens] = 10 - math.log(tokens)
        held.append(530_000_000)
        return Interval(seen[tokens], seen[tokens] - 0.5, seen[tokens] + 0.5, FORECAST_LEVEL)

    held = [500_000_000]
    monkeypatch.setattr("settle.plan.forecast.resident", lambda: held[-1])
    monkeypatch.setattr(outlook.CurveStart, "loss", loss)
    settings = TrainingSettings(watts=10.0, price_per_kwh=1.0, price_per_hour=36.0, currency="EUR")
    asked = plan(max_steps=40, until_settled=False)
    made, said = look_ahead(asked, settings, 7.0)
    assert made.loop.threads == 3 and made.why["threads"] == PROBED.why_threads
    assert made.loop == asked.loop.model_copy(update={"threads": 3})
    assert probed == [(4, 10.0)]
    tokens = 40 * STEP_TOKENS
    assert said.tokens.ends == (tokens, tokens, tokens)
    judge = 1e-3 * (SAMPLE + min(5000, 3 * tokens / 20))
    export = export_seconds(made.num_parameters, 1e-3, 3)
    assert said.phases == pytest.approx(
        {"before": 7.0, "proof": 7.0, "loop": tokens * per_token(), "judge": judge, "export": export}, abs=0.06
    )
    whole = 7.0 + (1.0 + 3 * 2.0) + tokens * per_token() + judge + export
    assert said.time.value == pytest.approx(whole)
    factor = math.exp(1.2815515655446004 * math.hypot(TIME_SPREAD, 0.2 / 4))
    assert said.time.high - said.time.value == pytest.approx(tokens * per_token() * (factor - 1))
    assert said.energy.value == pytest.approx((whole - 7.0) * 10.0)
    assert said.energy.log_std == pytest.approx(said.time.log_std)
    assert said.cost.value == pytest.approx(said.energy.value / 3.6e6 + whole * 0.01)
    assert said.peak_memory.value == pytest.approx(1e9 + 1e6 * math.log2(5) + 3e7 + LOOP_MEMORY)
    assert said.loss.ends == pytest.approx((seen[tokens], seen[tokens] - 0.5, seen[tokens] + 0.5))
    assert (said.currency, said.watts_source, said.budgeted) == ("EUR", "asked", ("tokens",))
    curve = dict(said.curve)  # type: ignore[arg-type]
    assert curve["stderr"] == pytest.approx(0.01 * 2**0.5) and curve["offset"] == 0.02
    assert curve["since"] == 2 * 3 * STEP_TOKENS
    assert curve["decay"] == asked.loop.decay_fraction
    assert curve["probes"] == [dataclasses.asdict(Observation(10_000, 3.0, decay=0.4))]


@pytest.mark.parametrize(("affordable", "read"), [(8100, 5000), (6000, 5000), (3000, 3000), (150, 150), (75, 100)])
def test_what_is_read_at_the_end_is_what_the_run_affords_within_bounds(affordable: float, read: int) -> None:
    """The sample once more, and beside it the sample at least and all of the text at most."""
    assert forecasts._finally_evaluated(plan(), 5000, affordable) == SAMPLE + read


@pytest.mark.parametrize(("steps", "read"), [(None, 5000), (40, 5000), (20, 3000), (1, 150)])
def test_a_run_affords_three_twentieths_of_its_tokens(probed: list[Any], steps: int | None, read: int) -> None:
    _, said = look_ahead(plan(max_steps=steps), TrainingSettings())
    assert said.phases["judge"] == pytest.approx(1e-3 * (SAMPLE + read), abs=0.06)


def test_a_long_run_is_probed_for_an_eightieth_of_its_steps(probed: list[Any]) -> None:
    _, said = look_ahead(plan(max_steps=4000, until_settled=False), TrainingSettings())
    assert probed == [(50, None)]
    losses = [(probe["tokens"], probe["loss"]) for probe in dict(said.curve)["probes"]]  # type: ignore[arg-type]
    assert losses == [(10_000, 3.0)]
    assert said.loss.low < said.loss.value < said.loss.high
    assert said.tokens.high == 4000 * STEP_TOKENS


def test_a_run_that_ends_by_its_verdict_decays_as_settled_runs_do(probed: list[Any]) -> None:
    _, said = look_ahead(plan(), TrainingSettings())
    assert dict(said.curve)["decay"] == outlook.SETTLED_DECAY == pytest.approx(0.2)  # type: ignore[arg-type]


def test_a_run_that_never_settles_is_forecast_no_further_than_recorded_runs(
    probed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The law alone would have a small text read a million times, to a loss that no number holds."""
    small = dataclasses.replace(
        FACTS, parameters=2_500_000, unique=122_000, bytes_per_token=1.81, vocab_size=384,
        ngrams=[(4096.0, 3.89), (32768.0, 2.91), (122_240.0, 2.48)],
    )  # fmt: skip
    monkeypatch.setattr(CurveFacts, "of", classmethod(lambda cls, plan, corpus: small))
    _, said = look_ahead(plan(warmup_steps=50), TrainingSettings())
    known = recorded().most_passes * small.unique
    assert known < said.tokens.value < 3 * known and math.isfinite(said.loss.high)


def test_a_time_budget_is_the_time_and_bounds_the_tokens(probed: list[Any]) -> None:
    settings = TrainingSettings(time="1000s")
    made, said = look_ahead(plan(seconds=1000.0, until_settled=False), settings, 50.0)
    judge, export = dict(said.phases)["judge"], dict(said.phases)["export"]
    assert made.loop.seconds_after == pytest.approx(judge + export, abs=0.2)
    assert made.loop.seconds_judging == pytest.approx(judge, abs=0.1)
    assert said.time.value <= 1000 and said.budgeted == ("time",)
    room = (1 - SLACK) * 1000 - 50 - 7 - made.loop.seconds_after
    assert said.tokens.value == pytest.approx(room / per_token(), rel=1e-6)
    assert said.tokens.low < said.tokens.value < said.tokens.high


# --- how many tokens ---

KEPT = 1 - SLACK  # share of a time budget that is planned


def test_time_leaves_the_tokens_unsure_and_steps_do_not() -> None:
    around = Interval(50_000, 20_000, 90_000, FORECAST_LEVEL)
    assert within_budget(plan(), around, 1e-3, 0.0) == around
    assert within_budget(plan(max_steps=30), around, 1e-3, 0.0).ends == (30_000, 20_000, 30_000)
    in_time = within_budget(plan(seconds=60.0 / KEPT), around, 1e-3, 10.0)
    unsure = Interval.log_normal(50_000, forecasts.PACE_SPREAD)
    assert in_time.ends == pytest.approx((50_000, 20_000, unsure.high))
    assert within_budget(plan(seconds=200.0), around, 1e-3, 10.0) == around  # it settles before
    soon = within_budget(plan(seconds=30.0 / KEPT), around, 1e-3, 10.0)
    assert soon.ends == pytest.approx(
        (20_000, min(20_000, 20_000 / math.exp(1.28155 * 0.15)), 20_000 * 1.2120), rel=1e-3
    )
    assert within_budget(plan(max_steps=30, seconds=200.0), around, 1e-3, 0.0).ends == (30_000, 20_000, 30_000)


def test_a_verdict_is_expected_after_it_is_true_and_never_before_the_first() -> None:
    first = forecasts.first_verdict(plan())
    for tokens, expected in ((10.0 * first, 10.0 * first), (0.0, first * BEYOND_FIRST), (math.inf, 1e13)):
        value = settling(plan(), tokens, 0.5).value
        assert value == pytest.approx(expected * (1 + DECAY_FRACTION), rel=1e-3)
    assert settling(plan(), 0.0, 5.0).low == first + round(DECAY_FRACTION * first)
    knee = 1e7  # where 10 % more tokens bring less than half a percent

    def loss_at(tokens: float) -> float:
        return 5.0 if tokens > knee else 5.0 * (knee / tokens) ** 0.1

    found = expected_tokens(plan(), 1e-6, loss_at).value
    assert found / (1 + DECAY_FRACTION) / LATER_STOP == pytest.approx(knee, rel=0.06)
    assert expected_tokens(plan(until_settled=False, max_steps=9), 1e-6, loss_at).value == 9 * STEP_TOKENS


# --- memory ---


def test_bytes_of_training_are_those_of_weights_state_and_activations() -> None:
    whole, half = (dataclasses.replace(plan(micro_batches=2), dtype=dtype) for dtype in ("float32", "bfloat16"))
    parameters = whole.num_parameters
    part = memory.of_plan(whole.architecture_name, whole.architecture)
    # weights, gradients, two moments, the best weights, a checkpoint of weights and moments
    assert needed(whole) == 32 * parameters + STEP_TOKENS // 2 * part.activation_bytes_per_token(32, 4)
    assert needed(half) == 34 * parameters + STEP_TOKENS // 2 * part.activation_bytes_per_token(32, 2)
    muon = dataclasses.replace(whole, optimizer_name="muon", optimizer={})
    assert needed(whole) - needed(muon) == 8 * parameters


def test_what_would_fit_is_four_fifths_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = needed(plan())
    monkeypatch.setattr(memory, "resident", lambda: 10**6)
    monkeypatch.setattr(memory, "memory", lambda: SimpleNamespace(available=wanted))
    must_fit(plan())
    monkeypatch.setattr(memory, "memory", lambda: SimpleNamespace(available=wanted // 2))
    must_fit(dataclasses.replace(plan(), device="cuda"))  # a card has memory of its own
    with pytest.raises(ResourceError) as refused:
        must_fit(plan())
    assert f"about {(wanted + 10**6) / 1e9:,.1f} GB" in refused.value.what
    assert refused.value.fix.startswith(f"--size {int(plan().num_parameters * 0.4) // 1000}k would fit")


# --- phases ---


def test_the_loop_gets_what_the_phases_leave() -> None:
    assert loop_seconds(plan(), 5.0, 3.0) is None
    kept = plan(seconds=100.0, seconds_after=10.0, seconds_comparing=20.0, step_seconds=4.0)
    assert loop_seconds(kept, 5.0, 3.0) == 62.0 - SLACK * 100
    assert loop_seconds(kept, 90.0, 3.0) == 4.0  # one step


def test_a_plan_keeps_time_for_what_follows_its_loop() -> None:
    assert with_phases(plan(), 10.0, 5.0, 1.0) == plan()
    kept = with_phases(plan(seconds=200.0, warmup_steps=50), 10.0, 90.0, 1.0).loop
    assert kept.seconds_comparing == COMPARISON_SHARE * 200 and kept.seconds_after == 10.0
    assert kept.step_seconds == 1.0 and kept.warmup_steps == round(0.1 * (200 - SLACK * 200 - 10 - 50))
    assert with_phases(plan(seconds=200.0), 10.0, 5.0, 1.0).loop.seconds_comparing == 5.0
    assert with_phases(plan(seconds=200.0, warmup_steps=3), 10.0, 5.0, 1.0).loop.warmup_steps == 3
    assert with_phases(plan(seconds=200.0), 10.0, 5.0, 1e3).loop.warmup_steps == 1


def test_a_time_too_short_to_learn_in_is_said_with_one_that_is_not() -> None:
    budget = plan(seconds=120.0, step_seconds=2.0)
    assert too_short(plan(), 1.0) is None and too_short(plan(seconds=120.0), 1.0) is None
    assert too_short(budget, 40.0) is None  # twenty steps
    said = too_short(budget, 39.0)
    assert said is not None and "about 19 steps of training" in said and "takes 81 s" in said
    assert "--time 3m" in said  # 120 s, and 40 steps less the 39 s there are: 161 s, in minutes
    assert "about 10 steps of" in str(too_short(budget, 20.0))
    for seconds, words in ((19.0, "about 9 steps"), (4.0, "about 2 steps"), (2.0, "about 1 step of"), (0.5, "1 step")):
        with pytest.raises(UsageError, match=words) as refused:
            too_short(budget, seconds)
        assert refused.value.fix == "give --time 4m, or --steps instead of a time"
    with pytest.raises(UsageError) as refused:
        too_short(budget, 0.5, models=2, before=31.0)
    assert "31 s of it loading and reading" in refused.value.what and "loading" not in str(
        too_short(budget, 30.0, 1, 9)
    )
    assert refused.value.fix.startswith("give --time 7m,")


# --- the loop of a plan ---


@pytest.mark.parametrize(
    ("asked", "size", "expected"),
    [
        ({}, {}, (None, 50, 0.4, 20)),  # a twentieth of the 1,000 steps that are expected
        ({"steps": 400}, {}, (400, 20, 0.4, 20)),
        ({"steps": 100}, {}, (100, 10, 0.4, 20)),
        ({"steps": 2000}, {}, (2000, 100, 0.25, 40)),
        ({"steps": 1999}, {}, (1999, 99, 0.4, 40)),
        ({"steps": 9000, "tokens": "5M"}, {}, (5000, 100, 0.25, 100)),
        ({"tokens": "10"}, {}, (1, 10, 0.4, 20)),
        ({"steps": 10**6}, {"tokens_per_step": 100, "micro_tokens": 50}, (10**6, 200, 0.25, 20_000)),
    ],
)
def test_warm_up_decay_and_checkpoints_follow_the_steps(
    asked: dict[str, Any], size: dict[str, Any], expected: tuple[int | None, int, float, int]
) -> None:
    """Of a text of 250,000 tokens: 2 % of twenty passes are 100 steps of 1,000 tokens."""
    dial = Size(**({"parameters": 60_000, "context": 64, "tokens_per_step": 1000, "micro_tokens": 250,
                    "expected_tokens": 10**6, "seconds": 30.0} | size))  # fmt: skip
    why: dict[str, str] = {}
    loop = _loop(TrainingSettings(**asked), dial, 250_000, 2, why)
    assert (loop.max_steps, loop.warmup_steps, loop.decay_fraction, loop.checkpoint_steps) == expected
    assert loop.micro_batches == dial.tokens_per_step // dial.micro_tokens and loop.sequence_length == 64
    assert (loop.seconds, loop.threads) == (30.0, 2) and "warmup_steps" in why
