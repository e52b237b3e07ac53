"""What a step costs on many ranks: measured by the loop itself, which all of them run before the run begins."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from settle.data.prepare import Corpus
from settle.model.architectures.llama import Llama
from settle.train.live_run import LiveRun
from settle.train.state import LoopPlan
from settle.train.training_plan import TrainingPlan
from settle.train.world import World, single
from settle.train.world import rank_costs as costs_module
from settle.train.world.rank_costs import (
    FEW,
    FEWEST,
    MOST,
    ONE,
    RankCosts,
    _Clock,
    _rehearsal,
    _step,
    rehearsal_steps,
    rehearse,
)
from settle.train.world.row_share import FILE
from tests.train.ranks import on_ranks

STEPS = 12
LOOP = LoopPlan(
    tokens_per_step=96, sequence_length=32, warmup_steps=9, max_steps=500, seconds=900.0, decay_fraction=0.4,
    checkpoint_steps=20, micro_batches=2,
)  # fmt: skip


def plan_of(corpus: Corpus, is_sharded: bool) -> TrainingPlan:
    shape = Llama.TINY.model_copy(update={"vocab_size": corpus.tokenizer.vocab_size})
    return TrainingPlan(
        architecture=shape.model_dump(), architecture_name="llama", objective="next_token", optimizer_name="adamw",
        optimizer={}, loop=LOOP.model_copy(update={"is_sharded": is_sharded}), device="cpu", dtype="float32",
        held_out_tokens=512, origin={}, why={},
    )  # fmt: skip


@pytest.mark.parametrize("is_sharded", [False, True])
def test_all_ranks_take_the_steps_that_are_timed(is_sharded: bool, corpus: Corpus, tmp_path: Path) -> None:
    """By the loop: with saves, evaluations and the order of rows of a run."""

    def rehearsed(world: World) -> tuple[RankCosts, bool]:
        torch.set_num_threads(1)
        live = LiveRun.build(plan_of(corpus, is_sharded), corpus)
        before = {name: p.detach().clone() for name, p in live.model.trainable().items()}
        costs = rehearse(live, world, tmp_path / "place", STEPS, 10.0)
        now = live.model.trainable()
        has_moved = not is_sharded and any(not torch.equal(before[name], now[name]) for name in before)
        assert live.plan.loop.max_steps == 500 and live.world is single()
        return costs, has_moved

    found = on_ranks(2, tmp_path / "ranks", rehearsed)
    for costs, has_moved in found:
        assert costs.step > 0 and costs.evaluation > 0 and has_moved == (not is_sharded)
        assert costs.beside >= 0  # what the others leave of the time: nothing, where steps took longer than usual
        assert costs.watts == pytest.approx(20.0, rel=0.3)  # each of two ranks counts what was asked of it
    lines = [json.loads(line) for line in (tmp_path / "place" / FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    saved = sorted(path.name for path in (tmp_path / "place" / "checkpoints").iterdir())
    assert saved == ["00000008", "00000012"]  # two are kept
    assert (tmp_path / "place/checkpoints/00000012/model.1.safetensors").exists() == is_sharded


def test_the_rehearsed_plan_ends_with_its_steps(corpus: Corpus) -> None:
    plan = replace(plan_of(corpus, False), held_out_tokens=1_000_000)
    loop = _rehearsal(plan, STEPS).loop
    assert (loop.max_steps, loop.seconds, loop.until_settled, loop.checkpoint_steps) == (STEPS, None, False, 4)
    assert loop.warmup_steps == 3 and _rehearsal(plan, STEPS).held_out_tokens < plan.held_out_tokens
    assert rehearsal_steps(1e-9, None) == MOST and rehearsal_steps(1.0, None) == FEWEST
    assert rehearsal_steps(100.0, None) == rehearsal_steps(1.0, 5.0) == FEW
    assert rehearsal_steps(0.1, None) == 60 and rehearsal_steps(0.1, 3.0) == 30
    assert all(rehearsal_steps(seconds, None) % 3 == 0 for seconds in (0.07, 0.11, 0.2))


def gaps_of(steps: int, save: float, written: int, written_cost: float) -> np.ndarray:
    """Steps of 2 s, the first ones of 9 s; a save costs the gap after it `save` s and `written` gaps `written_cost`."""
    gaps = np.full(steps - 1, 2.0)
    gaps[:2] = 9.0
    every = steps // 3
    for at in (every - 1, 2 * every - 1):
        gaps[at] += save
        gaps[at + 1 : at + 1 + written] += written_cost
    return gaps


def test_warm_steps_and_saves_are_told_apart(corpus: Corpus) -> None:
    for is_sharded, written in ((False, 0), (True, 3)):
        plan = _rehearsal(plan_of(corpus, is_sharded), 30)
        step, save, spread = _step(gaps_of(30, 5.0, written, 1.0), plan)
        assert step == pytest.approx(2.0) and save == pytest.approx(5.0 + written) and spread == pytest.approx(0.0)
    for is_sharded in (False, True):  # slow steps: few of them, and no save between them
        slow = _rehearsal(plan_of(corpus, is_sharded), FEW)
        assert slow.loop.checkpoint_steps == FEW
        step, save, _ = _step(np.array([9.0, 2.0, 2.2]), slow)
        assert step == pytest.approx(2.1) and save == 0.0
    by_turns = np.tile([1.0, 3.0], 150)
    assert _step(by_turns, _rehearsal(plan_of(corpus, False), 300))[2] == pytest.approx(0.5, rel=0.05)
    uneven = gaps_of(300, 5.0, 0, 0.0)
    uneven[100] = 200.0  # something else had the machine
    assert _step(uneven, _rehearsal(plan_of(corpus, False), 300))[0] == pytest.approx(2.0)


def test_a_loop_is_its_steps_its_evaluations_and_how_it_begins() -> None:
    costs = RankCosts(step=0.5, spread=0.1, evaluation=0.01, beside=3.0, watts=20.0)
    assert costs.loop(10, 200) == pytest.approx(3.0 + 5.0 + 2.0)
    assert costs.words(4, 2.0) == "a step of 4 ranks takes 500.0 ms, 25 % of one process's time"
    assert (ONE.size, ONE.hosts) == (1, 1)


def test_an_evaluation_is_timed_from_the_step_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from settle.base.events import Eval, Step
    from tests.fake_time import set_time

    clock, now = _Clock(), [0.0]
    set_time(monkeypatch, costs_module, perf_counter=lambda: now[0])
    figures: dict[str, Any] = {"tokens": 1, "loss": 1.0}
    clock(Eval(step=0, stderr=0.1, bits_per_byte=None, **figures))
    assert clock.evaluation == 0.0
    for second in (1.0, 3.0):
        now[0] = second
        clock(Step(step=1, lr=0.1, grad_norm=1.0, tokens_per_second=1.0, **figures))
    now[0] = 7.5
    clock(Eval(step=2, stderr=0.1, bits_per_byte=None, **figures))
    assert clock.evaluation == 4.5 and list(clock.gaps) == [2.0]
