"""The gate of shrunk files, and what they ask of the machine."""

import dataclasses

import pytest

from settle.base.errors import GateError
from settle.evaluate.footprint import footprints
from settle.evaluate.gate.behaviour import Effort
from settle.evaluate.gate.export import bars_of, shrunk_through_gate
from settle.formats.gguf import export_gguf
from settle.model.pretrained import Pretrained

EFFORT = dataclasses.replace(Effort(), num_texts=40, num_logprobs=1 << 15)


@pytest.fixture(scope="module")
def source(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "source.gguf"
    return Pretrained.open(export_gguf(tiny.part, tiny.weights, tiny.tokenizer, path, "f32"))


def writer(tiny, dtype, weights=None, part=None):
    return lambda path: export_gguf(part or tiny.part, weights or tiny.weights, tiny.tokenizer, path, dtype)


@pytest.mark.parametrize(("dtype", "bars"), [("f16", "f16"), ("q8_0", "blocks"), ("q4_0", "blocks")])
def test_what_a_type_rounds_passes(tiny, source, tmp_path, dtype, bars):
    """However much it is: that is not for the gate to say."""
    path = tmp_path / "small.gguf"
    figures = shrunk_through_gate(source, path, writer(tiny, dtype), tiny.held_out, EFFORT)
    assert figures["passed"] and figures["dtype"] == bars
    assert bars_of(Pretrained.open(path)) == bars
    assert figures["kl"] < figures["bars"]["kl"] / 4
    assert [p.name for p in tmp_path.iterdir()] == ["small.gguf"]


def test_what_is_no_rounding_is_refused(tiny, source, tmp_path):
    swapped = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"
    weights = tiny.weights | dict(zip(swapped, [tiny.weights[name] for name in reversed(swapped)], strict=True))
    with pytest.raises(GateError, match=r"like source with its weights: .* in blk\.0\.ffn_gate\.weight, blk\."):
        shrunk_through_gate(source, tmp_path / "x.gguf", writer(tiny, "q4_0", weights), tiny.held_out, EFFORT)
    part = tiny.part.model_copy(update={"rope_theta": 20000.0})
    with pytest.raises(GateError, match=r"does not say the same as source in llama\.rope\.freq_base"):
        shrunk_through_gate(source, tmp_path / "x.gguf", writer(tiny, "q4_0", part=part), tiny.held_out, EFFORT)
    fewer = tiny.part.model_copy(update={"num_hidden_layers": 1})
    kept = {name: tensor for name, tensor in tiny.weights.items() if "layers.1." not in name}
    with pytest.raises(GateError, match="other tensors than source"):
        shrunk_through_gate(source, tmp_path / "x.gguf", writer(tiny, "q4_0", kept, fewer), tiny.held_out, EFFORT)
    assert not list(tmp_path.iterdir())


def test_footprints(tiny, tmp_path):
    paths = [tmp_path / f"{dtype}.gguf" for dtype in ("f32", "q8_0")]
    for path in paths:
        writer(tiny, path.stem)(path)
    told = []
    found = footprints(paths, rounds=2, threads=1, prompt=64, generated=16, on_progress=told.append)
    assert sum(told) == 4
    for path, one in zip(paths, found, strict=True):
        assert one.num_bytes == path.stat().st_size and one.rounds == 2
        assert one.peak_bytes > one.num_bytes and 0 < one.load_seconds.least <= one.load_seconds.median
        assert 0 < one.speed.least <= one.speed.median <= one.speed.most
        assert one.prompt_speed.most > one.speed.least  # a busy machine may slow either
        assert one.to_json()["speed"]["median"] == one.speed.median
