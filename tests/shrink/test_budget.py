import itertools

import numpy as np
import pytest

from settle.base.errors import UsageError
from settle.shrink.types import budget
from settle.shrink.types.budget import cheapest


def _random(seed: int, tensors: int, kinds: int, grain: int) -> tuple[dict, dict]:
    random = np.random.default_rng(seed)
    costs, sizes = {}, {}
    for t in range(tensors):
        names = [f"K{k}" for k in range(kinds)]
        sizes[f"t{t}"] = {n: int(s) * grain for n, s in zip(names, random.integers(1, 40, kinds), strict=True)}
        costs[f"t{t}"] = {n: float(c) for n, c in zip(names, random.random(kinds), strict=True)}
    return costs, sizes


def _total(table: dict, chosen: dict):
    return sum(table[name][kind] for name, kind in chosen.items())


def _best(costs: dict, sizes: dict, most: int) -> float:
    names = list(costs)
    ways = (dict(zip(names, way, strict=True)) for way in itertools.product(*(costs[n] for n in names)))
    return min(_total(costs, way) for way in ways if _total(sizes, way) <= most)


@pytest.mark.parametrize("seed", range(12))
def test_no_other_choice_costs_less(seed):
    costs, sizes = _random(seed, tensors=5, kinds=4, grain=34)
    least = sum(min(s.values()) for s in sizes.values())
    for spare in (0, 34, 500, 1700, 10**6):
        chosen = cheapest(costs, sizes, least + spare)
        assert _total(sizes, chosen) <= least + spare
        assert _total(costs, chosen) == pytest.approx(_best(costs, sizes, least + spare), abs=1e-12)


def test_sums_that_are_too_many_are_rounded_and_still_fit(monkeypatch):
    monkeypatch.setattr(budget, "_MOST_SUMS", 512)
    costs, sizes = _random(3, tensors=6, kinds=4, grain=1009)
    sizes["t0"] = {kind: size + i for i, (kind, size) in enumerate(sizes["t0"].items())}  # no common divisor
    least = sum(min(s.values()) for s in sizes.values())
    chosen = cheapest(costs, sizes, least + 60_000)
    assert _total(sizes, chosen) <= least + 60_000
    assert _total(costs, chosen) <= _best(costs, sizes, least + 57_000)


def test_too_small_a_budget_names_what_can_be_met():
    costs, sizes = _random(0, tensors=3, kinds=3, grain=1_000_000)
    least = sum(min(s.values()) for s in sizes.values())
    with pytest.raises(UsageError, match=f"{least / 1e6:.1f} MB"):
        cheapest(costs, sizes, least - 1)


def test_the_same_table_gives_the_same_types():
    costs, sizes = _random(9, tensors=20, kinds=6, grain=18)
    most = 2 * sum(min(s.values()) for s in sizes.values())
    assert cheapest(costs, sizes, most) == cheapest(costs, sizes, most)
