"""Chances of small experiments, by counting."""

from itertools import product
from math import comb

import numpy as np
import pytest

from settle.base import statistics
from settle.base.statistics import sign_flip, sign_tail


@pytest.mark.parametrize("tosses", range(6))
def test_a_coin_s_tail_is_counted(tosses: int) -> None:
    for heads in range(-2, tosses + 3):
        wanted = sum(comb(tosses, k) for k in range(tosses + 1) if k >= heads) / 2**tosses
        assert sign_tail(tosses, heads) == wanted


@pytest.mark.parametrize(
    "sums", [(3.0, -1.0, 2.0), (1.0, 1.0, 1.0, -1.0), (0.5,), (4.0, 0.0, -4.0), (1.0, 2.0, 4.0, 8.0)]
)
def test_signs_are_enumerated(sums: tuple[float, ...]) -> None:
    observed = abs(sum(sums))
    totals = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=len(sums))]
    wanted = sum(total >= observed - 1e-9 for total in totals) / len(totals)
    found = sign_flip(np.array(sums), np.random.default_rng(0), 100)
    assert found == pytest.approx(min(1.0, wanted if observed else 1.0))


def test_drawn_signs_come_near_and_are_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = np.array([1.0, 0.9, 1.1, 0.7, 1.3, -0.4, 0.8, 0.6])
    exact = sign_flip(sums, np.random.default_rng(0), 100)
    monkeypatch.setattr(statistics, "MOST_ENUMERATED", 3)
    assert sign_flip(sums, np.random.default_rng(0), 40_000) == pytest.approx(exact, rel=0.15)
    all_up = np.arange(1.0, 31.0)
    assert sign_flip(all_up, np.random.default_rng(0), 99) == 2 / 100  # the data itself is one of a hundred
