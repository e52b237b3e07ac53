import math
import re

import numpy as np
import pytest
import torch

from settle.base.errors import DataError, UsageError
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.gguf.types import is_float
from settle.model.families import families
from settle.shrink.activations.importance import Inputs, curvature
from settle.shrink.quantizers.auto import Auto
from settle.shrink.session import batches, measure
from settle.shrink.types.budget import CostTable, cheapest_types
from settle.shrink.types.mixes import MIXES, mix_types
from settle.shrink.types.quantize_file import file_bytes, quantize_gguf
from settle.shrink.types.sensitivity import candidates, measure_costs
from tests.model.architectures.cases import each
from tests.shrink.fake_quant import FakeQuantized
from tests.trained import trained

FAMILIES = families()
SLOW_BELOW = Auto().slow_below


def group_of(name: str) -> str:
    """Tensors of one group do the same in every layer."""
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    t = trained()
    path = tmp_path_factory.mktemp("auto") / "model.gguf"
    return export_gguf(t.part, t.weights, t.tokenizer, path, "f16")


@pytest.fixture(scope="module")
def windows():
    t = trained()
    ids = np.concatenate([t.tokenizer.encode(text).astype(np.int64) for text in t.held_out])
    return [ids[i : i + 64] for i in range(0, min(len(ids), 6400) - 64, 64)]


@pytest.fixture(scope="module")
def measured(source, windows):
    return measure(source, windows[::2])


@pytest.fixture(scope="module")
def trial(source, windows, measured):
    t = trained()
    model = t.part.build(seed=0)
    model.load_state_dict(t.model.state_dict())
    return FakeQuantized(model, t.part, read_gguf(source), measured.importance, windows[1::2])


def test_what_is_predicted_is_what_comes(measured, trial):
    """Groups of tensors in one type: a second-order guess against the model itself, on other text."""
    table = measured.costs
    assert trial.divergence({}).max() < 1e-5
    off, seen = [], []
    for group in sorted({group_of(name) for name in table.costs}):
        for kind in ("Q4_1", "Q8_0"):
            kinds = {name: kind for name in table.costs if group_of(name) == group}
            seen.append((group, kind, trial.divergence(kinds).mean(), table.predicted(kinds)))
            off.append(math.log(trial.divergence(kinds).mean() / table.predicted(kinds)))
    assert abs(np.mean(off)) < 0.3 and np.max(np.abs(off)) < 0.7, seen
    assert trial.divergence({}).max() < 1e-5


def test_auto_beats_one_type_for_all_at_its_size(source, measured, trial):
    """A model as small as this one has few tensors, and which way its errors happen to point decides too."""
    file = read_gguf(source)
    ratios = []
    for kind in ("Q4_1", "Q5_0", "Q5_1"):
        same = dict.fromkeys(measured.costs.costs, kind)
        budget = file_bytes(file, same)
        chosen = cheapest_types(file, measured.costs, budget, SLOW_BELOW)
        assert 0.98 * budget < file_bytes(file, chosen) <= budget
        assert measured.costs.predicted(chosen) < measured.costs.predicted(same)
        ratios.append(trial.divergence(chosen).mean() / trial.divergence(same).mean())
    assert np.prod(ratios) < 0.8 and max(ratios) < 1.1, ratios


def test_the_size_is_that_of_the_file(source, measured, tmp_path):
    file = read_gguf(source)
    budget = int(0.36 * source.stat().st_size)
    chosen = cheapest_types(file, measured.costs, budget, SLOW_BELOW)
    made = quantize_gguf(source, tmp_path / "small.gguf", chosen, measured.importance)
    assert made.stat().st_size == file_bytes(file, chosen) <= budget
    with pytest.raises(UsageError, match="smallest file"):
        cheapest_types(file, measured.costs, 10_000, SLOW_BELOW)


def test_it_can_be_measured_again_and_kept(source, windows, measured, tmp_path):
    again = measure(source, windows[::2])
    assert again.costs == measured.costs
    measured.costs.save(tmp_path / "table.json")
    assert CostTable.open(tmp_path / "table.json") == measured.costs
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match="other.json"):
        CostTable.open(tmp_path / "other.json")


def test_every_mix_can_be_predicted(source, measured):
    file = read_gguf(source)
    for recipe in MIXES:
        for name, choice in mix_types(file, recipe, True).items():
            known = measured.costs.costs.get(name, {choice.kind})
            assert choice.kind in known or is_float(choice.kind), (recipe, name)


def test_rows_decide_what_is_possible(source):
    file = read_gguf(source)
    assert candidates(file.tensors["blk.0.attn_q.weight"]) == ["IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
    assert candidates(file.tensors["output_norm.weight"], ()) == ["F32"]


@pytest.mark.parametrize("family", each(FAMILIES))
def test_every_family_has_a_table(family, tmp_path):
    t = trained()
    part = FAMILIES[family].TINY.model_copy(update={"vocab_size": t.tokenizer.vocab_size})
    model = part.build(seed=3)
    random = np.random.default_rng(0)
    found = [random.integers(0, part.vocab_size, 20) for _ in range(3)]
    inputs = Inputs(model)
    bends = curvature(model, batches(found, 40), inputs=inputs)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.isfinite(b).all() and (b >= 0).all() for b in bends.values())
    weights = {name: p.detach() for name, p in model.named_parameters()}
    file = read_gguf(export_gguf(part, weights, t.tokenizer, tmp_path / "m.gguf", "f16"))
    table = measure_costs(file, part, bends, inputs.importance(part))
    assert table.costs and all(c >= 0 for costs in table.costs.values() for c in costs.values())
    for costs in table.costs.values():
        if {"Q4_1", "Q8_0"} <= set(costs) and costs["Q4_1"] > 0:
            assert costs["Q8_0"] < costs["Q4_1"]
