"""The number of threads is chosen by the time that the run's own step takes with it."""

from types import SimpleNamespace

import pytest
import torch

from settle.base.event_log import Events
from settle.base.events import Warn
from settle.train import thread_choice
from settle.train.thread_choice import ThreadWatch, choose_threads
from settle.train.trainer import StepResult

CORES = 4


class Clocked:
    """A trainer whose step takes as long as `pace` says for the number of threads, by a clock of its own."""

    def __init__(self, dtype: torch.dtype, pace: dict[int, float]) -> None:
        self.model, self.pace, self.now, self.threads = SimpleNamespace(compute_dtype=dtype), pace, 100.0, CORES
        self.rehearsed: list[bool] = []

    def rehearse(self, updates: bool) -> None:
        self.rehearsed.append(updates)
        self.now += self.pace[self.threads]

    def step(self) -> StepResult:
        self.now += self.pace[self.threads]
        return StepResult(1.0, 1.0, 10)


@pytest.fixture
def clocked(monkeypatch):
    def make(dtype, pace):
        trainer = Clocked(dtype, pace)
        monkeypatch.setattr(
            thread_choice, "time", SimpleNamespace(perf_counter=lambda: trainer.now, monotonic=lambda: trainer.now)
        )
        monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(trainer, "threads", n))
        monkeypatch.setattr(torch, "get_num_threads", lambda: trainer.threads)
        monkeypatch.setattr(thread_choice, "_cores", lambda: CORES)
        return trainer

    return make


class Load:
    """What other programs take, by the same clock."""

    def __init__(self, trainer, others):
        self.trainer, self.others, self.read_at = trainer, others, trainer.now

    def read(self) -> float:
        self.read_at = self.trainer.now
        return self.others


def watched(trainer, threads, others, is_free=True):
    warnings: list[Warn] = []
    watch = ThreadWatch(trainer, Events(listeners=[warnings.append]), threads, CORES, is_free)
    watch.load = Load(trainer, others)
    return watch, warnings


def run(watch, trainer, seconds):
    end = trainer.now + seconds
    while trainer.now < end:
        watch.take(trainer.step)


@pytest.mark.parametrize(
    ("pace", "best"),
    [
        ({4: 1.0, 2: 1.5, 1: 3.0}, 4),
        ({4: 3.0, 2: 1.5, 1: 1.6}, 2),
        ({4: 8.0, 2: 3.0, 1: 1.0}, 1),
        ({4: 1.0, 2: 0.97, 1: 0.5}, 4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_before_the_run_half_as_many_as_long_as_that_pays(clocked, dtype, pace, best):
    trainer = clocked(dtype, pace)
    assert choose_threads(trainer, CORES)[0] == best == trainer.threads
    assert all(trainer.rehearsed)


def test_float32_asks_for_more_since_it_keeps_the_number(clocked):
    pace = {4: 1.0, 2: 0.93, 1: 5.0}
    assert choose_threads(clocked(torch.float32, pace), CORES)[0] == 4
    assert choose_threads(clocked(torch.bfloat16, pace), CORES)[0] == 2


def test_a_slow_step_is_timed_in_one_pair(clocked):
    trainer = clocked(torch.float32, {4: 60.0, 2: 90.0, 1: 180.0})
    choose_threads(trainer, CORES)
    assert len(trainer.rehearsed) == 4


@pytest.mark.parametrize(
    ("fewer", "is_clear"), [(0.2, True), (0.11, True), (0.108, False), (0.094, False), (0.08, True)]
)
def test_what_two_pairs_show_clearly_is_not_timed_again(clocked, fewer, is_clear):
    trainer = clocked(torch.bfloat16, {2: 0.1, 1: fewer})
    choose_threads(trainer, 2)
    pairs = (len(trainer.rehearsed) - 2) / 2
    assert pairs == 2 if is_clear else pairs > 5


def test_bfloat16_changes_while_the_run_goes_on_and_back(clocked):
    trainer = clocked(torch.bfloat16, {4: 0.1, 2: 0.15, 1: 0.3})
    watch, warnings = watched(trainer, 4, others=0.0)
    run(watch, trainer, 30)
    assert watch.threads == 4
    trainer.pace, watch.load.others = {4: 0.5, 2: 0.15, 1: 0.3}, 2.0
    run(watch, trainer, 30)
    assert watch.threads == 2 == trainer.threads
    trainer.pace, watch.load.others = {4: 0.1, 2: 0.15, 1: 0.3}, 0.0
    run(watch, trainer, 30)
    assert watch.threads == 4 and not warnings


def test_what_does_not_pay_is_given_up_and_tried_more_and_more_seldom(clocked):
    trainer = clocked(torch.bfloat16, {4: 0.1, 2: 1.0, 1: 2.0})
    watch, _ = watched(trainer, 4, others=2.0)
    slow = 0
    for _ in range(20_000):
        watch.take(trainer.step)
        slow += trainer.threads != 4
    assert watch.threads == 4
    assert 0 < slow * 1.0 < 0.03 * (trainer.now - 100)


def test_float32_keeps_the_number_and_says_what_that_costs(clocked):
    trainer = clocked(torch.float32, {4: 0.1, 2: 0.15, 1: 0.3})
    watch, warnings = watched(trainer, 4, others=0.0)
    run(watch, trainer, 60)
    assert not warnings
    trainer.pace, watch.load.others = {4: 0.6, 2: 0.15, 1: 0.3}, 2.0
    run(watch, trainer, 300)
    assert watch.threads == 4 == trainer.threads
    (warning,) = warnings
    assert "2.0 of 4 cores" in warning.text and "4.0 times as long as with 2" in warning.text
    assert "--threads 2" in warning.text and not any(trainer.rehearsed)


def test_a_number_that_was_asked_for_stays(clocked):
    trainer = clocked(torch.bfloat16, {4: 0.6, 2: 0.15, 1: 0.3})
    watch, warnings = watched(trainer, 4, others=2.0, is_free=False)
    run(watch, trainer, 300)
    assert watch.threads == 4 and not warnings
