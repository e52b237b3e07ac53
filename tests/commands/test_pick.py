"""`settle pick` with real models in real children."""

import errno
import json
import os
import shutil
from dataclasses import replace

import pytest

from settle.base.errors import EngineError
from settle.cli import main
from settle.experiment.arm import ModelArm
from settle.formats.gguf import export_gguf
from settle.infer.engine import Engine
from settle.jobs.pick import candidates as candidates_module
from settle.jobs.pick import pick as pick_module
from settle.library.resolve import resolve_gguf
from tests.trained import adapter, merged

PROMPTS = (
    *("def __init__(self", "return self.", "for action in", "if not ", "raise ", "parser = ", "class ", "import "),
    *("while True", "with open(", "yield from", "except ValueError", "lambda value", "assert result"),
)


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Two models, and prompts whose wanted answers are those of the second."""
    folder = tmp_path_factory.mktemp("pick")
    lora = adapter(tiny.part, strength=0.3)
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "base.gguf", "f32", {"base": True})
    export_gguf(tiny.part, merged(tiny.weights, lora), tiny.tokenizer, folder / "tuned.gguf", "f32", {"base": True})
    with Engine(folder / "tuned.gguf", 64, threads=1) as engine:
        rows = [{"prompt": p, "completion": engine.answer(engine.plain(p), 6)[0]} for p in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bare.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No models of other programs."""
    monkeypatch.setattr(candidates_module, "neighbours", lambda: ())


