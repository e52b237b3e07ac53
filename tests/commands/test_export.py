"""`settle export`: through the gate or not at all."""

import json

import numpy as np
import pytest

from settle.base.events import Events
from settle.base.run import Run
from settle.cli import main
from settle.evaluate.hand_over import hand_over
from settle.formats.gguf import read_gguf
from settle.formats.safetensors import read_safetensors


@pytest.fixture
def a_run(tiny, home, monkeypatch, tmp_path):
    """A finished run; commands work in an empty folder."""
    run = Run.create("train", "notes")
    metadata = {"base": True, "loss": 1.25}
    weights, texts = tiny.weights, tiny.held_out
    hand_over(tiny.model, tiny.part, weights, tiny.tokenizer, run.out, "notes", texts, metadata, Events())
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return run


def test_gguf(a_run, tmp_path, capsys):
    assert main(["export", "notes", "--to", "gguf", "--dtype", "q8_0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gate"]["passed"] and told["path"] == "notes-q8_0.gguf"
    weights = read_gguf(tmp_path / "here" / "notes-q8_0.gguf")
    assert weights.tensors["token_embd.weight"].dtype == "Q8_0"
    assert weights.metadata["settle.loss"] == 1.25 and weights.metadata["settle.base"] is True


def test_safetensors(a_run, tiny, tmp_path):
    assert main(["export", "notes", "--to", "safetensors", "--dtype", "bf16", "--out", str(tmp_path / "hf")]) == 0
    norm = read_safetensors(tmp_path / "hf").tensors["model.norm.weight"]
    assert norm.dtype == "BF16"
    np.testing.assert_allclose(norm.load(), tiny.weights["model.norm.weight"].numpy(), rtol=2**-8)


def test_what_there_is_not(a_run, capsys):
    for arguments, says in (
        (["--to", "safetensors", "--dtype", "q8_0"], "one of: f32, f16, bf16"),
        (["--dtype", "f61"], "gguf has no type 'f61'"),
        (["--to", "guff"], "did you mean 'gguf'"),
        (["--out", "nowhere/x.gguf"], "there is no folder nowhere"),
    ):
        assert main(["export", "notes", *arguments]) == 2
        assert says in capsys.readouterr().err


def test_damaged_weights_are_not_exported(a_run, tmp_path, capsys):
    """Cut short by hand, or a config that no longer fits."""
    file = a_run.out / "hf" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    assert main(["export", "notes"]) == 1
    assert "not a sound safetensors file" in capsys.readouterr().err
    file.write_bytes(whole)
    config = a_run.out / "hf" / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    assert main(["export", "notes"]) == 1
    assert "disagree about" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


def test_nothing_to_export(home, capsys, tmp_path):
    Run.create("train", "cut")
    assert main(["export", "cut"]) == 2
    assert "settle resume cut" in capsys.readouterr().err


def test_no_permission(a_run, tmp_path, capsys):
    """Root may write almost anywhere, so: where nobody can."""
    assert main(["export", "notes", "--out", "/proc/notes.gguf"]) == 1
    assert "cannot write /proc/notes.gguf" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["export", "notes", "--to", "safetensors", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err
