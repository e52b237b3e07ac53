import itertools
import math

import numpy as np
import pytest

from settle.base.errors import UsageError
from settle.formats.gguf import read_gguf
from settle.shrink.quantizers.auto import Auto
from settle.shrink.types import budget, ggml
from settle.shrink.types.budget import CostTable, cheapest, cheapest_types
from settle.shrink.types.mixes import mix_types, quantizable
from settle.shrink.types.quantize_file import file_bytes
from settle.shrink.types.sensitivity import candidates
from tests.shrink.files import make_gguf


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


SLOW_BELOW = Auto().slow_below


@pytest.fixture
def source(tmp_path):
    return make_gguf(tmp_path / "x.gguf", rows=8)


def _table(file, factor=None) -> CostTable:
    """Every bit less costs four times as much, as rounding does; factor: of a type."""
    tensors = [file.tensors[name] for name in sorted(quantizable(file))]
    sizes = {t.name: {k: ggml.num_bytes(k, math.prod(t.shape)) for k in candidates(t)} for t in tensors}
    costs = {
        t.name: {k: (factor or {}).get(k, 1.0) * 4 ** (-8 * n / math.prod(t.shape)) for k, n in sizes[t.name].items()}
        for t in tensors
    }
    return CostTable(costs, sizes)


@pytest.mark.parametrize("recipe", ["Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q8_0"])
def test_it_has_the_size_of_a_recipe_and_costs_no_more(source, recipe):
    file = read_gguf(source)
    table = _table(file)
    mix = {name: choice.kind for name, choice in mix_types(file, recipe, True).items()}
    chosen = cheapest_types(file, table, file_bytes(file, mix), SLOW_BELOW)
    assert file_bytes(file, chosen) <= file_bytes(file, mix)
    assert table.predicted(chosen) <= table.predicted(mix)


def test_slow_types_are_taken_where_they_are_worth_it(source):
    file = read_gguf(source)
    budget = file_bytes(file, dict.fromkeys(_table(file).costs, "Q3_K"))
    hardly = cheapest_types(file, _table(file, {"IQ3_S": 0.97}), budget, SLOW_BELOW)
    greatly = cheapest_types(file, _table(file, {"IQ3_S": 0.5}), budget, SLOW_BELOW)
    assert "IQ3_S" not in hardly.values() and "IQ3_XXS" not in hardly.values()
    assert "IQ3_S" in greatly.values()


def test_a_size_that_only_slow_types_meet(source):
    file = read_gguf(source)
    table = _table(file)
    costs = {name: {k: c for k, c in found.items() if k != "Q2_K"} for name, found in table.costs.items()}
    sizes = {name: {k: n for k, n in found.items() if k != "Q2_K"} for name, found in table.num_bytes.items()}
    budget = file_bytes(file, dict.fromkeys(costs, "IQ3_XXS"))
    assert set(cheapest_types(file, CostTable(costs, sizes), budget, SLOW_BELOW).values()) == {"IQ3_XXS"}
