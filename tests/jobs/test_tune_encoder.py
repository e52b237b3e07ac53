"""A run that tunes an encoder: stopped and resumed, refused where it must be, and checked by its own gate and proof."""

import json
import os
import random
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from settle.base.errors import FormatError, GateError, ProofError, RunError, UsageError
from settle.base.event_log import Events
from settle.base.run import Run
from settle.base.settings import resolve
from settle.data.batches import Batch
from settle.jobs import tune_encoder
from settle.jobs.job import Context, find_job, resume, start
from settle.jobs.settings import TuneSettings
from settle.library.pull.encoder_gguf import encoder_to_gguf
from settle.model.encoder_folder import EncoderFolder
from tests.bert import tiny_bert
from tests.encoders import tiny_encoder
from tests.records import into

STEPS = 24


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    encoder_to_gguf(tiny_bert(folder / "hf"), folder / "tiny.gguf", "tiny", "mit")
    draw = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pairs = [(a, b, label) for a in letters[:13] for b in letters[13:] for label in (0, 1)]
    rows = [
        {"question": f"{a} {b}", "passage": f"{a} {b} {draw.randint(0, 9)}" if label else f"{b} {a}", "label": label}
        for a, b, label in pairs
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tune(files: Path, objective: str, on_event: Any = None, **more: Any) -> Context:
    asked = {
        "model": str(files / "tiny.gguf"), "inputs": [str(files / "pairs.jsonl")], "objective": objective, "name": "r",
        "batch_rows": 8, "threads": 1, "rows": {"held_out": 0.3}, "steps": STEPS, **more,
    }  # fmt: skip
    events = Events(listeners=[on_event] if on_event else [])
    try:
        return start(find_job("tune_encoder"), resolve(TuneSettings, [("asked", asked)]).value, events)
    finally:
        events.close()


def resumed(on_event: Any = None) -> int:
    events = Events(listeners=[on_event] if on_event else [])
    try:
        return resume("r", events)
    finally:
        events.close()


def stop_at(kind: str) -> Any:
    """A Ctrl-C at the first event of that kind."""
    done: list[object] = []

    def on_event(event: Any) -> None:
        if event.kind == kind and not done:
            done.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    return on_event


def made(home: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    run = Run.find("r")
    result = json.loads((run.path / "result.json").read_text())
    return result, {p.name: p.read_bytes() for p in run.out.iterdir() if p.suffix in (".gguf", ".safetensors")}


@pytest.mark.parametrize(
    ("objective", "lr"), [pytest.param("rank", 5e-4, marks=pytest.mark.exhaustive), ("contrastive", 1e-3)]
)
def test_a_stopped_run_ends_byte_for_byte_as_one_that_was_not(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str, lr: float
) -> None:
    rate = {"optimizer": {"name": "adamw", "lr": lr}}
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "whole"))
    code = tune(files, objective, **rate).exit_code
    assert code in (0, 3)
    whole, weights = made(tmp_path / "whole")
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "stopped"))
    assert tune(files, objective, stop_at("checkpoint"), **rate).exit_code == 130
    stopped = Run.find("r")
    saved = [json.loads(p.read_text())["step"] for p in stopped.checkpoints.glob("*/state.json")]
    assert not (stopped.path / "result.json").exists() and 0 < max(saved) < STEPS
    heard: list[Any] = []
    assert resumed(into(heard)) == code
    again, ended = made(tmp_path / "stopped")
    assert ended == weights and len(weights) == 1
    for key in ("best", "verdict", "gate", "comparison", "proof"):
        assert again[key] == whole[key], key
    assert again["actual"]["tokens"] == whole["actual"]["tokens"] and again["actual"]["time"] > 0
    assert not list(stopped.checkpoints.glob("*")) and any(event["kind"] == "result" for event in heard)
    assert resumed() == 0  # finished: nothing changes
    assert made(tmp_path / "stopped")[1] == weights


