"""An adapter over the wrong base, and one that was lost in the export: found in a run that learned, and proven."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from settle.base.event_log import Events
from settle.base.files import read_json, write_json
from settle.doctor.checks import Check
from settle.doctor.doctor import examine
from settle.doctor.subject import ModelFile, TrainingRun
from settle.experiment.run import prove
from settle.formats import map_file
from settle.formats.gguf import write_edited
from settle.formats.gguf.header import read_header
from settle.formats.peft import export_peft
from settle.library.pretrained import open_pretrained
from settle.model.load_adapter import adapter_of_gguf
from tests.doctor.chat_model import healthy
from tests.doctor.example_run import example_rows, example_run

CHECK = Check.parts()["did_nothing"]()


@pytest.fixture
def tuned(home, tmp_path):
    """Return a copy of a run that tuned the chat model."""
    subject = healthy(TrainingRun)
    run = type(subject.run)(Path(shutil.copytree(subject.run.path, tmp_path / subject.run.path.name)))
    return replace(subject, run=run, name=str(run.path))


def found(subject, folder):
    (finding,) = examine(subject, Events(), ["did_nothing"]).findings
    trial = CHECK.trial(finding, subject, folder)
    return finding, trial and prove(trial, folder / "measurements.jsonl", Events())


def rewire(run, base):
    """Put the run's adapter over another file."""
    record = read_json(run.out / "models.json")
    for model in record["models"]:
        model["base"] = str(base)
    write_json(run.out / "models.json", record)


@pytest.mark.slow
def test_an_adapter_over_another_base(tuned, tmp_path):
    base = tuned.model.base.weights
    other = tmp_path / "models" / "other.gguf"
    other.parent.mkdir()
    shutil.copyfile(base, other)
    header = read_header(map_file(base), base.name)
    with other.open("r+b") as file:  # another model of the same kind: one matrix is upside down
        tensor = next(t for t in header.tensors if t.name == "blk.0.ffn_down.weight")
        file.seek(tensor.start)
        rows = np.frombuffer(file.read(tensor.num_bytes), np.uint8).reshape(tensor.shape[0], -1)
        file.seek(tensor.start)
        file.write(rows[::-1].tobytes())
    rewire(tuned.run, other)
    finding, proof = found(tuned, tmp_path)
    assert finding.details.cause == "base" and proof is None, "its own base is nowhere"
    shutil.copyfile(base, other.with_name("own.gguf"))
    finding, proof = found(tuned, tmp_path)
    assert finding.details.other == str(other.with_name("own.gguf"))
    assert proof.state == "proven" and proof.verified
    assert CHECK.fix(finding, tuned).command.endswith(f"--base {other.with_name('own.gguf')}")


def test_a_base_that_computes_the_same_is_right(tuned, tmp_path):
    rewire(tuned.run, write_edited(tuned.model.base.weights, tmp_path / "edited.gguf", {"general.name": "other"}))
    assert not list(CHECK.detect(tuned))


@pytest.mark.slow
def test_an_adapter_that_was_lost_in_the_export(tuned, tmp_path):
    base = open_pretrained(str(tuned.model.base.weights))
    (lora,) = tuned.run.out.glob("*-lora.gguf")
    kept = adapter_of_gguf(lora, base.part)
    with lora.open("r+b") as file:
        for tensor in read_header(map_file(lora), lora.name).tensors:
            if tensor.name.endswith(".lora_b"):
                file.seek(tensor.start)
                file.write(bytes(tensor.num_bytes))
    finding, proof = found(tuned, tmp_path)
    assert finding.details.cause == "export" and "training loss fell" in " ".join(finding.evidence)
    assert proof is None, "the run keeps no other weights"
    export_peft(base.part, replace(kept, base_sha256=base.source.sha256), tuned.run.out / "adapter")
    _, proof = found(tuned, tmp_path)
    assert proof.state == "proven" and proof.verified
    assert "settle export" in CHECK.fix(finding, tuned).command


def thanked(mark=None):
    """Return the example rows as conversations that end in thanks. mark: put into the first answer."""
    thanks = [{"role": "user", "content": "Thank you."}, {"role": "assistant", "content": "You are welcome."}]
    return [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["completion"], **(mark or {})},
                *thanks,
            ]
        }
        for row in example_rows()
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "mark"), [({"rows": {"supervise": "last-turn"}}, None), ({}, {"weight": 0})], ids=["setting", "rows"]
)
def test_answers_that_were_left_out(home, tmp_path, settings, mark):
    gently = {"optimizer": {"name": "adamw", "lr": 1e-3}, **settings}
    subject = example_run(healthy(ModelFile), tmp_path / "run", gently, rows=thanked(mark))
    finding, proof = found(subject, tmp_path)
    assert finding.details.cause == "mask" and finding.details.marked == bool(mark)
    assert (proof.state, proof.verified) == ("proven", True), proof.to_json()
    assert CHECK.fix(finding, subject).command


@pytest.mark.slow
def test_answers_that_were_learned_are_not_missed(home, tmp_path):
    gently = {"optimizer": {"name": "adamw", "lr": 1e-3}}
    assert not list(CHECK.detect(example_run(healthy(ModelFile), tmp_path / "run", gently, rows=thanked())))
