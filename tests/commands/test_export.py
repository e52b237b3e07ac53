"""`settle export`: through the gate or not at all."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.cli import main
from settle.evaluate.gate.export import ExportedModel, export_run_model
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.lora_gguf import read_lora
from settle.formats.peft import export_peft
from settle.formats.safetensors import read_safetensors
from settle.model.load_adapter import open_adapter
from settle.model.source import hash_of
from tests.conftest import installed
from tests.trained import adapter


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """The runs of a home: a finished one."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        run = Run.create("train", "notes")
        weights, metadata = tiny.weights, {"base": True, "loss": 1.25}
        exported = ExportedModel("notes", tiny.model, tiny.part, weights, tiny.tokenizer, tiny.held_out, metadata)
        export_run_model(exported, run.out, Events())
    return home / "runs"


@pytest.fixture
def a_run(made, home, monkeypatch, tmp_path):
    """A finished run; commands work in an empty folder."""
    shutil.copytree(made, home / "runs")
    folder = tmp_path / "here"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    return Run.find("notes")


def test_gguf(a_run, tmp_path, capsys):
    assert main(["export", "notes", "--to", "gguf", "--dtype", "q8_0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["gate"]["passed"] and told["path"] == "notes-q8_0.gguf"
    weights = read_gguf(tmp_path / "here" / "notes-q8_0.gguf")
    assert weights.tensors["token_embd.weight"].dtype == "Q8_0"
    assert weights.metadata["settle.loss"] == 1.25 and weights.metadata["settle.base"] is True


def test_a_wholly_tuned_model_recommends_what_its_run_did(tiny, home, monkeypatch, tmp_path, capsys):
    run = Run.create("tune", "tuned")
    keys = {"general.sampling.temp": 0.25, "general.sampling.top_k": 7}
    exported = ExportedModel(
        *("tuned", tiny.model, tiny.part, tiny.weights, tiny.tokenizer, tiny.held_out, {"loss": 1.25}), gguf_keys=keys
    )
    export_run_model(exported, run.out, Events())
    write_json(run.path / "plan.json", {"tuning": {"base": "b"}})
    monkeypatch.chdir(tmp_path)
    assert main(["export", "tuned", "--to", "gguf", "--out", "again.gguf", "--json"]) == 0
    assert read_gguf(tmp_path / "again.gguf").metadata.items() >= keys.items()


def test_safetensors(a_run, tiny, tmp_path):
    assert main(["export", "notes", "--to", "safetensors", "--dtype", "bf16", "--out", str(tmp_path / "hf")]) == 0
    norm = read_safetensors(tmp_path / "hf").tensors["model.norm.weight"]
    assert norm.dtype == "BF16"
    np.testing.assert_allclose(norm.load(), tiny.weights["model.norm.weight"].numpy(), rtol=2**-8)


def test_what_there_is_not(a_run, capsys):
    for arguments, says in (
        (["--to", "safetensors", "--dtype", "q8_0"], "--dtype from f32, f16, bf16"),
        (["--dtype", "f61"], "settle export writes no 'f61' to gguf"),
        (["--to", "guff"], "did you mean 'gguf'"),
        (["--out", "nowhere/x.gguf"], "there is no folder nowhere"),
    ):
        assert main(["export", "notes", *arguments]) == 2
        assert says in capsys.readouterr().err


@pytest.fixture
def kobold(tmp_path_factory, monkeypatch):
    yield from installed({"formats": "kobold:Kobold"}, tmp_path_factory, monkeypatch)


def test_a_new_format_is_one_file(an_adapter, a_run, kobold, capsys):
    """The example of docs/develop.md is found, gated, placed and written, with nothing else changed."""
    whole = told(["notes", "--to", "kobold", "--dtype", "q8_0"], capsys)
    assert whole["gate"]["passed"] and whole["path"] == "notes-kobold" and whole["dtype"] == "q8_0"
    assert json.loads(Path("notes-kobold/settle.kcpps").read_text())["model_param"] == "model.gguf"
    assert told([an_adapter, "--to", "kobold"], capsys)["gate"]["adapter_kept"] > 0.99
    assert main(["export", "notes", "--to", "kobold", "--dtype", "f61"]) == 2
    assert "settle export writes no 'f61' to kobold" in capsys.readouterr().err
    assert main(["export", "--help"]) == 0
    assert "kobold" in capsys.readouterr().out


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
    assert main(["export", "notes", "--to", "safetensors", "--out", str(tmp_path / "file")]) == 2
    assert f"{tmp_path / 'file'} exists already" in capsys.readouterr().err
    assert main(["export", "notes", "--to", "safetensors", "--out", str(tmp_path / "file"), "--force"]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.fixture
def an_adapter(tiny, home, monkeypatch, tmp_path):
    """An adapter in PEFT's format and the GGUF of its base; commands work in an empty folder."""
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf", "f16")
    whole = adapter(tiny.part)
    lora = dataclasses.replace(whole, base=str(base), base_sha256=hash_of(base))
    export_peft(tiny.part, lora, tmp_path / "polite")
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return tmp_path / "polite"


def told(arguments, capsys):
    assert main(["export", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_an_adapter_merged_and_alone(an_adapter, capsys):
    """One adapter, every format: what llama.cpp reads passes the gate, merged or over the base."""
    merged = told([an_adapter, "--to", "gguf"], capsys)
    assert merged["gate"]["passed"] and merged["path"] == "polite-f16.gguf"
    assert merged["gate"]["adapter_kept"] > 0.99 and merged["gate"]["merge"]["base_type"] == "F16"
    alone = told([an_adapter, "--to", "lora-gguf"], capsys)
    assert alone["gate"]["passed"] and read_lora(Path(alone["path"])).metadata["general.name"] == "polite"
    served = told([an_adapter, "--to", "ollama"], capsys)
    text = (Path("polite-ollama") / "Modelfile").read_text()
    assert served["gate"]["passed"] and text.startswith("FROM ./polite.gguf\n") and "ADAPTER" not in text
    shown = told([an_adapter, "--to", "lmstudio", "--dtype", "q8_0"], capsys)
    assert Path(shown["path"]).parts == ("lmstudio-models", "settle", "polite") and shown["gate"]["passed"]
    again = told([an_adapter, "--to", "peft"], capsys)
    assert again["gate"] is None and open_adapter(Path(again["path"])).method.rank == 4
    told([an_adapter, "--to", "mlx"], capsys)
    assert read_safetensors(Path("polite-mlx")).metadata["format"] == "mlx"


def test_a_run_that_tuned_an_adapter(an_adapter, tiny, capsys):
    run = Run.create("tune", "polite")
    shutil.move(an_adapter, run.out / "adapter")
    write_json(run.path / "plan.json", {"corpus": "gone", "tuning": {"base": str(an_adapter.parent / "base.gguf")}})
    alone = told(["polite", "--to", "lora-gguf"], capsys)
    assert alone["gate"]["passed"] and alone["path"] == "polite-lora.gguf"


def test_an_adapter_that_goes_on_with_texts_gets_no_turns(an_adapter, tiny, tmp_path, capsys):
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "plain.gguf", "f16", {"base": True})
    run = Run.create("tune", "prose")
    lora = dataclasses.replace(adapter(tiny.part), base_sha256=hash_of(base))
    export_peft(tiny.part, lora, run.out / "adapter")
    write_json(run.path / "plan.json", {"corpus": "gone", "tuning": {"base": str(base)}})
    told(["prose", "--to", "ollama"], capsys)
    assert 'TEMPLATE """{{ .Prompt }}"""' in (Path("prose-ollama") / "Modelfile").read_text()
    told(["prose", "--to", "gguf"], capsys)
    assert read_gguf(Path("prose-f16.gguf")).metadata["settle.base"] is True


def test_an_adapter_and_the_wrong_base(an_adapter, tiny, tmp_path, capsys):
    other = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "other.gguf", "f32")
    assert main(["export", str(an_adapter), "--base", str(other)]) == 1
    assert "and other has" in capsys.readouterr().err
    (tmp_path / "base.gguf").unlink()
    assert main(["export", str(an_adapter)]) == 2
    assert "give it: --base NAME" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["written", "compared"])
def test_killed_in_the_middle_nothing_lies_there_and_the_next_export_sweeps(a_run, moment):
    """kill -9 while the file is written, and while it is compared: what was at its place before is still whole."""
    before = Path("notes.gguf")
    before.write_bytes(b"of before")
    command = [sys.executable, "-m", "settle", "export", "notes", "--to", "gguf", "--out", str(before), "--force"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not _is_at(moment, process.pid) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)
    engines = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    left = list(Path().glob(".unproven-*"))
    assert before.read_bytes() == b"of before" and len(left) == 1
    psutil.wait_procs(engines, timeout=20)
    assert not any(engine.is_running() for engine in engines)
    assert main(["export", "notes", "--to", "gguf", "--out", str(before), "--force"]) == 0
    assert read_gguf(before).tensors and sorted(path.name for path in Path().iterdir()) == ["notes.gguf"]


def _is_at(moment: str, pid: int) -> bool:
    """Whether an export has begun to write, or has begun to compare what it wrote, in a process of its own."""
    if not any(path.is_file() for path in Path().glob(".unproven-*/*")):
        return False
    return moment == "written" or bool(psutil.Process(pid).children())
