"""A run that learned nothing says so, and its verdict is one after which nothing is exported."""

import math
from dataclasses import replace

import pytest

from settle.base.statistics import NO_ESTIMATE, Interval
from settle.jobs.training_stages import UNUSABLE
from settle.train.evaluation import Evaluation
from settle.train.settled.trend import is_noise
from settle.train.state import LoopPlan, LoopState, NamedBatch, NamedRow, RollbackNote, Schedule
from settle.train.verdict import FURTHEST, LATEST, TOO_EARLY, verdict

PLAN = LoopPlan(tokens_per_step=64, sequence_length=32, warmup_steps=1, decay_fraction=0.4, checkpoint_steps=8)


def state(*blocks: tuple[float, ...]) -> LoopState:
    history = [Evaluation(i, 64 * i, sum(b) / len(b), 0.01, None, b) for i, b in enumerate(blocks)]
    best = min(history, key=lambda e: e.loss).step
    end = len(blocks) - 1
    return LoopState(step=end, schedule=Schedule(1, 0, end), history=history, best_step=best, stop="budget")


@pytest.mark.parametrize(
    "blocks",
    [
        ((0.50, 0.52), (0.51, 0.53)),  # worse than before the first step
        ((0.50, 0.52, 0.48, 0.51), (0.47, 0.54, 0.45, 0.53)),  # better, by chance
    ],
)
def test_a_run_that_learned_nothing_says_so(blocks: tuple[tuple[float, ...], ...]):
    told = verdict(state(*blocks), PLAN, 1.0)
    assert told.verdict == "broken" and told.verdict in UNUSABLE
    assert "nothing was learned in one step" in str(told.why) and "--time" in str(told.why)


def test_rows_that_were_learned_have_taught_something_however_few_judge() -> None:
    few = state((1.38, 1.40, 1.39, 1.41), (0.02, 1.40, 0.90, 2.00))  # better, and not shown to be
    assert verdict(few, PLAN, 1.0).verdict == "broken"
    few.train_losses = [1.4, *[0.3] * LATEST]
    assert verdict(few, PLAN, 1.0).verdict == "out of budget"
    few.train_losses = [0.8] * LATEST  # more than half of the first loss
    assert verdict(few, PLAN, 1.0).verdict == "broken"
    few.train_losses = [0.3] * (LATEST - 1)
    assert verdict(few, PLAN, 1.0).verdict == "broken"
    few.train_losses, few.best_step = [0.3] * LATEST, 0
    assert verdict(few, PLAN, 1.0).verdict == "broken"  # nothing was better than the first weights


def test_a_little_learned_is_learned():
    assert verdict(state((0.50, 0.52, 0.48), (0.49, 0.51, 0.475)), PLAN, 1.0).verdict == "out of budget"
    assert verdict(state((0.50,), (0.49,)), PLAN, 1.0).verdict == "out of budget"  # one block says nothing of noise


def test_the_average_may_be_best_at_a_step_that_was_not_evaluated():
    averaged = state((0.50, 0.52, 0.48), (0.49, 0.51, 0.475), (0.48, 0.50, 0.47))
    averaged.history[1:] = [replace(e, step=2 * e.step) for e in averaged.history[1:]]
    averaged.best_step, averaged.averaged = 3, Evaluation(3, 192, 0.47, 0.01, None, (0.47, 0.49, 0.45))
    assert verdict(averaged, PLAN, 1.0).verdict == "overfitting"
    averaged.history[-1] = replace(averaged.averaged, step=4)
    assert verdict(averaged, PLAN, 1.0).verdict == "out of budget" and averaged.best_loss == 0.47


def test_a_settled_run_says_what_the_decay_brought_and_what_it_cannot_exclude():
    settled = state(*[(3.0 - 0.01 * i,) for i in range(10)], (2.5,))
    settled.stop, settled.schedule, settled.judgement = "settled", Schedule(1, 9, 1), {"why": "nothing to gain"}
    why = str(verdict(settled, PLAN, 1.0).why)
    assert why.startswith("nothing to gain. The decay then took it from 2.9300 to 2.5000.") and "second fall" in why
    with_forecast = verdict(settled, PLAN, 1.0, Interval(0.012, 0.004, 0.02))
    assert with_forecast.why == why  # of what is still to come it says the gain of 10 % more tokens alone


def risen(by: float, spread: float, level: float = 1.0) -> LoopState:
    """A run whose four blocks end `by` above their best, give or take `spread`: a standard error of spread / √3."""
    first, best = (level * 2,) * 4, (level,) * 4
    return state(first, best, tuple(level + by + sign * spread for sign in (1, -1, 1, -1)))


@pytest.mark.parametrize(
    ("by", "spread", "is_rise"),
    [
        (0.0409, 0.01 * 3**0.5, True),  # four standard errors, and a bit
        (0.0391, 0.01 * 3**0.5, False),
        (0.0051, 0.0, True),  # half a percent of the loss
        (0.0049, 0.0, False),
    ],
)
def test_a_rise_at_the_end_is_four_standard_errors_and_half_a_percent(by: float, spread: float, is_rise: bool):
    said = verdict(risen(by, spread), PLAN, 1.0)
    assert (said.verdict == "overfitting") == is_rise, said
    assert verdict(risen(100 * by, 100 * spread, 100.0), PLAN, 1.0).verdict == said.verdict
    if is_rise:
        assert said.why == f"held-out loss rose from 1.0000 at step 1 to {1 + by:.4f}; the best was kept"


