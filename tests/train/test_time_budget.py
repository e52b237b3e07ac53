"""A time budget ends the loop when its time is spent, however the speed changes, and the rate falls to zero."""

from unittest import mock

import pytest

from settle.base.event_log import Events
from settle.base.events import Event
from settle.base.run import Run
from settle.data.prepare import Corpus
from settle.train import loop
from settle.train.objectives.next_token import NextToken
from settle.train.optimizers.adamw import AdamW
from settle.train.state import LoopPlan, LoopState, Outcome
from settle.train.trainer import StepResult, Trainer
from settle.train.watch import MOST_SLOWDOWN, SLACK
from tests.train.loops import batches_of, loop_of, tiny

BUDGET, AFTER, COMPARING, STEP = 200.0, 10.0, 30.0, 1.0  # seconds


class Clock:
    """Seconds of the run. slow: from when on how many times slower every step is."""

    def __init__(self, now: float, slow: list[tuple[float, float]]) -> None:
        self.now, self.slow = now, slow

    def __call__(self) -> float:
        return self.now

    @property
    def factor(self) -> float:
        return next((f for since, f in reversed(self.slow) if self.now >= since), 1.0)


class Timed(Trainer):
    """A real step that takes as long as the clock says."""

    clock: Clock

    def take_step(self, state: LoopState, multiplier: float) -> StepResult:
        self.clock.now += STEP * self.clock.factor
        return super().take_step(state, multiplier)


def plan(**changes: object) -> LoopPlan:
    values: dict[str, object] = {
        "tokens_per_step": 64, "sequence_length": 32, "warmup_steps": 3, "seconds": BUDGET, "seconds_after": AFTER,
        "seconds_comparing": COMPARING, "step_seconds": STEP, "decay_fraction": 0.4, "checkpoint_steps": 500,
    }  # fmt: skip
    return LoopPlan.model_validate(values | changes)


def train(corpus: Corpus, run: Run, clock: Clock, events: list[Event], stop_at: float = 1e9, **changes: object):
    chosen = plan(**changes)
    trainer = Timed(chosen, tiny(corpus), NextToken(), AdamW(), batches_of(corpus, chosen))
    trainer.clock = clock
    heard, stopping = Events(listeners=[events.append]), lambda: clock.now >= stop_at
    with mock.patch.object(loop.time, "perf_counter", clock):
        return loop_of(trainer, corpus, run, heard, held_out=256, stopping=stopping, elapsed=clock).train()


def rates(events: list[Event]) -> list[float]:
    return [event.lr for event in events if event.kind == "step"]


@pytest.mark.parametrize(
    "slow",
    [[], [(60.0, 4.0)], [(130.0, 3.0)], [(20.0, 4.0), (110.0, 1.0)]],
    ids=["idle", "load in the middle", "load in the decay", "load that ends"],
)
def test_the_loop_ends_when_its_time_is_spent(corpus: Corpus, slow: list[tuple[float, float]]):
    events: list[Event] = []
    clock = Clock(15.0, slow)  # reading and probe took 15 s
    outcome: Outcome = train(corpus, Run.create("train", "a"), clock, events)
    extra = AFTER * (min(clock.factor, MOST_SLOWDOWN) - 1)
    after = AFTER + extra + max(COMPARING / 2, COMPARING - extra)
    assert clock.now + after + SLACK * BUDGET == pytest.approx(BUDGET, abs=2.5 * STEP * clock.factor)
    seen = rates(events)
    assert seen[-1] < 0.15 * max(seen) and outcome.state.stop == "budget"
    began = next(event for event in events if event.kind == "decay")
    falling = seen[began.step :]
    assert falling == sorted(falling, reverse=True) and len(falling) >= 8


def test_a_resumed_run_counts_the_time_before_it(corpus: Corpus):
    run, events = Run.create("train", "a"), []
    clock = Clock(15.0, [])
    assert train(corpus, run, clock, events, stop_at=120.0).interrupted
    clock.now += 12.0  # reading again
    train(corpus, run, clock, events)
    assert clock.now + AFTER + COMPARING + SLACK * BUDGET == pytest.approx(BUDGET, abs=2.5)
    assert rates(events)[-1] < 0.12 * max(rates(events))


def test_when_the_time_is_gone_before_the_loop_it_does_not_go_on(corpus: Corpus):
    clock = Clock(BUDGET, [])
    outcome = train(corpus, Run.create("train", "a"), clock, [])
    assert outcome.state.step <= 2


def test_steps_alone_are_counted_as_ever(corpus: Corpus):
    """Whatever the clock says: the same rates, step by step."""
    seen = []
    for name, slow in (("a", []), ("b", [(20.0, 7.0)])):
        events: list[Event] = []
        changes = {"seconds": None, "max_steps": 30}
        train(corpus, Run.create("train", name), Clock(0.0, slow), events, **changes)
        seen.append(rates(events))
    assert seen[0] == seen[1] and len(seen[0]) == 30
