"""What a step costs on many ranks: measured by steps that leave the model as it is, with the other ranks at work."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from settle.base.event_log import Events
from settle.data.prepare import Corpus
from settle.train.state import LoopState
from settle.train.world import rank_costs as costs_module
from settle.train.world import shared_gradient, single
from settle.train.world.rank_costs import MEETINGS, rank_costs, talk_of
from settle.train.world.talk import ONE, Ranks, Talk
from tests.fake_time import set_time
from tests.records import into
from tests.train.ranks import on_ranks
from tests.train.test_world import trainer


class Four(Ranks):
    """Four ranks. is_busy: whether the others compute."""

    size = 4  # type: ignore[assignment]

    def __init__(self) -> None:
        self.is_busy, self.talks = False, list[Talk]()

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        self.is_busy = True
        yield
        self.is_busy = False

    def talk(self, talk: Talk) -> float:
        self.talks.append(talk)
        return 0.25


def test_a_part_is_a_rank_s_step_beside_busy_ranks_over_one_process_s(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed, ranks, said, clock = trainer(corpus, single()), Four(), list[Any](), [0.0]
    before = {name: weight.clone() for name, weight in timed.model.state_dict().items()}
    take_step = timed.take_step

    def step(state: LoopState, multiplier: float) -> Any:
        assert ranks.is_busy == (timed.world.size == 4)
        clock[0] += 1.0 + 8.0 / timed.world.size + 0.5 * ranks.is_busy  # an update, rows, and what the others take
        return take_step(state, multiplier)

    monkeypatch.setattr(timed, "take_step", step)
    set_time(monkeypatch, costs_module, perf_counter=lambda: clock[0])
    costs = rank_costs(timed, ranks, Events(listeners=[into(said)]))
    assert costs.part == pytest.approx(3.5 / 9.0) and costs.spread == pytest.approx(0.0)
    assert costs.of_step(18.0) == pytest.approx(7.0 + 0.25)
    assert said[0]["text"].startswith("a step of 4 ranks takes 39 % of one process's time, and 250.0 ms")
    assert timed.world is single() and ranks.talks == [talk_of(timed)]
    assert all(torch.equal(before[name], weight) for name, weight in timed.model.state_dict().items())


def test_slow_steps_are_compared_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    timed, taken, clock = trainer(corpus, single()), list[int](), [0.0]

    def step(state: LoopState, multiplier: float) -> None:
        taken.append(timed.world.size)
        clock[0] += 40.0

    monkeypatch.setattr(timed, "take_step", step)
    set_time(monkeypatch, costs_module, perf_counter=lambda: clock[0])
    assert rank_costs(timed, Four(), Events()).part == 1.0 and sorted(taken) == [1, 4]


def test_every_gradient_is_sent_once(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = trainer(corpus, single())
    number = sum(weight.numel() for weight in timed.model.trainable().values())
    monkeypatch.setattr(shared_gradient, "_BUCKET", number // 3)
    sums = talk_of(timed).sums
    assert len(sums) > 1 + MEETINGS and sum(sums) == number + MEETINGS and not talk_of(timed).gathers


def test_a_shared_out_layer_is_fetched_twice_and_its_gradient_sent_once(corpus: Corpus) -> None:
    timed = trainer(corpus, single())
    number = sum(weight.numel() for weight in timed.model.trainable().values())
    timed.plan = timed.plan.model_copy(update={"is_sharded": True})
    talk = talk_of(timed)
    assert sum(talk.gathers) == 2 * sum(talk.scatters) == 2 * timed.plan.micro_batches * number
    assert len(talk.scatters) == timed.plan.micro_batches * (len(timed.model.layers) + 1)


def test_ranks_send_each_other_what_a_step_needs(tmp_path: Any) -> None:
    talk = Talk((5000, 1), (4001, 30), (4001, 30), True, "cpu")
    seconds = on_ranks(2, tmp_path / "ranks", lambda world: world.send(talk))
    assert all(0 < each < 60 for each in seconds)
    assert ONE.size == 1 and ONE.talk(talk) == 0.0
