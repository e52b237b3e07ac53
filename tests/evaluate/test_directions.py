"""A divergence has a direction: what the live model or the base holds likely is what counts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from settle.evaluate.compare.forgetting import Familiar, forgetting
from settle.evaluate.gate import behaviour
from settle.evaluate.gate.behaviour import Effort, compare_distributions
from settle.formats.gguf.types import Bars

SURE, UNSURE = np.log([0.98, 0.01, 0.01]), np.log([0.4, 0.35, 0.25])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(np.exp(p) * (p - q)))


class Reader:
    """A model with the same distribution everywhere."""

    together = 4

    def __init__(self, spread: np.ndarray) -> None:
        self.spread = spread

    def read(self, texts: list[list[int]], begin: list[int]) -> list[Any]:
        return [
            SimpleNamespace(logprobs=self.spread[np.zeros(len(text) - at, int)], spread=lambda i: self.spread)
            for text, at in zip(texts, begin, strict=True)
        ]


@pytest.mark.parametrize(("base", "tuned"), [(SURE, UNSURE), (UNSURE, SURE)], ids=["spreads", "narrows"])
def test_what_was_forgotten_is_weighed_by_the_base(base: np.ndarray, tuned: np.ndarray) -> None:
    assert abs(kl(base, tuned) - kl(tuned, base)) > 0.3
    text = Familiar([[0, 1, 2, 0]] * 6, [1] * 6, "by hand")
    found = forgetting(Reader(base), Reader(tuned), text, lambda done: None)  # type: ignore[arg-type]
    assert found.kl.difference.value == pytest.approx(kl(base, tuned), rel=1e-6)
    assert found.loss.difference.value == pytest.approx(base[0] - tuned[0], rel=1e-6)


@pytest.mark.parametrize(("live", "file"), [(SURE, UNSURE), (UNSURE, SURE)], ids=["spreads", "narrows"])
@pytest.mark.parametrize("most_likely", [3, 2], ids=["all", "most likely"])
def test_the_gate_s_divergence_is_weighed_by_the_live_model(
    monkeypatch: pytest.MonkeyPatch, live: np.ndarray, file: np.ndarray, most_likely: int
) -> None:
    monkeypatch.setattr(behaviour, "logprobs", lambda model, ids, at: torch.tensor(np.tile(live, (len(at), 1))))
    named = {i: float(file[i]) for i in range(most_likely)}
    engine: Any = SimpleNamespace(num_vocab=3, next_token_logprobs=lambda ids, top: named)
    bars, effort = Bars(99.0, 99.0, 99.0), Effort(num_windows=2, most_likely=most_likely)
    figures = compare_distributions(None, engine, [[0, 1, 2]] * 2, bars, effort)  # type: ignore[arg-type]
    two = [np.append(side[:2], np.log1p(-np.exp(side[:2]).sum())) for side in (live, file)]
    assert figures["kl"] == pytest.approx(kl(*two), rel=1e-6) == pytest.approx(kl(live, file), rel=1e-6)
