"""What is chosen for a size, on files of random weights and tables made up for them."""

import math

import pytest

from settle.formats.gguf import read_gguf
from settle.shrink.quantizers.auto import Auto
from settle.shrink.types import ggml
from settle.shrink.types.budget import CostTable, cheapest_types
from settle.shrink.types.mixes import mix_types, quantizable
from settle.shrink.types.quantize_file import file_bytes
from settle.shrink.types.sensitivity import candidates
from tests.shrink.files import make_gguf

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
