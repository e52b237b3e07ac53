"""What a finished run gives away."""

import copy

import pytest

from settle.base.errors import GateError
from settle.base.event_log import Events
from settle.evaluate.gate.export import ExportedModel, export_run_model, load
from settle.formats.gguf import card_of
from settle.model.architectures.llama import Llama
from tests.records import into

CARD = {"description": "a test", "tags": ["a", "b"], "loss": 1.5, "base": True}


def give(tiny, out, weights=None):
    heard = []
    events = Events(listeners=[into(heard)])
    weights = weights or tiny.weights
    part, tokenizer = tiny.part, tiny.tokenizer
    exported = ExportedModel("tiny", copy.deepcopy(tiny.model), part, weights, tokenizer, tiny.held_out, CARD)
    _, figures = export_run_model(exported, out, events)
    return figures, heard


def test_everything_is_there(tiny, tmp_path):
    figures, heard = give(tiny, tmp_path)
    give(tiny, tmp_path)  # a second time replaces the first
    assert figures["passed"]
    assert [e["kind"] for e in heard] == ["gate"] * 4 and all(e["passed"] for e in heard)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Modelfile", "hf", "tiny.gguf"]
    modelfile = (tmp_path / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./tiny.gguf\n") and 'stop "<|im_end|>"' in modelfile
    assert card_of(tmp_path / "tiny.gguf") == {"name": "tiny", **CARD}


def test_alive_again(tiny, tmp_path):
    import torch

    give(tiny, tmp_path)
    live = load(tmp_path / "hf")
    assert live.part == tiny.part
    assert live.weights.keys() == tiny.weights.keys()
    assert all(torch.equal(live.weights[n], t) for n, t in tiny.weights.items())
    assert live.tokenizer.tokens == tiny.tokenizer.tokens


def test_failed_gate_leaves_out_as_it_was(tiny, tmp_path, monkeypatch):
    (tmp_path / "curves.png").write_bytes(b"x")
    monkeypatch.setattr(Llama, "to_gguf", lambda part, name, values: values)
    with pytest.raises(GateError):
        give(tiny, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
