"""`settle distill` with a tiny teacher: students that are really made and taught, and that llama.cpp really loads."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from settle.base.run import Run
from settle.cli import main
from settle.data.tokenizer.byte_bpe import ByteBpeTokenizer
from settle.evaluate import speculative
from settle.evaluate.compare.verdict_file import VerdictFile
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.safetensors import export_safetensors, read_safetensors
from settle.infer.child_process import Draft
from settle.infer.engine import Engine
from settle.jobs import distill as distill_job
from settle.model.pretrained import Pretrained

QUICK = ["--dtype", "float32", "--threads", "1", "--batch-rows", "8", "--rows.held-out", "0.4"]


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """The teacher as GGUF (f32 and q8_0) and as a folder, a smaller model with its tokenizer, one with another; rows
    and text."""
    folder = tmp_path_factory.mktemp("distill")
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "teacher.gguf", "f32", {})
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "small.gguf", "q8_0", {})
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder / "hf", "f32", {})
    small = tiny.part.model_copy(update={"hidden_size": 32, "intermediate_size": 64})
    weights = {name: p.detach() for name, p in small.build(3).named_parameters()}
    export_safetensors(small, weights, tiny.tokenizer, folder / "smaller", "f32", {})
    other = ByteBpeTokenizer.train([" ".join(map(str, range(3000)))], 512, folder / "tokenizer")
    assert other.vocab_size <= tiny.tokenizer.vocab_size
    strange = tiny.part.model_copy(update={"vocab_size": other.vocab_size})
    weights = {name: p.detach() for name, p in strange.build(3).named_parameters()}
    export_safetensors(strange, weights, other, folder / "strange", "f32", {})
    asked = [{"prompt": f"def f{i}(self):", "completion": f"return self.red({i % 7})"} for i in range(60)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = tiny.held_out[0].split("\n\n")
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": w}) + "\n" for w in words if len(w) > 40))
    (folder / "shorter.toml").write_text("num_hidden_layers = 1\n")
    (folder / "narrow.toml").write_text("hidden_size = 32\nnum_hidden_layers = 3\n")
    (folder / "wrong.toml").write_text("num_hiden_layers = 1\n")
    return folder


def distill(capsys, *args: Any) -> tuple[int, dict[str, Any], str]:
    code = main(["distill", *map(str, args), *QUICK, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


def test_a_pruned_teacher_is_healed_and_handed_over(files, home, capsys):
    given = ("--drop-layers", "1", "--name", "t", "--epochs", "8")
    code, result, err = distill(capsys, files / "hf", files / "text.jsonl", *given)
    assert code == 0, err
    run, comparison = Run.find("t"), result["comparison"]
    assert comparison["verdict"] == "better" and comparison["after"]["kl"] < 0.8 * comparison["before"]["kl"]
    assert comparison["after"]["loss"] < comparison["before"]["loss"] and 0 < comparison["recovered"] <= 1.2
    assert result["gate"]["passed"] and [check["passed"] for check in result["proof"]] == [True] * 9
    made = Pretrained.open(run.out / "t.gguf")
    assert made.part.num_hidden_layers == 1 and result["student"]["name"] == "hf-1x64"
    assert result["student"]["made"][0]["pruner"] == "depth"
    card = (run.out / "card.md").read_text()
    assert "Against its teacher" in card and "of the gap to the teacher's loss" in card
    assert main(["chat", "t", "def f(", "--temperature", "0", "--max-tokens", "4"]) == 0
    kept = VerdictFile.read(Path(result["files"]["verdict"]))
    assert kept.passes and kept.score.tuned == pytest.approx(-comparison["after"]["kl"], rel=0.1)
    assert sorted([-kept.score.high, -kept.score.low]) == pytest.approx(comparison["kl_change"])
    capsys.readouterr()
    assert main(["eval", "t", "--verify"]) == 0 and "verdict.json holds" in capsys.readouterr().err
    values = json.loads((run.out / "verdict.json").read_text())
    values["rows"]["tuned"][0] += 1.0
    (run.out / "verdict.json").write_text(json.dumps(values))
    assert main(["eval", "t", "--verify"]) == 1 and "rows do not give its tuned" in capsys.readouterr().err


def further(*case: Any) -> Any:
    """Each part of such a case is in another one."""
    return pytest.param(*case, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("teacher", "rows", "settings", "layers"),
    [
        ("teacher.gguf", "rows", ["--into", "shorter.toml"], 1),
        ("hf", "rows", ["--into", "narrow.toml", "--fresh"], 3),
        ("hf", "rows", ["--width", "0.5"], 2),
        further("hf", "text", ["--student", "smaller", "--optimizer.lr", "0.003"], 2),
        ("small.gguf", "rows", ["--student", "smaller", "--cache", "--optimizer.lr", "0.003"], 2),
        further("hf", "text", ["--drop-layers", "1", "--cache", "--objective.kind", "js"], 1),
        ("hf", "rows", ["--drop-layers", "1", "--objective.kind", "reverse", "--objective.temperature", "2"], 1),
        ("hf", "text", ["--drop-layers", "1", "--objective.hidden", "1", "--objective.text", "0.3"], 1),
        further("hf", "rows", ["--drop-layers", "1", "--objective.on-policy", "0.5"], 1),
        ("hf", "rows", ["--drop-layers", "1", "--answers", "--answer-tokens", "12"], 1),
        ("hf", "rows", ["--student", "smaller", "--adapter", "lora", "--adapter.rank", "4"], 2),
    ],
    ids=["into", "fresh", "width", "student", "cached", "js", "reverse", "hidden", "on-policy", "answers", "lora"],
)
def test_ways(files, home, capsys, teacher, rows, settings, layers):
    known = {path.name: str(path) for path in files.iterdir()}
    given = [known.get(token, token) for token in settings]
    code, result, err = distill(
        capsys, files / teacher, files / f"{rows}.jsonl", *given, "--name", "t", "--steps", "12"
    )
    assert code in (0, 3), err
    run = Run.find("t")
    assert result["gate"]["passed"] and not (run.path / "teacher").exists()
    if "lora" not in settings:
        assert code == 0, result["comparison"]
        assert Pretrained.open(run.out / "t.gguf").part.num_hidden_layers == layers
        assert result["comparison"]["after"]["kl"] < result["comparison"]["before"]["kl"]
    assert result["comparison"]["teacher"]["loss"] > 0


def test_a_draft_is_made_and_the_pair_measured(files, home, capsys):
    given = ("--draft", "--name", "d", "--steps", "20", "--answer-tokens", "24", "--compare-rows", "4")
    code, result, err = distill(capsys, files / "teacher.gguf", files / "rows.jsonl", *given)
    assert code == 0, err
    pair, run = result["pair"], Run.find("d")
    assert pair["identical"] == pair["prompts"] == 4
    # The way was chosen by the clock, and the surest one may propose nothing.
    assert pair["accepted"] is None or 0 <= pair["accepted"] <= 1
    assert pair["speed_up"] > 0 and {way["sure"] for way in pair["searched"]} > {0.0, 0.5}
    assert read_gguf(run.out / "d-draft.gguf").tensors["blk.0.ffn_up.weight"].dtype == "Q8_0"
    assert "with its draft" in (run.out / "card.md").read_text()
    with (
        Engine(files / "teacher.gguf", threads=1) as alone,
        Engine(files / "teacher.gguf", threads=1, draft=Draft(run.out / "d-draft.gguf", 3, 0.0)) as pairs,
    ):
        prompt = alone.plain("def f(self):\n    return")
        one, other = alone.timed(prompt, 32), pairs.timed(prompt, 32)
    assert one.ids == other.ids and one.drafted == 0 < other.accepted <= other.drafted


def test_a_time_budget_bounds_answers_record_and_draft(files, home, capsys, monkeypatch):
    """Each of them does what the time has room for, and says so; here there is room for none of them."""
    for where, name in (
        (distill_job, "ANSWERS_SHARE"), (distill_job, "RECORD_SHARE"),
        (speculative, "ALONE_SHARE"), (speculative, "SEARCH_SHARE"),
    ):  # fmt: skip
        monkeypatch.setattr(where, name, 0.0)
    given = ("--draft", "--cache", "--name", "d", "--steps", "10", "--time", "10m", "--answer-tokens", "12")
    code, result, err = distill(capsys, files / "teacher.gguf", files / "rows.jsonl", *given)
    assert code in (0, 3), err
    answered = re.findall(r"the time had room for the teacher's answers to 8 of (\d+) questions", err)
    assert answered and int(answered[0]) > 8
    assert "it is asked anew in every step instead" in err and not (Run.find("d").path / "teacher").exists()
    assert result["pair"]["prompts"] == 2 and len(result["pair"]["searched"]) == 1
    assert "the time had room for 2 of" in err
    kept = sorted(path.name for path in (home / "tokens").glob("answers-*/*"))
    assert kept[-1] == "train-8.jsonl"  # and is not taken for a whole one by the next run


def start(home: Path, *command: Any) -> subprocess.Popen[bytes]:
    given = [sys.executable, "-m", "settle", *map(str, command)]
    env = os.environ | {"SETTLE_HOME": str(home)}
    return subprocess.Popen(given, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
def test_resumes_to_the_bit(files, tmp_path, monkeypatch):
    """Also where the student's own words are drawn."""
    words = ["distill", files / "hf", files / "rows.jsonl", "--drop-layers", "1", "--name", "r", "--steps", "8"]
    words += ["--objective.on-policy", "0.4", *QUICK]
    ends = []
    for stopped in (False, True):
        own = tmp_path / f"home-{stopped}"
        own.mkdir()
        monkeypatch.setenv("SETTLE_HOME", str(own))
        if stopped:
            process = start(own, *words)
            while process.poll() is None and not any(
                '"step": 5' in p.read_text() for p in own.glob("runs/*/events.jsonl")
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert main(["resume", "r"] if stopped else [str(word) for word in words]) in (0, 3)
        run = next(own.glob("runs/*"))
        assert not stopped or '"resumed"' in (run / "events.jsonl").read_text()
        ends.append((run / "out" / "hf" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("rows", "settings", "what"),
    [
        ("rows", [], "there is no student"),
        ("rows", ["--drop-layers", "1", "--student", "smaller"], "each name a student"),
        ("rows", ["--drop-layers", "2"], "of 2 blocks cannot go"),
        ("rows", ["--student", "strange"], "hf has another tokenizer than strange: token"),
        ("rows", ["--student", "hf"], "is its own teacher"),
        ("rows", ["--student", "small.gguf"], "student and teacher already agree"),
        ("rows", ["--into", "wrong.toml"], "did you mean 'num_hidden_layers'"),
        ("rows", ["--into", "narrow.toml"], "num_hidden_layers = 3 cannot be reached"),
        ("rows", ["--fresh", "--drop-layers", "1"], "--fresh needs a shape"),
        ("text", ["--drop-layers", "1", "--answers"], "plain text has no prompts"),
        ("rows", ["--drop-layers", "1", "--objective", "next_token"], "--objective has no choice 'next_token'"),
        ("rows", ["--drop-layers", "1", "--cache", "--objective.on-policy", "1"], "on-policy needs a teacher"),
        ("rows", ["--student", "smaller", "--objective.hidden", "1"], "layers of width 32 cannot be held against"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(files, home, capsys, rows, settings, what):
    known = {path.name: str(path) for path in files.iterdir()}
    given = [known.get(token, token) for token in settings]
    code, _, err = distill(capsys, files / "hf", files / f"{rows}.jsonl", *given)
    assert code in (1, 2) and what in err and "Traceback" not in err
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def test_a_teacher_that_was_changed_is_refused(files, home, capsys, tiny, tmp_path):
    teacher = tmp_path / "teacher.gguf"
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, teacher, "f32", {})
    given = ("--drop-layers", "1", "--name", "r", "--steps", "2", "--keep-checkpoints")
    assert distill(capsys, teacher, files / "rows.jsonl", *given)[0] in (0, 3)
    (Run.find("r").path / "result.json").unlink()
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, teacher, "f16", {})
    assert main(["resume", "r"]) == 1
    assert "is not the teacher that the run began with" in capsys.readouterr().err


def test_tuning_may_name_a_teacher(files, home, capsys):
    """The objective is one of tune's too."""
    given = ["--objective", "distill", "--objective.teacher", files / "hf", "--adapter", "full", "--name", "t"]
    rest = ["--steps", "10", "--no-compare", "--optimizer.lr", "0.003", *QUICK]
    assert main(["tune", str(files / "smaller"), str(files / "rows.jsonl"), *map(str, given), *rest]) == 0
    assert main(["tune", str(files / "smaller"), str(files / "rows.jsonl"), "--objective", "distill", *QUICK]) == 2
    assert "distillation needs a teacher" in capsys.readouterr().err


def test_dry_makes_nothing(files, home, capsys):
    code, result, err = distill(capsys, files / "hf", files / "text.jsonl", "--drop-layers", "1", "--dry")
    assert code == 0 and not list((home / "runs").iterdir()), err
    assert result["plan"]["objective"] == "distill" and result["plan"]["tuning"]["adapter_name"] == "full"


def test_weights_of_the_student_are_the_teachers_at_first(files, home, capsys):
    given = ("--drop-layers", "1", "--name", "t", "--steps", "2", "--keep-checkpoints")
    code, result, _ = distill(capsys, files / "hf", files / "rows.jsonl", *given)
    assert code in (0, 3)
    student = next((Run.find("t").path / "student").glob("*/model.safetensors")).parent
    ours, theirs = read_safetensors(student).tensors, read_safetensors(files / "hf").tensors
    assert (ours["model.embed_tokens.weight"].load() == theirs["model.embed_tokens.weight"].load()).all()
    assert dataclasses.is_dataclass(ours["model.norm.weight"]) and result["student"]["name"] == student.name
