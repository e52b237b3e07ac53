"""Forecasts of a run on several ranks, by what their steps together cost, worked out by hand."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from settle.base.event_log import Events
from settle.plan import probe as probes
from settle.plan.forecast import RANKS_SPREAD, forecast_tuning, joules
from settle.plan.phases import Phases
from settle.plan.probe import probe_tuning
from settle.plan.settings import TrainingSettings, TuningSettings
from settle.train.world.rank_costs import RankCosts, Ranks
from tests.plan.test_look_ahead import SAMPLE, STEP_TOKENS, look_ahead, plan, probed
from tests.plan.test_tuning_figures import SEEN, evaluations, facts, job
from tests.records import into

__all__ = ["probed"]  # a fixture
COSTS = RankCosts(step=0.8, spread=0.3, evaluation=2e-4, beside=5.0, watts=50.0)


class Four(Ranks):
    """Four ranks on two hosts. asked: (what is rehearsed, steps, watts)."""

    size = 4  # type: ignore[assignment]
    hosts = 2  # type: ignore[assignment]

    def __init__(self) -> None:
        self.asked: list[tuple[Any, int, float | None]] = []

    def rehearse(self, live: Any, steps: int, watts: float | None) -> RankCosts:
        self.asked.append((live, steps, watts))
        with torch.no_grad():
            for parameter in getattr(live, "model", None) and live.model.trainable().values() or ():
                parameter += 1.0
        return COSTS


def test_time_energy_and_money_are_those_of_all_ranks(
    probed: list[Any], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    said, ranks, live = list[Any](), Four(), SimpleNamespace(plan=plan())
    monkeypatch.setattr(probes.LiveRun, "build", classmethod(lambda cls, plan, corpus: live))
    settings = TrainingSettings(watts=10.0, price_per_kwh=1.0, price_per_hour=36.0)
    asked = plan(max_steps=40, until_settled=False)
    _, made = look_ahead(asked, settings, 7.0, Events(listeners=[into(said)]), ranks)
    assert ranks.asked == [(live, 4, 10.0)]  # a step of one process takes 2 s
    loop = 5.0 + 40 * 0.8 + evaluations(40 * STEP_TOKENS) * SAMPLE * 2e-4
    assert made.phases["loop"] == pytest.approx(loop, abs=0.06)
    assert made.phases["proof"] == 7.0  # rank 0 alone takes it, at its own pace
    fixed = made.time.value - loop
    assert made.energy.value == pytest.approx((fixed - 7.0) * 10.0 + loop * 50.0)
    assert made.cost.value == pytest.approx(made.energy.value / 3.6e6 + made.time.value * 2 * 0.01)
    factor = math.exp(1.2815515655446004 * math.hypot(RANKS_SPREAD, 0.3 / 4))
    assert made.time.high - made.time.value == pytest.approx(loop * (factor - 1))
    assert said[-1]["text"] == "a step of 4 ranks takes 800.0 ms, 40 % of one process's time"
    live.plan = plan(seconds=100.0)
    look_ahead(live.plan, settings, 7.0, ranks=ranks)
    assert ranks.asked[-1][1] == 4
    assert joules(10.0, 4.0, 3.0, None) == 30.0 and joules(10.0, 4.0, 3.0, COSTS) == 218.0


def test_a_tuned_model_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks, weight, events = Four(), torch.arange(4.0), Events()
    run = job(max_steps=30)
    run.model.trainable = lambda: {"w": weight}
    run.model.zero_grad, run.model.modules = lambda set_to_none: None, list
    seen = dataclasses.replace(SEEN, step_seconds=0.6)
    monkeypatch.setattr(probes, "measure", lambda live, watts, events: seen)
    assert probe_tuning(run, 9.0, events) == seen and not ranks.asked
    assert probe_tuning(run, 9.0, events, ranks) == dataclasses.replace(seen, ranks=COSTS)
    assert ranks.asked == [(run, 12, 9.0)] and weight.tolist() == [0.0, 1.0, 2.0, 3.0]
    run.whole, run.initial = True, lambda name: torch.full((4,), 7.0)
    probe_tuning(run, None, events, ranks)
    assert weight.tolist() == [7.0] * 4  # as the base has it
    run.plan, run.base = run.plan.with_loop(is_sharded=True), "base"
    fresh = SimpleNamespace(plan=run.plan)
    monkeypatch.setattr(probes.LiveRun, "build", classmethod(lambda cls, plan, corpus, base: fresh))
    probe_tuning(run, None, events, ranks)
    assert ranks.asked[-1][0] is fresh  # what is shared out would not be whole any more


def test_a_tuning_run_counts_what_its_ranks_cost() -> None:
    seen = dataclasses.replace(SEEN, ranks=COSTS)
    phases = Phases(before=5.0, proof=9.0, loop=0.0, judge=1.0, export=2.0, compare=4.0)
    settings = TuningSettings(price_per_kwh=1.0, price_per_hour=36.0)
    made = forecast_tuning(plan(max_steps=30), facts(), seen, settings, phases, hosts=2)
    loop = 5.0 + 30 * 0.8 + evaluations(30 * STEP_TOKENS) * SAMPLE * 2e-4
    assert made.time.value == pytest.approx(21.0 + loop)
    assert made.energy.value == pytest.approx(16.0 * 20.0 + loop * 50.0)
    assert made.cost.value == pytest.approx(made.energy.value / 3.6e6 + made.time.value * 2 * 0.01)
