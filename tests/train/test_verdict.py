"""A run that learned nothing says so, and its verdict is one after which nothing is exported."""

import pytest

from settle.jobs.training_stages import UNUSABLE
from settle.train.evaluation import Evaluation
from settle.train.schedule import Schedule
from settle.train.state import LoopPlan, LoopState
from settle.train.verdict import verdict

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
    assert told["verdict"] == "broken" and told["verdict"] in UNUSABLE
    assert "nothing was learned in one step" in str(told["why"]) and "--time" in str(told["why"])


def test_a_little_learned_is_learned():
    assert verdict(state((0.50, 0.52, 0.48), (0.49, 0.51, 0.475)), PLAN, 1.0)["verdict"] == "out of budget"
    assert verdict(state((0.50,), (0.49,)), PLAN, 1.0)["verdict"] == "out of budget"  # one block says nothing of noise


def test_a_settled_run_says_what_the_decay_brought_and_what_it_cannot_exclude():
    settled = state(*[(3.0 - 0.01 * i,) for i in range(10)], (2.5,))
    settled.stop, settled.schedule, settled.judgement = "settled", Schedule(1, 9, 1), {"why": "nothing to gain"}
    why = str(verdict(settled, PLAN, 1.0)["why"])
    assert why.startswith("nothing to gain. The decay then took it from 2.9300 to 2.5000.") and "second fall" in why