@pytest.mark.parametrize(
    ("objective", "case", "folder"),
    [("contrastive", "xlm-roberta", "encoder"), ("rank", "deberta-v3", "reranker")],
)
def test_a_folder_is_trained_and_written_as_one(
    files: Path, home: Path, tmp_path: Path, objective: str, case: str, folder: str
) -> None:
    base = tiny_encoder(tmp_path / "base", case, spread=0.05)
    tune(files, objective, model=str(base), optimizer={"name": "adamw", "lr": 1e-3})
    run = Run.find("r")
    result = json.loads((run.path / "result.json").read_text())
    assert result.get("gate"), result["why"]
    assert result["gate"]["passed"] and result["files"][folder] == str(run.out / folder)
    assert [check["check"] for check in result["proof"]] == ["packing", "definition", "descent"]
    made = EncoderFolder.open(run.out / folder)
    assert made.use == ("rerank" if objective == "rank" else "embed")
    before, after = EncoderFolder.open(base).encoder().state_dict(), made.encoder().state_dict()
    assert any((before[name] - after[name]).abs().max() > 1e-3 for name in before)


def test_a_folder_that_cannot_be_trained_so_is_refused(files: Path, home: Path, tmp_path: Path) -> None:
    head = tiny_encoder(tmp_path / "head", "bert", "ForSequenceClassification")
    with pytest.raises(UsageError, match="has a head for labels"):
        tune(files, "contrastive", model=str(head))
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FormatError, match="no encoder that is known here"):
        tune(files, "contrastive", model=str(tmp_path / "llama"))


