"""A run's history in the files of other programs, read by readers that did not write them."""

import json
import os
import struct
import subprocess
import sys

import pytest

from settle.base import events as kinds
from settle.base.run import Run
from settle.cli import main
from settle.jobs.exporters import Exporter, history
from settle.jobs.exporters.tensorboard import _checksum, scalars
from settle.model.architectures.llama import Llama
from tests.studio.made_runs import FINISHED, training, write_run


def test_what_a_run_went_back_over_is_in_no_history(home):
    figures = kinds.Step | kinds.Eval | kinds.Usage
    again = [event for event in training(20) if isinstance(event, figures) and event.step >= 15]
    folder = write_run(home, "calm", [*training(20), *again])
    moments = list(history(Run(folder)))
    steps = {kind: [m.step for m in moments if m.kind == kind] for kind in ("step", "usage", "eval")}
    assert steps == {"step": list(range(1, 21)), "usage": [1, 5, 9, 13, 17], "eval": [0, 10, 20]}
    assert moments[-1].figures["eval/bits_per_byte"] == pytest.approx(moments[-1].figures["eval/loss"] / 2.5)


def test_tensorboard_reads_every_figure(home, tmp_path, capsys):
    folder = write_run(home, "calm", training(30, spike=7))
    assert main(["runs", "export", "calm", "--to", "tensorboard", "--out", str(tmp_path / "tb")]) == 0
    (path,) = (tmp_path / "tb" / "calm").glob("events.out.tfevents.*")
    assert str(path.parent) in capsys.readouterr().out.replace("\n", "")
    found = {(s.tag, s.step): s.value for s in scalars(path)}
    wanted = {(tag, m.step): value for m in history(Run(folder)) for tag, value in m.figures.items()}
    assert found == {key: pytest.approx(value, rel=1e-6) for key, value in wanted.items()}
    assert found["train/loss", 7] == pytest.approx(9.9)
    assert found["usage/memory_gb", 29] == pytest.approx(0.300029) and found["usage/watts", 29] == pytest.approx(7.5)


def test_a_power_that_is_not_known_is_no_figure(home):
    usage = kinds.Usage(step=3, tokens=3000, memory=2_000_000_000)
    (moment,) = history(Run(write_run(home, "calm", [usage])))
    assert moment.figures == {"tokens": 3000.0, "usage/memory_gb": 2.0}


def test_the_checksums_are_those_of_the_format():
    """The check value of CRC-32C, masked as in record_writer.h."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert _checksum(b"123456789") == struct.pack("<I", masked)


def test_tensorboards_own_reader_agrees(home, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    place = Exporter.make("tensorboard", {}).write(Run(write_run(home, "calm", training(30))), tmp_path)
    read = accumulator.EventAccumulator(str(place)).Reload()
    assert [e.step for e in read.Scalars("train/loss")] == list(range(1, 31))


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_library_writes_its_own_files_without_a_network(name, home, tmp_path):
    """In a process of its own that has none."""
    pytest.importorskip(name, reason=f"needs {name}")
    write_run(home, "calm", training(30))
    command = [sys.executable, "-m", "settle", "runs", "export", "calm", "--to", name, "--out", str(tmp_path / "out"),
               "--offline"]  # fmt: skip
    for _ in range(2):  # exported again, it is still one run
        done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=120)
        if "cannot be proved" in done.stderr:
            pytest.skip("a process without a network cannot be had here")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split()[:3] == ["run", "history", "calm"]  # the library's own talk is not the answer
    assert any(path.stat().st_size > 1000 for path in (tmp_path / "out").rglob("*") if path.is_file())
    if name == "trackio":
        script = "import trackio; print(*[run.name for run in trackio.Api().runs('settle')])"
        own = os.environ | {"TRACKIO_DIR": str(tmp_path / "out")}
        read = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own, timeout=120)
        assert read.stdout.split() == ["calm"]
    else:
        assert len({path.name.split("-", 3)[-1] for path in (tmp_path / "out").glob("wandb/offline-run-*")}) == 1


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_a_missing_library_is_named(name, home, tmp_path, monkeypatch, capsys):
    write_run(home, "calm", training(3))
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["runs", "export", "calm", "--to", name, "--out", str(tmp_path)]) == 2
    assert f"pip install {name}" in capsys.readouterr().err


def test_a_technical_file_says_what_was_measured_and_what_is_left_to_a_person(home, tmp_path, capsys):
    shape = Llama(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    tuning = {"base_name": "smol", "base_sha256": "ab", "adapter_name": "lora"}
    plan = {
        "architecture_name": "llama", "architecture": shape.model_dump(), "corpus": "gone", "tuning": tuning,
        "machine": {"processor": "some"}, "why": {"dtype": "a | b\nmeasured"},
    }  # fmt: skip
    proof = [{"check": "first loss", "passed": True, "detail": "7.6 nats"}, {"check": "gradient", "passed": False}]
    ended = {**FINISHED, "proof": proof, "actual": {"tokens": 2000, "time": 60.0, "energy": 7200.0}}
    write_run(home, "calm", training(20), ended, plan=plan)
    assert main(["runs", "export", "calm", "--to", "technical-file", "--out", str(tmp_path)]) == 0
    text = (tmp_path / "calm-technical.md").read_text()
    record = json.loads((tmp_path / "calm-technical.json").read_text())
    assert record["compute"]["operations"] == 6 * shape.num_parameters * 2000 and record["plan"] == plan
    assert "operations: 6 per parameter" in text and "| dtype | a \\| b measured |" in text
    assert "- passed: first loss (7.6 nats)" in text and "- **failed**: gradient" in text
    assert "the prepared text was removed" in text and "no comparison was made" in text
    assert text.count("- [ ] ") == len(record["for_a_person"])

    write_run(home, "begun", training(20), plan=plan)
    assert main(["runs", "export", "begun", "--to", "technical-file", "--out", str(tmp_path)]) != 0
    assert "`settle resume begun`" in capsys.readouterr().err
