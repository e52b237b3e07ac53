"""What a finished run gives away."""

import copy

import pytest
import torch

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


@pytest.fixture(scope="module")
def given(tiny, tmp_path_factory):
    """A folder that a model was exported to twice, and what the first time said."""
    folder = tmp_path_factory.mktemp("out")
    first = give(tiny, folder)
    give(tiny, folder)  # replaces the first
    return folder, *first


def test_everything_is_there(given):
    folder, figures, heard = given
    assert figures["passed"]
    assert [e["kind"] for e in heard] == ["gate"] * 4 and all(e["passed"] for e in heard)
    assert sorted(p.name for p in folder.iterdir()) == ["Modelfile", "hf", "tiny.gguf"]
    modelfile = (folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./tiny.gguf\n") and 'stop "<|im_end|>"' in modelfile
    assert card_of(folder / "tiny.gguf") == {"name": "tiny", **CARD}


def test_alive_again(tiny, given):
    live = load(given[0] / "hf")
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