def test_a_ctrl_c_before_the_first_step_leaves_nothing(files: Path, home: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(files, "rank", stop_at("plan"))
    assert not list(home.glob("runs/*"))


def test_a_run_goes_on_only_with_the_pairs_that_it_began_with(files: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "pairs.jsonl"
    lines = (files / "pairs.jsonl").read_text()
    other.write_text(lines)
    assert tune(files, "rank", stop_at("checkpoint"), inputs=[str(other)]).exit_code == 130
    other.write_text(lines.replace('"question": "a', '"question": "b', 9))
    with pytest.raises(RunError, match="the data has changed since the run began"):
        resumed()
    other.write_text(lines)
    assert resumed() in (0, 3)


@pytest.mark.parametrize("objective", ["rank", "contrastive"])
def test_a_file_that_scores_otherwise_is_not_left_behind(
    files: Path, home: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """What is read from the file is compared with what was trained, and refused by more than rounding."""
    gate = tune_encoder._gate

    def off(trained: np.ndarray, read: np.ndarray, path: Path) -> dict[str, object]:
        assert len(trained) == len(read) > 0 and np.abs(trained - read).max() < tune_encoder.ROUNDED_APART
        return gate(trained, trained + 1.5 * tune_encoder.ROUNDED_APART, path)

    monkeypatch.setattr(tune_encoder, "_gate", off)
    with pytest.raises(GateError, match="scores pairs 0.030 away from the trained model"):
        tune(files, objective, steps=2)
    assert not [p for p in Run.find("r").out.iterdir() if p.suffix in (".gguf", ".safetensors")]


@pytest.mark.parametrize(("apart", "passes"), [(0.9, True), (1.1, False), (float("nan"), False)])
def test_the_bar_of_the_gate(tmp_path: Path, apart: float, passes: bool) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"")
    trained, read = np.zeros(3), np.array([0.0, apart * tune_encoder.ROUNDED_APART, 0.0])
    if passes:
        assert tune_encoder._gate(trained, read, path) == {
            "passed": True, "largest_difference": pytest.approx(0.018), "bar": tune_encoder.ROUNDED_APART,
        }  # fmt: skip
    else:
        with pytest.raises(GateError):
            tune_encoder._gate(trained, read, path)
    assert path.exists() == passes


def context(**more: Any) -> Any:
    return cast(Any, SimpleNamespace(record=None, **more))


@pytest.mark.parametrize(("apart", "passes"), [(0.9, True), (1.1, False)])
def test_a_score_that_hangs_on_its_batch_is_refused(
    monkeypatch: pytest.MonkeyPatch, apart: float, passes: bool
) -> None:
    """Scored together, and each alone; the second pair moves."""
    seen: list[list[list[int]]] = []

    def scores(model: Any, batches: Any) -> np.ndarray:
        seen.append([batch.inputs.tolist() for batch in batches])
        return np.array([1.0, 2.0]) if len(batches) == 1 else np.array([1.0, 2.0 - apart * tune_encoder.APART])

    monkeypatch.setattr(tune_encoder, "pair_scores", scores)
    ids = np.arange(9)
    batch = Batch(ids, ids, np.array([0, 2, 5, 6, 9], np.int32), ids)
    if passes:
        found = tune_encoder._proves_packing(context(model=None), batch)
        assert found["check"] == "packing" and found["error"] == pytest.approx(0.9 * tune_encoder.APART)
    else:
        with pytest.raises(ProofError, match="moves by 1.1e-03 with the pairs beside it"):
            tune_encoder._proves_packing(context(model=None), batch)
    assert seen == [[ids.tolist()], [[0, 1, 2, 3, 4], [5, 6, 7, 8]]]


def test_one_pair_of_a_batch_keeps_its_segments() -> None:
    ids = np.arange(9)
    pair = tune_encoder._one(Batch(ids, -ids, np.array([0, 2, 5, 6, 9], np.int32), ids + 1), 5, 9)
    assert pair.inputs.tolist() == [5, 6, 7, 8] and pair.targets.tolist() == [-5, -6, -7, -8]
    assert pair.cu_seqlens.tolist() == [0, 1, 4] and pair.positions.tolist() == [6, 7, 8, 9]


def planned(files: Path, home: Path, **asked: Any) -> dict[str, Any]:
    """The plan of a run that is only to show it."""
    heard: list[Any] = []
    assert tune(files, "rank", into(heard), dry=True, **asked).exit_code == 0
    assert not list(home.glob("runs/*"))
    result = next(event for event in heard if event["kind"] == "result")["result"]["plan"]
    return cast(dict[str, Any], result)


def test_a_plan_says_its_steps_and_tokens(files: Path, home: Path) -> None:
    whole = planned(files, home, steps=None)
    assert whole["steps"] is None and whole["batch_tokens"] > 8 * 6 and whole["model"] == "tiny"
    assert whole["objective"]["name"] == "rank" and whole["optimizer"]["lr"] == whole["optimizer"]["table_lr"] == 5e-4
    twice = planned(files, home, steps=None, epochs=2.0, batch_rows=16)
    once = planned(files, home, steps=None, epochs=1.0, batch_rows=16)
    assert abs(twice["steps"] - 2 * once["steps"]) <= 1 and once["steps"] in range(10, 18)
    tokens = planned(files, home, steps=40, tokens=str(10 * whole["batch_tokens"]))
    assert tokens["steps"] == 10  # the tighter of the two limits


def test_a_plan_without_an_end_is_made_for_the_usual_passes() -> None:
    train = SimpleNamespace(num_inputs=24_000, num_rows=800, lengths=np.array([30, 41]))
    asked = TuneSettings(model="m", inputs=["x"], batch_rows=8)
    context = SimpleNamespace(
        settings=asked, corpus=SimpleNamespace(train=train), objective_name="rank", source=SimpleNamespace(name="m"),
        hf=None,
        origin={}, events=Events(), plan=None, objective=None, optimizer=None,
    )  # fmt: skip
    tune_encoder.plan(cast(Any, context))
    expected = tune_encoder.EPOCHS * 100
    assert context.plan.warmup_steps == expected // 25 and context.plan.max_steps is None
