"""What a run counts, worked out by hand: positions, budgets, spending, whom a bad step blames, and held-out losses."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.base.event_log import Events
from settle.data.batches import Batch
from settle.train.evaluation import Evaluation, HeldOut, evaluate
from settle.train.objectives import Objective
from settle.train.objectives.next_token import NextToken
from settle.train.recovery import Recovery
from settle.train.settled import next_evaluation
from settle.train.state import LoopPlan, LoopState, Schedule
from settle.train.trainer import StepResult
from settle.train.watch import FEWEST_TO_SLOW, MOST_SLOWDOWN, SLACK, Pace, Watch, kept_for_the_end
from settle.train.world import single


def plan(**changes: Any) -> LoopPlan:
    values = {"tokens_per_step": 100, "sequence_length": 10, "warmup_steps": 3, "decay_fraction": 0.25}
    return LoopPlan.model_validate(values | {"checkpoint_steps": 8} | changes)


# --- positions ---


def test_positions_are_drawn_in_order_and_skipped_ones_never() -> None:
    state = LoopState(skipped=[0, 2, 3])
    assert [state.draw() for _ in range(3)] == [1, 4, 5] and state.position == 6
    assert state.last_drawn(2) == [4, 5] and state.last_drawn(9) == [1, 4, 5] and state.last_drawn(0) == []
    assert LoopState(position=2).last_drawn(5) == [0, 1]


@pytest.mark.parametrize(("stop", "step", "over"), [("diverged", 1, True), ("broken", 1, True), ("settled", 1, False),
                                                    ("budget", 8, True), ("budget", 7, False)])  # fmt: skip
def test_a_run_is_over_at_the_end_of_its_decay_or_when_it_failed(stop: str, step: int, over: bool) -> None:
    assert LoopState(step=step, stop=stop, schedule=Schedule(1, 4, 4)).is_over == over


def test_a_state_comes_back_from_its_file_and_another_version_s_does_not() -> None:
    history = [Evaluation(2, 200, 3.5, 0.1, None, (3.0, 4.0))]
    state = LoopState(step=2, history=history, best_step=2, schedule=Schedule(3, 4, 4), skipped=[1])
    assert LoopState.from_json(state.to_json()) == state and state.best_loss == 3.5
    with pytest.raises(ValueError, match="unknown state 'momentum'"):
        LoopState.from_json(state.to_json() | {"momentum": 1})


# --- evaluations ---


class Told:
    """An objective whose losses are known: the sum of a batch's inputs over its targets."""

    is_per_token = judges_apart = True
    held_out_losses, evaluator = Objective.held_out_losses, Objective.evaluator

    def batch_loss(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        return torch.tensor(float(batch.inputs.sum())), int((batch.targets >= 0).sum())


def block(total: int, targets: list[int]) -> Batch:
    inputs = np.zeros(len(targets), np.int64)
    inputs[0] = total
    return Batch(inputs, np.array(targets), np.array([0, len(targets)], np.int32), np.arange(len(targets)))


def test_a_held_out_loss_is_a_ratio_of_sums_with_its_standard_error() -> None:
    """Cochran 1977, equation 6.13, for three blocks of unequal size; targets that are not learned do not count."""
    blocks = [block(8, [1, 1, 2, -1]), block(12, [2, 2, 2, 2]), block(2, [0, -1])]
    held_out = HeldOut(blocks, np.array([9, 2, 3], np.int32))
    model: Any = torch.nn.Linear(1, 1)
    model.is_sharded = False
    found = evaluate(model, Told(), held_out, 5, 500)  # type: ignore[arg-type]
    sums, counts = np.array([8.0, 12.0, 2.0]), np.array([3, 4, 1])
    ratio = 22 / 8
    variance = 3 / (3 - 1) * ((sums - ratio * counts) ** 2).sum() / counts.sum() ** 2
    assert found.loss == ratio and found.stderr == pytest.approx(math.sqrt(variance))
    assert found.blocks == pytest.approx(sums / counts)
    assert found.bits_per_byte == pytest.approx(22 / math.log(2) / (2 + 2 + 3 + 4 * 3 + 9))
    assert (found.step, found.tokens, held_out.num_tokens) == (5, 500, 10)
    alone = evaluate(model, Told(), HeldOut(blocks[:1], held_out.byte_length), 0, 0)  # type: ignore[arg-type]
    assert alone.stderr == 0.0
    pairs = Told()
    pairs.is_per_token = False
    assert evaluate(model, pairs, held_out, 0, 0).bits_per_byte is None  # type: ignore[arg-type]
    assert set(found.figures()) == {"step", "tokens", "loss", "stderr", "bits_per_byte"}


# --- budgets ---


TIME = 100.0 / (1 - SLACK)  # seconds of a budget of which a hundred are planned


def watch(loop: LoopPlan, now: float = 0.0, sample: int = 50) -> Watch:
    """One whose trainer only knows how many tokens a step has."""
    trainer: Any = SimpleNamespace(
        objective=NextToken(),
        plan=loop,
        tokens=lambda state: state.step * loop.tokens_per_step,
        batches=SimpleNamespace(store=SimpleNamespace(tokens=np.array([0, 1, 1, 1]))),
        world=single(),
    )
    held_out = HeldOut([block(0, [1, 0, *[-1] * (sample - 2)])], np.ones(2, np.int32))
    return Watch(trainer, held_out, Events(), lambda: now)


def test_the_floor_is_what_frequencies_of_the_training_text_give() -> None:
    """One 0 and three 1s, smoothed by one: shares of a third and two thirds; held out there is one of each."""
    assert watch(plan()).settled.floor == pytest.approx(-(math.log(1 / 3) + math.log(2 / 3)) / 2)
    assert watch(plan()).settled.since_tokens == 300


def test_an_evaluation_is_due_after_enough_tokens_and_at_the_end() -> None:
    watched = watch(plan())
    due = next_evaluation(1000, 50) // 100 + 1
    states = [LoopState(step=s, history=[Evaluation(10, 1000, 3.0, 0.1, None, ())]) for s in (due - 1, due)]
    assert [watched.is_due(state) for state in states] == [False, True]
    states[0].schedule = Schedule(3, 5, due - 1 - 5)
    assert watched.is_due(states[0])


@pytest.mark.parametrize(
    ("loop", "step", "seconds", "now", "start", "steps"),
    [
        ({"max_steps": 40}, 29, 1.0, 0.0, None, 1),
        ({"max_steps": 40}, 30, 1.0, 0.0, 30, 10),
        ({"max_steps": 1}, 0, 0.0, 0.0, 0, 1),
        ({"seconds": TIME}, 74, 74.0, 74.0, None, 1),
        ({"seconds": TIME}, 75, 75.0, 75.0, 75, 25),
        ({"seconds": TIME}, 0, 0.0, 99.0, None, 1),  # before the first step nothing is known of the pace
        ({"seconds": TIME, "seconds_after": 10.0, "seconds_comparing": 20.0}, 51, 51.0, 52.0, None, 1),
        ({"seconds": TIME, "seconds_after": 10.0, "seconds_comparing": 20.0}, 52, 52.0, 53.0, 52, 17),
    ],
)
def test_the_decay_begins_when_the_budget_leaves_its_share(
    loop: dict[str, Any], step: int, seconds: float, now: float, start: int | None, steps: int
) -> None:
    state = LoopState(step=step, seconds=seconds, schedule=Schedule(3))
    watch(plan(**loop), now).spend_budget(state)
    assert state.schedule.decay_start == start
    if start is not None:
        assert state.schedule.decay_steps == steps and state.stop == "budget"
        assert state.last_step == (None if "seconds" in loop else start + steps)


@pytest.mark.parametrize(
    ("loop", "step", "seconds", "decay", "past"),
    [
        ({"max_steps": 41}, 20, 0.0, None, False),
        ({"max_steps": 40}, 20, 0.0, None, True),
        ({"seconds": TIME}, 1, 49.0, None, False),
        ({"seconds": TIME}, 1, 50.0, None, True),
        ({}, 1, 9.0, None, False),
        ({}, 1, 9.0, 1, True),
    ],
)
def test_the_middle_of_a_run(loop: dict[str, Any], step: int, seconds: float, decay: int | None, past: bool) -> None:
    state = LoopState(step=step, seconds=seconds, schedule=Schedule(3, decay))
    assert watch(plan(**loop), seconds).is_past_half(state) == past


def test_a_decay_ends_with_the_time_and_never_after_its_steps() -> None:
    """At a second a step, 20 seconds left are 20 steps, or as few as a number of steps allows."""
    for last, end in ((None, 100), (95, 95), (70, 81)):
        state = LoopState(step=80, seconds=80.0, schedule=Schedule(3, 75, 40), last_step=last)
        watched = watch(plan(seconds=TIME), 80.0)
        watched.spend_budget(state)
        assert state.schedule.end == end and state.schedule.replanned_at == 80
    state = LoopState(step=80, seconds=80.0, schedule=Schedule(3, 75, 25))
    before = state.schedule
    watch(plan(seconds=TIME), 80.0).spend_budget(state)
    assert state.schedule is before  # it ends in time as it is


def test_what_follows_a_slow_loop_is_slow_and_the_comparison_makes_up_for_half_of_it() -> None:
    times = plan(seconds=100.0, seconds_after=10.0, seconds_comparing=12.0)
    slack = SLACK * 100
    assert kept_for_the_end(times, 1.0) == slack + 22.0
    assert kept_for_the_end(times, 1.5) == slack + 15.0 + 7.0
    assert kept_for_the_end(times, 3.0) == slack + 30.0 + 6.0
    assert kept_for_the_end(times, 0.5) == slack + 5.0 + 6.0  # a machine that got faster needs less for both
    judged = times.model_copy(update={"seconds_judging": 4.0})
    assert kept_for_the_end(judged, 2.0) == kept_for_the_end(times, 2.0) == slack + 20.0 + 6.0
    assert kept_for_the_end(judged, 2.0, judging=1.0) == slack + 13.0 + 9.0


def test_the_pace_forgets_what_is_long_ago_and_what_was_rolled_back() -> None:
    pace = Pace()
    for step, seconds in enumerate([0.0, 10.0, 20.0, 30.0]):
        pace.add(seconds, step)
    assert pace.seconds_per_step == 10.0 and pace.slowdown(5.0) == 2.0 and pace.slowdown(0.1) == MOST_SLOWDOWN
    assert pace.slowdown(0.0) == 1.0
    for step in range(4, 10):
        pace.add(30.0 + 2.0 * (step - 3), step)
    assert pace.seconds_per_step == 2.0
    pace.add(50.0, 2)
    assert pace.seconds_per_step is None and pace.slowdown(1.0) == 1.0
    quick = Pace()
    for step in range(400):
        quick.add(0.1 * step, step)
    assert len(quick._latest) == 101  # steps of ten seconds


@pytest.mark.parametrize("steps", [8, 40, 400])
def test_a_step_that_stalls_does_not_change_the_pace(steps: int) -> None:
    """Nor does an evaluation, whatever else is slow once: a step in 400, or one of eight."""
    pace = Pace()
    for step in range(steps):
        pace.add(step * 1.0 + (40.0 if step >= steps - 2 else 0.0), step)
    assert pace.seconds_per_step == 1.0 and pace.slowdown(1.0) == 1.0


def test_the_first_steps_of_a_session_do_not_count_as_slow() -> None:
    """They find their memory and their kernels, and the load that follows is not known yet."""
    pace = Pace()
    for step in range(FEWEST_TO_SLOW):
        pace.add(20.0 * step, step + 70)
        assert pace.slowdown(1.0) == 1.0
    pace.add(20.0 * FEWEST_TO_SLOW, FEWEST_TO_SLOW + 70)
    assert pace.slowdown(10.0) == 2.0


def test_the_pace_is_noted_before_every_step_of_a_time_budget() -> None:
    watched = watch(plan(seconds=1000.0, step_seconds=1.0))
    for step, now in enumerate((5.0, 7.0, 9.0, 11.0)):
        watched.time._elapsed = lambda now=now: now  # type: ignore[misc]
        watched.spend_budget(LoopState(step=step, seconds=now, schedule=Schedule(3)))
    assert watched.time.slowdown == 2.0


def test_a_slow_stretch_does_not_begin_the_decay_and_a_fast_one_gives_its_time_back() -> None:
    """After 40 seconds the machine is half as fast: what follows would take 40 seconds instead of 20, and the decay's
    share of 15 would be all that is left at once. It begins later, by the pace of the session, with a half of its share
    at the present pace; it ends with the time at that, and later when the machine gets faster."""
    loop = plan(seconds=TIME, step_seconds=1.0, seconds_after=20.0, decay_fraction=0.25)
    watched, state, now = watch(loop), LoopState(schedule=Schedule(3)), 0.0
    watched.time._elapsed = lambda: now

    def take(number: int, pace: float) -> None:
        nonlocal now
        for _ in range(number):
            watched.spend_budget(state)
            now += pace
            state.step, state.seconds = state.step + 1, now

    take(40, 1.0)
    take(6, 2.0)
    assert watched.time.slowdown == 2.0 and state.schedule.decay_start is None
    assert watched.time.seconds_left(state) == pytest.approx(8.0)
    take(1, 2.0)
    assert state.schedule.decay_start == 46 and state.schedule.end == 50
    take(60, 0.2)
    assert state.schedule.end is not None
    assert 100 - 20 * 0.2 - now == pytest.approx((state.schedule.end - state.step) * 0.2, abs=0.5)


def test_the_text_that_judges_fills_the_time_that_is_left_by_the_clock_alone() -> None:
    loop = plan(seconds=TIME, seconds_after=12.0, seconds_judging=2.0)
    watched = watch(loop)
    by_clock = LoopState(step=9, schedule=Schedule(3, 2, 7), stop="budget")
    assert watched.time.judged_tokens(by_clock, 200.0, 80.0) == 200.0  # nothing was evaluated yet
    watched.time.evaluated(1.0)  # of 50 tokens
    assert watched.time.judged_tokens(by_clock, 200.0, 80.0) == pytest.approx(50 * (100 - 80 - 10))
    settled = LoopState(step=9, schedule=Schedule(3, 2, 7), stop="settled", last_step=9)
    assert watched.time.judged_tokens(settled, 200.0, 80.0) == 200.0
    assert watched.time.judged_tokens(settled, 200.0, 88.0) == pytest.approx(100.0)
    assert watch(plan(max_steps=9)).time.judged_tokens(settled, 200.0, 1e9) == 200.0
    beside = watch(plan(seconds=TIME, seconds_after=10.0, seconds_comparing=30.0))
    beside.time.evaluated(1.0)
    assert beside.time.judged_tokens(by_clock, 200.0, 40.0) == 200.0
    assert beside.time.judged_tokens(by_clock, 200.0, 73.0) == pytest.approx(100.0)


# --- spending and blame ---


def recovery(spending: dict[str, float], finite: bool = True) -> Recovery:
    model = SimpleNamespace(is_sharded=False)
    trainer: Any = SimpleNamespace(plan=plan(), weights_are_finite=lambda: finite, world=single(), model=model)
    session: Any = SimpleNamespace(
        events=Events(), run=SimpleNamespace(checkpoints=None, path=Path()), spending=lambda: dict(spending)
    )
    return Recovery(trainer, session)


def test_sessions_add_up_and_of_their_memory_the_largest_counts() -> None:
    spent = recovery({"seconds": 5.0, "peak_memory": 70.0, "joules": 3.0})
    assert spent.spent() == {"seconds": 5.0, "peak_memory": 70.0, "joules": 3.0}
    spent._spent_before = {"seconds": 10.0, "peak_memory": 50.0}
    assert spent.spent() == {"seconds": 15.0, "peak_memory": 70.0, "joules": 3.0}
    spent._spent_before["peak_memory"] = 90.0
    assert spent.spent()["peak_memory"] == 90.0


CALM = [3.0, 3.1] * 60


@pytest.mark.parametrize(
    ("step", "losses", "result", "finite", "blamed"),
    [
        (3, CALM, StepResult(3.0, 1.0), True, 0),
        (3, CALM, StepResult(3.0, 1.0), False, 0),  # not about to be kept
        (7, CALM, StepResult(3.0, 1.0), True, 0),
        (7, CALM, StepResult(3.0, 1.0), False, 1),  # the eighth step makes a checkpoint
        (19, CALM, StepResult(3.0, 1.0), False, 1),  # the last
        (3, CALM, StepResult(math.nan, 1.0), True, 1),
        (3, CALM, StepResult(3.0, math.inf), True, 1),
        (3, CALM, StepResult(math.nan, 1.0), False, 2),  # the update before it broke the weights
        (3, [*CALM, 9.0, 9.0], StepResult(9.0, 1.0), True, 4),  # three that stay, and the update that led there
    ],
)
def test_a_bad_step_blames_what_may_have_caused_it(
    step: int, losses: list[float], result: StepResult, finite: bool, blamed: int
) -> None:
    state = LoopState(step=step, train_losses=losses, schedule=Schedule(3, 10, 10))
    assert recovery({}, finite).steps_to_blame(state, result) == blamed
