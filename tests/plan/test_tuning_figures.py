"""The forecast of a tuning run by what its probe saw, worked out by hand; and the probe's work, by a clock."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from settle.base.event_log import Events
from settle.base.events import Progress
from settle.base.statistics import FORECAST_LEVEL, Interval
from settle.data.batches import RowBatches
from settle.plan import probe as probes
from settle.plan.forecast import (
    HALF_MEMORY_GROWTH,
    LOSS_SPREAD,
    MEMORY_GROWTH,
    TUNING_TIME_SPREAD,
    TuningFacts,
    _evaluations,
    forecast_tuning,
    look_ahead_tuning,
    tuning_loss,
)
from settle.plan.phases import COMPARISON_SHARE, SLACK, Phases, export_seconds
from settle.plan.probe import ProbeResult, measure, tuning_steps
from settle.plan.settings import TuningSettings
from settle.train.evaluation import Evaluation
from settle.train.settled import decay_tokens, next_evaluation
from tests.fake_time import set_time
from tests.plan.test_look_ahead import SAMPLE, STEP_TOKENS, plan
from tests.records import into

Z = 1.2815515655446004  # of an 80 % interval
SEEN = ProbeResult(
    steps=4, step_seconds=3.0, step_spread=0.2, evaluation_seconds=2e-3, memory=10**9, watts=20.0,
    watts_source="asked", before=3.0, after=2.0, stderr=0.02,
)  # fmt: skip


def job(**loop: Any) -> Any:
    """A run of which only sizes are asked: 1,000 numbers are trained, of a model with a head of 50 × 16."""
    options = SimpleNamespace(vocab_size=50, layers=[SimpleNamespace(width=8), SimpleNamespace(width=16)])
    model = SimpleNamespace(recompute=0, options=options, trainable=lambda: {"a": torch.zeros(10, 100)})
    corpus = SimpleNamespace(
        train=SimpleNamespace(num_inputs=30_000, num_tokens=31_000), held_out=SimpleNamespace(num_tokens=700)
    )
    objective = SimpleNamespace(rows="examples", passes=3.0)
    return SimpleNamespace(plan=plan(**loop), corpus=corpus, model=model, objective=objective, whole=False, base=None)


def facts(**changes: Any) -> TuningFacts:
    """Return those of `job`, or others."""
    run = job()
    return dataclasses.replace(TuningFacts.of(run.corpus, run.model, run.objective, run.whole), **changes)


def evaluations(tokens: float) -> int:
    at, count = 0, 2
    while (at := next_evaluation(at, SAMPLE)) < tokens:
        count += 1
    return count


def test_every_figure_is_what_the_probe_makes_of_it() -> None:
    phases = Phases(before=5.0, proof=9.0, loop=0.0, judge=1.0, export=2.0, compare=4.0)
    settings = TuningSettings(price_per_kwh=1.0, price_per_hour=36.0, currency="EUR")
    said = forecast_tuning(plan(max_steps=30), facts(), SEEN, settings, phases)
    tokens = 30 * STEP_TOKENS
    loop = 30 * 3.0 + evaluations(tokens) * SAMPLE * 2e-3
    assert said.tokens.value == said.tokens.high == tokens
    assert said.time.value == pytest.approx(21.0 + loop)
    of_steps = math.hypot(0.2 / 2, said.tokens.log_std) * 90.0 / (21.0 + loop)
    assert said.time.log_std == pytest.approx(math.hypot(TUNING_TIME_SPREAD, of_steps))
    assert said.energy.value == pytest.approx((16.0 + loop) * 20.0)
    assert said.energy.log_std == pytest.approx(said.time.log_std)
    assert said.cost.value == pytest.approx(said.energy.value / 3.6e6 + said.time.value * 0.01)
    assert said.peak_memory.value == pytest.approx(1e9 * MEMORY_GROWTH)
    assert said.loss == tuning_loss(plan(), SEEN, said.tokens) and said.budgeted == ("tokens",)
    assert said.phases["loop"] == pytest.approx(loop, abs=0.06) and said.phases["compare"] == 4.0


def test_time_that_was_asked_for_is_the_time_and_bounds_what_evaluations_cost() -> None:
    """Evaluations so slow that they would take more than their share of the loop."""
    slow = ProbeResult(**{**vars(SEEN), "evaluation_seconds": 1.0})
    phases = Phases(before=5.0, proof=9.0, loop=0.0, judge=1.0, export=2.0, compare=4.0)
    budget = plan(seconds=200.0, seconds_after=3.0, seconds_comparing=4.0, step_seconds=3.0)
    said = forecast_tuning(budget, facts(), slow, TuningSettings(time="200s"), phases)
    assert said.time.value <= 200.0 and said.tokens.value == pytest.approx(
        (200 - SLACK * 200 - 14 - 7) / 3.0 * STEP_TOKENS
    )
    assert said.phases["loop"] == pytest.approx((200 - SLACK * 200 - 14 - 7) * 1.04, abs=0.1)


@pytest.mark.parametrize(
    ("asked", "memory"),
    [
        ({}, 1e9 * MEMORY_GROWTH),
        ({"dtype": "bfloat16"}, 1e9 * HALF_MEMORY_GROWTH),
        ({"whole": True}, 1e9 * MEMORY_GROWTH + 4 * 1000),  # the best weights beside the ones that are trained
        ({"recompute": True}, 1e9),
        ({"recompute": True, "dtype": "bfloat16"}, 1e9 + 4 * 50 * 16),
        ({"recompute": True, "dtype": "float16"}, 1e9 + 4 * 50 * 16),
        ({"recompute": True, "dtype": "bfloat16", "whole": True}, 1e9 + 4 * 1000),
    ],
)
def test_memory_grows_by_what_the_probe_does_not_see(asked: dict[str, Any], memory: float) -> None:
    asked = dict(asked)
    made = dataclasses.replace(plan(max_steps=30), dtype=asked.pop("dtype", "float32"))
    said = forecast_tuning(made, facts(**asked), SEEN, TuningSettings(), Phases(0.0, 0.0, 0.0, 0.0, 0.0))
    assert said.peak_memory.value == pytest.approx(memory, rel=1e-12)


@pytest.mark.parametrize(("whole", "seconds"), [(False, None), (True, None), (False, 500.0)])
def test_what_follows_the_loop_is_planned_by_the_speed_that_was_measured(
    home: Path, whole: bool, seconds: float | None
) -> None:
    """Evaluation, export of the adapter or of the model, and the comparison, by the seconds of a token read."""
    asked = plan(seconds=seconds, max_steps=None if seconds else 40)
    made, said = look_ahead_tuning(asked, facts(whole=whole), SEEN, TuningSettings(), (20.0, 300.0), Events())
    tokens = min(3 * 31_000, (480 / 3 if seconds else 40) * STEP_TOKENS)
    judge = 2e-3 * (SAMPLE + min(700, max(SAMPLE, 3 * tokens / 20)))
    export = export_seconds(asked.num_parameters if whole else 1000, 2e-3, 1)
    compare = COMPARISON_SHARE * 500 if seconds else 300.0
    wanted = {"before": 20.0, "proof": 9.0, "judge": judge, "export": export, "compare": compare}
    assert {name: took for name, took in said.phases.items() if name != "loop"} == pytest.approx(wanted, abs=0.06)
    if seconds:
        kept = made.loop
        assert (kept.seconds_after, kept.seconds_judging) == pytest.approx((judge + export, judge))
        assert kept.seconds_comparing == compare and kept.step_seconds == 3.0


def test_a_comparison_that_gives_way_is_reported() -> None:
    """Twenty steps of 3 seconds are 60; 1.2 seconds of 120 are kept for what nobody planned."""
    said: list[Any] = []
    asked = plan(seconds=120.0, max_steps=None)
    made, _ = look_ahead_tuning(asked, facts(), SEEN, TuningSettings(), (20.0, 300.0), Events(listeners=[into(said)]))
    assert made.loop.seconds_comparing < COMPARISON_SHARE * 120
    assert said[0]["text"].startswith("the time has room for few steps: the comparison at the end is ")


def test_evaluations_are_counted_as_the_run_makes_them() -> None:
    for tokens in (0.0, 900.0, 5e4):
        assert _evaluations(plan(), tokens) == evaluations(tokens)
    assert _evaluations(plan(), 0.0) == 2 < _evaluations(plan(), 900.0)


def test_a_run_without_steps_is_expected_to_have_the_warm_up_s_share() -> None:
    assert tuning_steps(plan(max_steps=7)) == 7 and tuning_steps(plan(warmup_steps=4)) == 100


def test_the_loss_falls_ever_more_slowly_with_the_logarithm_of_the_tokens() -> None:
    tokens = Interval(40_000, 8_000, 80_000, FORECAST_LEVEL)
    said = tuning_loss(plan(), SEEN, tokens)  # the probe saw 4,000 and fell by one nat
    assert said.value == pytest.approx(2.0 - 0.35 * math.log(10))
    around = said.value * math.exp(Z * math.hypot(LOSS_SPREAD, 0.01))
    assert said.high == pytest.approx(max(around, 2.0 - 0.35 * math.log(2)))
    assert said.low == pytest.approx(2.0 * 20**-0.5)  # where rows are learned by heart
    quiet = tuning_loss(plan(), ProbeResult(**{**vars(SEEN), "before": 2.1}), tokens)
    assert quiet.low == pytest.approx(quiet.value / math.exp(Z * math.hypot(LOSS_SPREAD, 0.01)))
    far = tuning_loss(plan(), SEEN, Interval(4e9, 4e9, 4e9, FORECAST_LEVEL))
    assert far.value == pytest.approx(0.05 * 2.0)  # never to nothing


# --- the probe ---


class Rows(RowBatches):
    """Batches whose largest is the fifth."""

    def __init__(self) -> None:
        self.searched: list[int] = []

    def largest(self, number: int) -> int:
        self.searched.append(number)
        return 5

    def at(self, position: int) -> Any:
        return SimpleNamespace(inputs=range(2000 if position == 5 else 500))


class Probed:
    """A run whose steps take as long as a clock says and move its weights."""

    def __init__(self, clock: list[float], monkeypatch: pytest.MonkeyPatch, whole: bool, **loop: Any) -> None:
        self.plan, self.whole, self.batches, self.clock = plan(micro_batches=2, **loop), whole, Rows(), clock
        self.weight = torch.nn.Parameter(torch.zeros(3))
        self.model: Any = SimpleNamespace(
            trainable=lambda: {"w": self.weight}, zero_grad=lambda set_to_none: None, modules=list
        )
        self.objective = self.corpus = self.tokenizer = SimpleNamespace(selection=None, byte_length=None)
        self.rates: list[float] = []
        self.drawn: list[int] = []
        self.samples: list[int] = []
        set_time(monkeypatch, probes, perf_counter=lambda: clock[0])
        block = SimpleNamespace(targets=range(10))
        monkeypatch.setattr(probes, "blocks", lambda *_: [block] * 40)
        monkeypatch.setattr(probes, "evaluate", self.evaluate)
        monkeypatch.setattr(probes, "resident", lambda: 10**6)

    def evaluate(self, model: Any, objective: Any, sample: Any, step: int, tokens: int) -> Evaluation:
        self.clock[0] += 0.5
        self.samples.append(sample.num_tokens)
        return Evaluation(0, 0, 3.0 - float(self.weight.detach()[0]), 0.1, None, ())

    def choose_threads(self) -> None:
        pass

    def initial(self, name: str) -> torch.Tensor:
        return torch.full((3,), 7.0)

    def trainer(self) -> Any:
        return self

    def take_step(self, state: Any, rate: float) -> None:
        self.rates.append(rate)
        self.drawn.append(state.position)
        state.position += 2
        self.clock[0] += 4.0 if len(self.rates) == 1 else 1.0
        with torch.no_grad():
            self.weight += 0.1


@pytest.mark.parametrize("whole", [True, False])
def test_the_probe_takes_the_largest_batch_first_and_leaves_the_model(
    monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    run, progress = Probed([0.0], monkeypatch, whole, max_steps=150), []
    said = measure(run, 30.0, Events(listeners=[progress.append]))  # type: ignore[arg-type]
    assert said.steps == 6 == len(run.rates)  # a twenty-fifth of 150
    assert run.rates == pytest.approx([step / 4 for step in (1, 2, 3, 3, 2, 1)][:3] + [3 / 4, 2 / 4, 1 / 4])
    assert run.drawn == [5, 0, 2, 4, 6, 8] and run.batches.searched == [300]
    assert run.samples == [400, 400]
    assert said.evaluation_seconds == pytest.approx(0.5 / 400)
    # five steps of a second, of which the third draws the largest batch: 1,000 tokens are one of the run's
    assert said.step_seconds == pytest.approx(5 / (4 * 1000 + 2500) * STEP_TOKENS)
    assert said.step_spread > 0.1
    assert (said.before, said.after, said.stderr) == (3.0, pytest.approx(2.4), 0.1)
    assert (said.watts, said.watts_source) == (pytest.approx(30.0), "asked") and said.memory >= 10**6
    assert run.weight.tolist() == ([7.0] * 3 if whole else [0.0] * 3)
    assert [(e.done, e.total) for e in progress if isinstance(e, Progress)] == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("loop", "patience", "steps"),
    [({"max_steps": 150}, 3.0, 2), ({"max_steps": 150}, 4.5, 2), ({"max_steps": 150}, 5.5, 3),
     ({"max_steps": 150, "seconds": 60.0}, 90.0, 1), ({"max_steps": 150, "seconds": 90.0}, 90.0, 2)],
)  # fmt: skip
def test_a_slow_probe_ends_early(
    monkeypatch: pytest.MonkeyPatch, loop: dict[str, Any], patience: float, steps: int
) -> None:
    """Two steps at least, or one where a time budget asks for it: a twentieth of it is the probe's."""
    monkeypatch.setattr(probes, "PATIENCE", patience)
    run = Probed([0.0], monkeypatch, False, **loop)
    said = measure(run)  # type: ignore[arg-type]
    assert said.steps == steps
    if steps == 1:
        assert said.step_seconds == pytest.approx(4.0 / 2500 * STEP_TOKENS) and said.step_spread == 0.0