def test_one_block_shows_no_rise_and_the_best_of_all_is_none():
    assert verdict(state((2.0,), (1.0,), (1.5,)), PLAN, 1.0).verdict == "out of budget"
    assert verdict(state((2.0, 2.0), (1.5, 1.5), (1.0, 1.0)), PLAN, 1.0).verdict == "out of budget"
    assert verdict(state((2.0, 2.0), (1.0, 1.0), (1.5, 1.5)), PLAN, 1.0).verdict == "overfitting"


def test_a_fall_of_two_standard_errors_is_noise():
    before, deviation = (1.0,) * 4, 3**0.5  # of the differences: the standard error of their mean is 1
    for fall, expected in ((1.9, True), (2.1, False)):
        after = tuple(1.0 - fall - sign * deviation for sign in (1, -1, 1, -1))
        assert is_noise(before, after) is expected
    assert is_noise(before, before) and not is_noise((1.0,), (2.0,))


def test_a_diverged_run_names_the_last_batch_that_did_it():
    def note(step: int) -> RollbackNote:
        batches = [NamedBatch(step + n, 1, [NamedRow(0, f"{step}.txt:{n}", 0, 9, "x")]) for n in (0, 1)]
        return RollbackNote(step, "nan", "1.0", 8, batches)

    run = state((2.0,), (1.0,))
    run.stop, run.rollbacks = "diverged", [note(20), note(30)]
    said = verdict(run, PLAN, 1.0)
    assert said.verdict == "diverged" and len(said.rollbacks) == 2  # type: ignore[arg-type]
    assert said.why == "rolled back 2 times, last at step 30 (loss nan): batch 31, which begins with 30.txt:1"


def test_a_further_hour_is_judged_without_the_decay():
    """The loss falls fast in a decay: that says nothing of the constant rate."""
    stable = [(4.0 - 0.3 * math.log(n + 1),) for n in range(30)]
    constant = state(*stable)
    constant.schedule = Schedule(1)
    before = verdict(constant, PLAN, 1.0)
    run = state(*stable, (1.5,), (1.2,))
    run.schedule = Schedule(1, 29, 2)
    after = verdict(run, PLAN, 1.0)
    assert after.gain_per_hour == before.gain_per_hour
    assert str(after.why).endswith(f"The decay then took it from {sum(b for (b,) in stable[-5:]) / 5:.4f} to 1.2000.")
    assert "at the constant learning rate" in str(after.why) and "decay" not in str(before.why)


def test_a_run_that_stopped_as_broken_says_why_and_one_that_overfits_too():
    run = state((2.0,), (1.0,))
    run.judgement = {"why": "it rests", "evidence": {"a": 1}}
    for stop, name in (("broken", "broken"), ("overfitting", "overfitting")):
        run.stop = stop
        said = verdict(run, PLAN, 1.0)
        assert (said.verdict, said.why, said.evidence) == (name, "it rests", {"a": 1})
    run.stop = "budget"
    assert verdict(run, PLAN, 1.0).why == TOO_EARLY


@pytest.mark.parametrize(("stop", "name"), [("learned", "learned"), ("passes", "out of budget")])
def test_a_run_whose_rows_were_used_up_says_so(stop: str, name: str):
    run = state(*[(3.0 - 0.01 * i,) for i in range(10)], (2.5,))
    run.stop, run.schedule, run.judgement = stop, Schedule(1, 9, 1), {"why": "the rows are learned"}
    said = verdict(run, PLAN.model_copy(update={"most_passes": 20.0}), 1.0)
    begins = {"learned": "the rows are learned. The", "passes": "20 passes over the rows, the most"}[stop]
    assert said.verdict == name and str(said.why).startswith(begins)
    assert "took it from 2.9300 to 2.5000." in str(said.why)


def test_a_short_run_tells_what_an_hour_more_would_bring_where_a_forecast_knows_it():
    short = state((3.0,), (2.5,), (2.4,))
    told = verdict(short, PLAN, 1.0, Interval(0.2, 0.1, 0.3))
    assert "a further hour would lower the loss by about 20.0% (10.0% to 30.0%)" in str(told.why)
    assert told.gain_per_hour == Interval(0.2, 0.1, 0.3).to_json()
    assert verdict(short, PLAN, 1.0).why == TOO_EARLY


@pytest.mark.parametrize(
    ("gain", "why"),
    [
        (NO_ESTIMATE, TOO_EARLY),
        (Interval(0.986, -0.101, 1.0), TOO_EARLY),  # says nothing
        (
            Interval(0.02, -0.01, 0.05),
            "a further hour would lower the loss by 5.0% at most, and might raise it by 1.0%",
        ),
        (Interval(-0.02, -0.05, -0.01), "a further hour would raise the loss by 1.0% to 5.0%"),
    ],
)
def test_a_further_hour_is_told_as_far_as_it_is_known(gain: Interval, why: str):
    assert str(verdict(state((3.0,), (2.5,), (2.4,)), PLAN, 1.0, gain).why).startswith(why)


def test_evaluations_say_nothing_of_an_hour_that_would_bring_many_times_their_tokens():
    run = state(*[(4.0 - 0.3 * math.log(n + 1),) for n in range(30)])
    run.schedule = Schedule(1)
    near, far = (verdict(run, PLAN, FURTHEST * 29 * 64 / 3600 * times) for times in (0.99, 1.01))
    assert "would lower the loss by about" in str(near.why) and near.gain_per_hour
    assert far.why == TOO_EARLY and far.gain_per_hour is None
