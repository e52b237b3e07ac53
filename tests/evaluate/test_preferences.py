"""Pairs are judged by whether the better answer is likelier, and by the reward margin where that shows nothing."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from settle.base.event_log import Events
from settle.data.batches import Batch
from settle.evaluate.compare.compare import compare_preferences
from settle.model.decoder import Decoder
from settle.train.objectives import Preferences
from settle.train.objectives.dpo import DPO
from tests.records import into


class Ranked(DPO):
    """Ranks a batch as the batch itself says."""

    def preferences(self, model: Decoder, batch: Batch) -> Preferences:
        return cast(Preferences, batch)


def ranked(*values: torch.Tensor) -> SimpleNamespace:
    """A batch with what is read of it, and how it ranks itself."""
    return SimpleNamespace(**Preferences(*values)._asdict(), inputs=np.arange(len(values[0])))


def judged(base: np.ndarray, tuned: np.ndarray, rewards: np.ndarray):
    parts = zip(*(np.split(values, 4) for values in (base, tuned, rewards)), strict=True)
    batches = [ranked(*map(torch.from_numpy, part)) for part in parts]
    model = cast(Decoder, torch.nn.Module())
    return compare_preferences(model, Ranked(), cast(list[Batch], batches), ("base", "tuned"), Events())


NOISE = np.random.default_rng(5).standard_normal(40)
ALTERNATING = np.where(np.arange(40) % 2, 1.0, -1.0)


@pytest.mark.parametrize(
    ("base", "tuned", "rewards", "verdict"),
    [
        (ALTERNATING, np.ones(40), NOISE, "better"),  # it ranks more pairs right
        (np.ones(40), ALTERNATING, NOISE, "worse"),
        (np.ones(40), np.ones(40), 1 + 0.1 * NOISE, "better"),  # the base ranked all of them right: the margin decides
        (np.ones(40), np.ones(40), -1 + 0.1 * NOISE, "worse"),
        (ALTERNATING, ALTERNATING, NOISE - NOISE.mean(), "no different"),
        (np.ones(40), np.where(np.arange(40), 1.0, -1.0), 1 + 0.1 * NOISE, "no different"),  # the two disagree
    ],
)
def test_verdict(base: np.ndarray, tuned: np.ndarray, rewards: np.ndarray, verdict: str) -> None:
    comparison = judged(base, tuned, rewards)
    assert comparison.verdict == verdict and comparison.headline.startswith(verdict)
    assert comparison.score.base == (base > 0).mean() and comparison.score.tuned == (tuned > 0).mean()
    assert comparison.margin is not None and comparison.margin.difference.value == pytest.approx(rewards.mean())
    low, high = comparison.margin.difference.low, comparison.margin.difference.high
    assert low < rewards.mean() < high and comparison.to_json()["verdict"] == verdict
    assert [row[0] for row in comparison.rows()] == ["preference accuracy", "reward margin"]


def test_equally_likely_answers_are_a_guess() -> None:
    assert judged(np.zeros(40), np.ones(40), np.ones(40)).score.base == 0.5


def test_pairs_are_ranked_without_dropout_and_the_model_is_left_as_it_was() -> None:
    model, seen, heard = torch.nn.Linear(1, 1), [], []

    class Watched(Ranked):
        def preferences(self, model: Decoder, batch: Batch) -> Preferences:
            seen.append((model.training, torch.is_grad_enabled()))
            return super().preferences(model, batch)

    batches = cast(list[Batch], [ranked(*(torch.ones(3),) * 3)] * 2)
    for training in (True, False):
        model.train(training)
        made = compare_preferences(
            cast(Decoder, model), Watched(), batches, ("base", "tuned"), Events(listeners=[into(heard)])
        )
        assert model.training == training and (made.base, made.tuned, made.score.rows) == ("base", "tuned", 6)
    assert seen == [(False, False)] * 4 and [(e["done"], e["total"]) for e in heard] == [(1, 2), (2, 2)] * 2