def run(capsys, *args):
    code = main(["pick", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out.strip().startswith(("{", "[")) else {}, err


def both(files):
    return ("--models", files / "base.gguf", "--models", files / "tuned.gguf", "--context", 64, "--max-tokens", 6)


def test_the_better_model_is_picked_and_its_answers_are_kept(files, home, capsys, monkeypatch):
    given = ("code", "--prompts", files / "rows.jsonl", "--score", "exact", *both(files))
    code, result, err = run(capsys, *given)
    assert (code, result["chosen"], result["verdict"]) == (0, "tuned", "better"), err
    assert "would be seen" in err and "take tuned" in err
    by_name = {model["name"]: model for model in result["models"]}
    assert by_name["tuned"]["score"] == 1 > by_name["base"]["score"]
    taken, predicted = by_name["base"]["measured"], by_name["base"]["predicted"]
    assert taken["speed"]["median"] > 0 < taken["first_token"]["median"] and taken["peak_bytes"] > 1e6
    assert predicted["memory"]["low"] < predicted["memory"]["high"]
    folder = home / "picks" / "code"
    assert json.loads((folder / "result.json").read_text())["chosen"] == "tuned"
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert "Python opened no connection beyond this machine" in result["audit"]["sentence"]
    assert len(list((folder / "audit").iterdir())) == 1

    # the same again asks no model for an answer
    monkeypatch.setattr("settle.experiment.arm.FileModel.open", lambda *a, **k: pytest.fail("asked again"))
    monkeypatch.setattr("settle.jobs.pick.pick.in_turns", _measured_before(result))
    assert run(capsys, *given)[1]["chosen"] == "tuned"

    assert main(["pick", "--ledger"]) == 0
    assert "memory" in capsys.readouterr().out


def _measured_before(result):
    from settle.evaluate.footprint import Measured
    from settle.jobs.pick.exam import Taken

    def again(refs, one_round, on_progress):
        takens = [model["measured"] for model in result["models"]]
        return [Taken(**{k: Measured(**v) if isinstance(v, dict) else v for k, v in t.items()}) for t in takens]

    return again


def test_answers_are_kept_by_what_a_file_holds(files, tmp_path, home):
    copy = tmp_path / "copy.gguf"
    shutil.copy(files / "base.gguf", copy)
    key = ModelArm(resolve_gguf(files / "base.gguf"), 64, 6).key
    assert ModelArm(resolve_gguf(copy), 64, 6).key == key != ModelArm(resolve_gguf(copy), 64, 7).key
    with copy.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert ModelArm(resolve_gguf(copy), 64, 6).key != key


def test_without_wanted_answers_only_speed_is_known(files, home, capsys):
    code, result, err = run(capsys, "--prompts", files / "bare.jsonl", "--models", files / "base.gguf", "--context", 64)
    assert code == 3 and result["models"][0]["score"] is None and result["verdict"] == "not measured"
    assert result["chosen"] is None and "→" not in err
    assert "no right answers are given" in err


def test_a_stop_keeps_the_folder_and_one_that_fails_is_named(files, home, capsys, monkeypatch):
    whole = pick_module.text_round

    def fails(ref, cases, context):
        if ref.name == "base":
            raise EngineError("llama.cpp died with base loaded", "")
        return whole(ref, cases, context)

    given = ("--prompts", files / "rows.jsonl", *both(files), "--score", "exact")
    with monkeypatch.context() as patch:
        patch.setattr(pick_module, "text_round", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        code, _, err = run(capsys, *given)
    assert code == 130 and "the same command continues" in err
    begun = pick_module.PickFolder(home / "picks" / "pick")
    assert begun.status == "interrupted" and begun.has_begun and not (home / "picks" / "ledger.jsonl").exists()
    monkeypatch.setattr(pick_module, "text_round", fails)
    code, result, err = run(capsys, *given)
    assert code == 0 and [m["name"] for m in result["models"]] == ["tuned"]
    assert "base could not be measured: llama.cpp died" in err and "the only one" in result["why"]
    assert result["folder"] == str(begun.path) and begun.status == "finished"
    assert pick_module.PickFolder.of("another", pick_module.PickSettings(), None, "pick").name == "pick-2"


def test_a_disk_that_fills_up_during_a_download_loses_nothing(files, home, capsys, monkeypatch):
    def fetch(folder, events):
        (folder / "half.gguf").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "half.gguf"))

    real = candidates_module.find_offer
    monkeypatch.setattr(candidates_module, "find_offer", lambda name: replace(real(name), fetch=fetch))
    given = ("--prompts", files / "bare.jsonl", "--models", "smollm2", "--models", files / "base.gguf", "--yes")
    code, result, err = run(capsys, *given, "--context", 64)
    assert code == 3 and [model["name"] for model in result["models"]] == ["base"]
    assert "smollm2 is left out: it could not be downloaded" in err and "No space left" in err
    assert not [path for path in (home / "models").rglob("*") if path.is_file() and path.suffix == ".gguf"]


def test_one_that_fails_while_it_answers_is_named_and_left_out(files, home, capsys, monkeypatch):
    whole = ModelArm.measure_all

    def measure_all(arm, cases):
        if arm.name == "base":
            raise EngineError("llama.cpp died with base loaded", "")
        return whole(arm, cases)

    monkeypatch.setattr(ModelArm, "measure_all", measure_all)
    code, result, err = run(capsys, "--prompts", files / "rows.jsonl", *both(files), "--score", "exact")
    assert code == 0 and [m["name"] for m in result["models"]] == ["tuned"] and result["models"][0]["score"] == 1
    assert "base failed, and the others go on: llama.cpp died" in err and not result["pairs"]


def test_what_is_too_slow_is_left_out(files, home, capsys):
    code, result, err = run(capsys, "--prompts", files / "rows.jsonl", *both(files), "--speed", 1e9)
    assert code == 3 and result["chosen"] is None and "are asked for" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("chat",), "--prompts FILE"),
        (("--prompts", "nothing.jsonl"), "no file or folder"),
        (("--prompts", "odd.jsonl", "--models", "base.gguf"), "no layout that is known"),
        (("--prompts", "rows.jsonl", "--models", "nobody"), "no model 'nobody'"),
        (("--prompts", "rows.jsonl", "--models", "base.gguf", "--models", "./base.gguf"), "the same model"),
        (("--prompts", "rows.jsonl", "--models", "base.gguf", "--score", "nonsense"), "no score"),
        (("--prompts", "rows.jsonl", "--models", "base.gguf", "--context", "lots"), "not a count"),
        (("--prompts", "rows.jsonl", "--models", "base.gguf", "--context", "100k"), "was trained for"),
        (("--prompts", "rows.jsonl", "--models", "smollm2"), "--yes downloads it"),
        (("--prompts", "rows.jsonl"), "no model is left"),
        (("--prompts", "rows.jsonl", "--yes", "--models", "minilm"), "turns texts into vectors"),
    ],
)
def test_what_cannot_be_picked_from(args, says, files, home, capsys, monkeypatch):
    monkeypatch.chdir(files)
    (files / "odd.jsonl").write_text('{"colour": "red"}\n')
    assert main(["pick", *args]) in (1, 2)
    assert says in capsys.readouterr().err