@pytest.mark.parametrize(("asked", "steps"), [(10, 4), (150, 6), (500, 20), (10**6, 24)])
def test_a_probe_is_a_twenty_fifth_of_the_run_within_bounds(
    monkeypatch: pytest.MonkeyPatch, asked: int, steps: int
) -> None:
    assert measure(Probed([0.0], monkeypatch, False, max_steps=asked)).steps == steps  # type: ignore[arg-type]


def test_a_large_sample_is_thinned_to_what_a_short_probe_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Probed([0.0], monkeypatch, False, max_steps=100)
    object.__setattr__(run.plan, "held_out_tokens", 20_000)
    measure(run)  # type: ignore[arg-type]
    assert run.samples == [80, 80]  # of 4,000 tokens worth: every fifth of 40 blocks
    object.__setattr__(run.plan, "held_out_tokens", 10**6)
    run.samples.clear()
    measure(run)  # type: ignore[arg-type]
    assert run.samples == [40, 40]  # four blocks at least
    monkeypatch.setattr(probes, "blocks", lambda *_: [SimpleNamespace(targets=range(10))] * 3)
    run.samples.clear()
    measure(run)  # type: ignore[arg-type]
    assert run.samples == [30, 30]  # all of them, where there are fewer


def test_labelled_rows_take_more_passes_than_others() -> None:
    phases, settings = Phases(before=5.0, proof=9.0, loop=0.0, judge=1.0, export=2.0, compare=4.0), TuningSettings()
    said = forecast_tuning(plan(), facts(labels=True), SEEN, settings, phases)
    assert said.tokens.value == 6 * 30_000 + decay_tokens(6 * 30_000)
    assert said.loss.value == pytest.approx(0.45 * SEEN.before)
    assert said.tokens.value > forecast_tuning(plan(), facts(), SEEN, settings, phases).tokens.value
