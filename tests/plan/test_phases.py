"""A time budget is kept by what was planned for each phase, and by what the phases took here before."""

import random

import pytest

from settle.plan import phases
from settle.plan.phases import COMPARISON_SHARE, EXPORT, correction, remember
from settle.train.state import LoopPlan
from settle.train.watch import kept_for_the_end

KEPT_SHARE, KEPT_SECONDS = 0.05, 20.0  # the promise: within either
RESULT = 3.0  # seconds of the card and the picture


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    monkeypatch.setattr(phases, "others_are_busy", lambda: False)


def off(budget: float, planned: tuple[float, float], true: tuple[float, float], slow: float = 1.0) -> float:
    """Seconds by which a run ends after its time. planned, true: of export, and of a whole comparison, which uses
    fewer rows where the time is short. slow: times slower the machine is than it was in the probe, at the end."""
    plan = LoopPlan(
        tokens_per_step=64, sequence_length=32, warmup_steps=1, decay_fraction=0.4, checkpoint_steps=500,
        seconds=budget,
        seconds_after=planned[0], seconds_comparing=min(planned[1], COMPARISON_SHARE * budget),
    )  # fmt: skip
    end = budget - kept_for_the_end(plan, slow) + true[0] * slow
    left = max(0.0, budget - end - RESULT)
    return end + min(true[1] * slow, left) + RESULT - budget


def is_kept(budget: float, late: float) -> bool:
    return abs(late) <= max(KEPT_SHARE * budget, KEPT_SECONDS)


def test_a_budget_is_kept_however_wrong_the_estimates_are_once_the_machine_knows_them(monkeypatch):
    """Machines on which the phases take a quarter to four times of their estimates: the third run keeps its time."""
    known: dict[tuple[int, str], object] = {}  # in memory: a file of each machine is synced to the disk
    monkeypatch.setattr(phases, "key", lambda device, threads: threads)
    monkeypatch.setattr(phases, "recalled", lambda key, name: known.get((key, name)))
    monkeypatch.setattr(phases, "note", lambda key, name, value: known.update({(key, name): value}))
    draw, kept = random.Random(0), {1: 0, 3: 0}
    for machine in range(200):
        factors = [4 ** draw.uniform(-1, 1) for _ in range(2)]
        for number in (1, 2, 3):
            budget = draw.choice([100.0, 300.0, 900.0, 3600.0])
            estimates = draw.uniform(3, 20), budget * draw.uniform(0.05, 0.4)
            true = [e * f * draw.uniform(0.9, 1.1) for e, f in zip(estimates, factors, strict=True)]
            names = EXPORT, "compare"
            planned = [e * correction(n, machine) for e, n in zip(estimates, names, strict=True)]
            if number in kept:
                kept[number] += is_kept(budget, off(budget, (planned[0], planned[1]), (true[0], true[1])))
            for name, plan, took in zip(names, planned, true, strict=True):
                remember(name, machine, plan, took)
    assert kept[3] >= 190 and kept[3] > kept[1] + 20, kept


@pytest.mark.parametrize("slow", [1.0, 1.5, 2.5])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.6])
def test_a_short_budget_is_kept_at_once(slow, factor):
    late = off(100.0, (4.0, 25.0), (4.0 * factor, 40.0 * factor), slow)
    assert is_kept(100.0, late), late
