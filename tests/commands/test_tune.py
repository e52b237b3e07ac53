"""`settle tune` with a tiny model that is really tuned, whose files llama.cpp really loads."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import settle
from settle.base.chat_template import default_system
from settle.base.errors import SettleError, UsageError
from settle.base.files import write_json
from settle.base.run import Run
from settle.cli import main
from settle.data.tokenizer.pretrained import PretrainedTokenizer
from settle.formats.gguf import export_gguf, read_gguf
from settle.formats.lora_gguf import read_lora
from settle.formats.safetensors import export_safetensors, read_safetensors
from settle.infer.engine import Engine
from settle.jobs.tune import _judged_before
from settle.library.resolve import resolve_gguf
from settle.model.load_adapter import open_adapter
from settle.model.pretrained import Pretrained

QUICK = [
    "--dtype", "float32", "--threads", "1", "--rates.lr", "0.01", "--adapter.rank", "4", "--batch-rows", "8",
    "--rows.held-out", "0.2",
]  # fmt: skip


BETTER, WORSE = "return self.red(7)", "return self.blue(1)"


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """Bases: with a chat template as GGUF (f32 and q8_0) and as a folder, and one without a template; and rows."""
    folder = tmp_path_factory.mktemp("tune")
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "base.gguf", "f32", {})
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "small.gguf", "q8_0", {})
    export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, folder / "hf", "f32", {})
    metadata = {k: v for k, v in read_gguf(folder / "base.gguf").metadata.items() if "chat_template" not in k}
    export_gguf(tiny.part, tiny.weights, PretrainedTokenizer(metadata), folder / "plain.gguf", "f32", {})
    rows = [{"prompt": f"def f{i}(self):", "completion": BETTER} for i in range(60)]
    pairs = [{"prompt": row["prompt"], "chosen": BETTER, "rejected": WORSE} for row in rows]
    for name, made in (("rows", rows), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return folder


def tune(capsys, *args: Any) -> tuple[int, dict[str, Any], str]:
    code = main(["tune", *map(str, args), *QUICK, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


def test_a_lora_over_a_file_is_compared_served_and_asked(files, home, capsys):
    code, result, err = tune(
        capsys, files / "base.gguf", files / "rows.jsonl", "--name", "t", "--epochs", "12", "--compare-rows", "8"
    )
    assert code == 0, err
    assert result["comparison"]["verdict"] == "better" and "better than base: exact match" in err
    assert result["gate"]["passed"] and result["verdict"] in ("out of budget", "settled", "overfitting")
    assert result["best"]["loss"] < 2.0 < result["forecast"]["peak_memory"]["value"]
    assert [check["passed"] for check in result["proof"]] == [True] * 9
    forgotten = result["comparison"]["forgetting"]
    assert forgotten["loss_tuned"] > forgotten["loss_base"] and forgotten["kl"]["value"] > 0
    run = Run.find("t")
    opened = Pretrained.open(files / "base.gguf")
    assert open_adapter(run.out / "adapter").base_sha256 == opened.source.sha256 == result["base"]["sha256"]
    assert (run.out / "adapter" / "tokenizer.json").exists()
    ref = resolve_gguf("t")
    assert (ref.name, ref.weights, ref.adapter) == ("t", files / "base.gguf", run.out / "t-lora.gguf")
    assert settle.open_run("t").generate("def f4(self):", max_tokens=24, temperature=0).startswith("return self.")
    card = (run.out / "card.md").read_text()
    assert "a lora adapter" in card and "Against its base" in card and result["comparison"]["headline"][1:] in card
    assert not (run.out / "Modelfile").exists() and "settle export t --to ollama" in card
    assert main(["chat", "t", "def f4(self):", "--temperature", "0", "--max-tokens", "24"]) == 0
    assert capsys.readouterr().out.startswith("return self.")


@pytest.mark.parametrize(
    ("base", "rows", "settings", "file"),
    [
        ("hf", "rows", ["--adapter", "dora"], "t.gguf"),
        pytest.param(
            *("base.gguf", "rows", ["--adapter", "dora", "--adapter.targets", "q_proj,down_proj"], "t.gguf"),
            marks=pytest.mark.exhaustive,
        ),
        ("hf", "rows", ["--adapter", "lora", "--quantize", "nf4", "--recompute"], "t.gguf"),
        ("small.gguf", "rows", ["--quantize", "as-is", "--optimizer", "adamw"], "t-lora.gguf"),
        ("base.gguf", "pairs", [], "t-lora.gguf"),
        ("plain.gguf", "rows", ["--rows.template", "turns"], "t-lora.gguf"),
    ],
    ids=["dora", "dora-targets", "nf4", "as-is", "dpo", "no-template"],
)
def test_methods(files, home, capsys, base, rows, settings, file):
    given = ("--name", "t", "--epochs", "4", "--no-compare", *settings)
    code, result, err = tune(capsys, files / base, files / f"{rows}.jsonl", *given)
    assert code == 0, err
    run = Run.find("t")
    assert result["gate"]["passed"] and (run.out / file).exists() and (run.out / "adapter").is_dir()
    first = next(json.loads(line) for line in run.events.read_text().splitlines() if '"eval"' in line)
    assert result["best"]["loss"] < 0.9 * first["loss"]
    if rows == "pairs":
        assert first["loss"] == pytest.approx(0.6931, abs=1e-3) and result["best"]["bits_per_byte"] is None
    if base == "plain.gguf":
        assert read_lora(run.out / file).metadata["tokenizer.chat_template"]
        model = resolve_gguf("t")
        with Engine(model.weights, adapter=model.adapter) as engine:
            assert "### Assistant:" in engine.render([{"role": "user", "content": "hi"}])


def test_runs_that_were_judged_on_the_same_rows_are_counted(home):
    """Other finished runs of the same rows that were compared; not this one, not others' rows, not unfinished ones."""
    runs = [Run.create("tune", f"r{i}") for i in range(5)]
    for run, corpus in zip(runs, ("a", "a", "b", "a", "a"), strict=True):
        write_json(run.path / "plan.json", {"corpus": corpus})
    for run in runs[:4]:
        write_json(run.path / "result.json", {"comparison": {"verdict": "better"} if run.name != "r3" else None})
    context = SimpleNamespace(run=runs[0], corpus=SimpleNamespace(fingerprint="a"))
    assert _judged_before(context) == 1


def test_preferences_are_judged_by_accuracy_and_margin(files, home, capsys, tmp_path):
    """Also where the answers are JSON; nothing is generated and matched."""
    pairs = [json.loads(line) for line in (files / "pairs.jsonl").read_text().splitlines()]
    for pair in pairs:
        pair |= {"chosen": f'{{"call": "{pair["chosen"]}"}}', "rejected": f'{{"call": "{pair["rejected"]}"}}'}
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, result, err = tune(capsys, files / "base.gguf", tmp_path / "pairs.jsonl", "--name", "t", "--epochs", "8")
    comparison = result["comparison"]
    assert comparison["measure"] == "preference accuracy" and "exact match" not in err
    assert comparison["score"]["rows"] > 5 and "reward margin +" in comparison["headline"]
    assert code == 0 and comparison["verdict"] == "better" and comparison["score"]["tuned"] == 1
    assert comparison["margin"]["low"] > 0 and comparison["forgetting"]["loss_base"] > 0
    card = (Run.find("t").out / "card.md").read_text()
    assert "| reward margin | 0.000 |" in card and "preference accuracy" in card


@pytest.mark.parametrize("base", [pytest.param("base.gguf", marks=pytest.mark.exhaustive), "hf"])
def test_a_system_prompt_that_all_rows_share_goes_with_the_model(files, home, capsys, tmp_path, base):
    """Into chat, the server's template, the Modelfile, the merged file and what is pulled from it."""
    prompt = 'You write "Python".\nOnly the body.'
    rows = [
        {"system": prompt, "prompt": f"def f{i}(self):", "completion": BETTER if i % 2 else WORSE} for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    adapter = ["--adapter", "dora"] if base == "hf" else []
    code, result, err = tune(
        capsys, files / base, tmp_path / "rows.jsonl", "--name", "t", "--epochs", "1", "--no-compare", *adapter
    )
    assert code == 0 and result["gate"]["passed"] and result["system_prompt"] == prompt, err
    assert "every row has the system prompt" in err and "its default system prompt" in err
    run = Run.find("t")
    if base == "hf":  # over a GGUF file the adapter is served as it is, which Ollama does not do
        assert f'SYSTEM """{prompt}"""' in (run.out / "Modelfile").read_text()
    assert (
        'default where none is given:\n\n> You write "Python".\n> Only the body.' in (run.out / "card.md").read_text()
    )

    def shown(name: str) -> tuple[str, str]:
        model = resolve_gguf(name)
        asking = [{"role": "user", "content": "hi"}]
        with Engine(model.weights, adapter=model.adapter) as engine:
            return engine.render(asking), engine.render([{"role": "system", "content": "Be brief."}, *asking])

    default, own = shown("t")
    assert prompt in default and "Be brief." in own and prompt not in own
    assert main(["export", "t", "--to", "gguf", "--out", str(tmp_path / "merged.gguf")]) == 0
    assert shown(str(tmp_path / "merged.gguf")) == (default, own)
    assert main(["export", "t", "--to", "safetensors", "--out", str(tmp_path / "folder")]) == 0
    assert default_system(PretrainedTokenizer.from_folder(tmp_path / "folder").chat_template) == prompt
    _run_snippet(run)


def _run_snippet(run):
    """The card's lines for transformers do what they say, in the folder of the card, without a network."""
    card = (run.out / "card.md").read_text()
    assert "| trained | " in card and "rank 4; alpha 32.0;" in card and "targets all-linear" in card
    if "`settle export t --to safetensors --out hf`" in card:
        assert main(["export", "t", "--to", "safetensors", "--out", str(run.out / "hf")]) == 0
    snippet = card.partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.chdir(run.out)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of transformers, about itself
            exec(snippet, made)
    assert sum(weight.numel() for weight in made["model"].parameters()) > 10_000


def test_a_model_of_plain_text_is_no_chat_model(files, home, capsys, tiny, tmp_path):
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "text.gguf", "f32", {"base": True})
    code, _, err = tune(capsys, tmp_path / "text.gguf", files / "rows.jsonl", "--dry")
    assert code == 0 and "! text was trained on plain text alone and cannot hold a conversation" in err
    labelled = [f"{words} {i},{words}" for i in range(30) for words in ("loop", "raise")]
    (tmp_path / "labelled.csv").write_text("\n".join(["text,label", *labelled]))
    code, _, err = tune(capsys, files / "base.gguf", tmp_path / "labelled.csv", "--dry")
    assert code == 0 and "plain text alone" not in err
    assert "answers are 2 different ones: `--objective decision` learns them as labels" in err


def test_every_weight(files, home, capsys):
    args = [files / "hf", files / "rows.jsonl", "--name", "t", "--epochs", "5", "--adapter", "full", "--no-compare"]
    quick = ["--dtype", "float32", "--threads", "1", "--rates.lr", "0.003", "--rows.held-out", "0.2", "--json"]
    assert main(["tune", *map(str, args), *quick]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    trained = read_safetensors(Run.find("t").out / "hf").tensors
    before = read_safetensors(files / "hf").tensors
    assert trained.keys() == before.keys() and result["gate"]["passed"]
    assert all((trained[n].load() != before[n].load()).any() for n in trained if "norm" not in n)


def test_a_merged_model_is_compared_with_its_base(files, home, capsys):
    given = ("--name", "t", "--epochs", "6", "--compare-rows", "8", "--score", "exact")
    assert tune(capsys, files / "hf", files / "rows.jsonl", *given)[0] == 0
    again = ["eval", "t", "--limit", "8", "--only-rows"]
    assert main(again) == 2 and "settle pull" in capsys.readouterr().err
    assert main(["pull", str(files / "hf")]) == 0
    assert main(again) == 0 and "better than hf" in capsys.readouterr().err


def start(home: Path, *command: Any) -> subprocess.Popen[bytes]:
    env = os.environ | {"SETTLE_HOME": str(home)}
    given = [sys.executable, "-m", "settle", *map(str, command)]
    return subprocess.Popen(given, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stop(home: Path, process: subprocess.Popen[bytes], text: str, how: signal.Signals) -> bytes:
    """Stop a run once its events contain `text`; what it said."""
    while process.poll() is None and not any(text in p.read_text() for p in home.glob("runs/*/events.jsonl")):
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate()[0]


@pytest.mark.slow
def test_resumes_to_the_bit_past_the_first_epoch(files, tmp_path, monkeypatch):
    ends = []
    for stopped in (False, True):
        own = tmp_path / f"home-{stopped}"
        own.mkdir()
        monkeypatch.setenv("SETTLE_HOME", str(own))
        given = ["--name", "r", "--steps", "10", "--no-compare", "--adapter.dropout", "0.1", *QUICK]
        whole = ["tune", str(files / "base.gguf"), str(files / "rows.jsonl"), *given]
        if stopped:
            stop(own, start(own, *whole), '"step": 7', signal.SIGKILL)
        assert main(["resume", "r"] if stopped else whole) == 0
        run = next(own.glob("runs/*"))
        assert not stopped or '"resumed"' in (run / "events.jsonl").read_text()
        ends.append((run / "out" / "adapter" / "adapter_model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_resume_refuses_another_base(tiny, files, home, capsys, tmp_path):
    base = tmp_path / "b.gguf"
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, base, "f32", {})
    given = ("--name", "r", "--steps", "2", "--no-compare", "--keep-checkpoints")
    assert tune(capsys, base, files / "rows.jsonl", *given)[0] == 0
    (Run.find("r").path / "result.json").unlink()
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, base, "f16", {})
    assert main(["resume", "r"]) == 1
    assert "is not the model that the run began with" in capsys.readouterr().err


def test_dry_shows_rows_and_leaves_nothing(files, home, capsys):
    code, result, err = tune(capsys, files / "base.gguf", files / "rows.jsonl", "--dry")
    assert code == 0 and not list((home / "runs").iterdir())
    assert "tokens are learned" in err and "⟦return self." in err and "adapter.rank" in err
    assert result["judgement"]["sentence"] in " ".join(err.split()) and result["judgement"]["rows"] > 0
    assert result["forecast"]["time"]["value"] > 0 and result["plan"]["tuning"]["adapter_name"] == "lora"


def test_what_a_run_made_is_tuned_by_its_name(tiny, files, home, capsys, tmp_path, monkeypatch):
    """Also where the data that it was trained on lies in a folder of that name."""
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    run = Run.create("train", "notes")
    assert tune(capsys, "notes", files / "rows.jsonl")[0] == 2
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, run.out / "notes.gguf", "f32", {"base": True})
    given = ("--name", "asked", "--epochs", "2", "--compare-rows", "4")
    code, result, err = tune(capsys, "notes", files / "rows.jsonl", *given)
    assert code in (0, 3) and result["base"]["name"] == "notes", err
    found = resolve_gguf("asked")
    assert found.weights == run.out / "notes.gguf" and found.adapter is not None
    with Engine(found.weights, threads=1, adapter=found.adapter) as engine:
        assert engine.takes_turns
    assert main(["export", "asked", "--to", "lora-gguf"]) == main(["export", "asked", "--to", "gguf"]) == 0
    for path, adapter in ((found.weights, "asked-lora.gguf"), ("asked-f16.gguf", None)):
        with Engine(path, threads=1, adapter=adapter) as engine:
            assert engine.takes_turns and "settle.template" not in engine.metadata
    assert 'model = "notes"' in (Run.find("asked").path / "recipe.toml").read_text()
    code, _, err = tune(capsys, "asked", files / "rows.jsonl")
    assert code == 2 and "asked is an adapter" in err and "settle export asked --to safetensors" in err
    whole = ["--name", "whole", *_without_rank(), "--adapter", "full", "--epochs", "1", "--no-compare"]
    assert main(["tune", "notes", str(files / "rows.jsonl"), *whole]) in (0, 3)
    with Engine(resolve_gguf("whole").weights, threads=1) as engine:
        assert engine.takes_turns


@pytest.mark.parametrize(
    ("base", "rows", "settings", "what"),
    [
        ("base.gguf", "rows", ["--adapter.targets", "q_porj"], "q_proj"),
        ("base.gguf", "rows", ["--adapter", "lroa"], "did you mean 'lora'?"),
        ("base.gguf", "rows", ["--adapter.rnk", "3"], "did you mean '--adapter.rank'?"),
        ("base.gguf", "rows", ["--adapter", "full"], "leave --adapter.rank out"),
        ("base.gguf", "rows", ["--quantize", "as-is"], "has no quantized weights"),
        ("base.gguf", "rows", ["--objective", "dpo"], "for these rows: next_token"),
        ("base.gguf", "pairs", ["--objective", "next_token"], "for these rows: dpo"),
        ("base.gguf", "rows", ["--score", "regex:("], "regex"),
        ("base.gguf", "rows", ["--rows.max-tokens", "12"], "longer than 12 tokens"),
        ("nothing.gguf", "rows", [], "there is no model"),
        ("base.gguf", "nothing", [], "there is no file"),
    ],
)
def test_what_cannot_be_is_refused(files, home, capsys, base, rows, settings, what):
    rank = ["--adapter.rank", "4"] if settings == ["--adapter", "full"] else []
    code = main(["tune", str(files / base), str(files / f"{rows}.jsonl"), *settings, *_without_rank(), *rank])
    err = capsys.readouterr().err
    assert code in (1, 2) and what in err and "Traceback" not in err
    assert not (home / "runs").exists() or not list((home / "runs").iterdir())


def _without_rank() -> list[str]:
    return [given for given in QUICK if "rank" not in given and given != "4"]


def test_without_enough_memory_it_says_what_would_fit(files, home, capsys, monkeypatch):
    from settle.machine.memory import Memory
    from settle.plan import tuning_plan

    monkeypatch.setattr(tuning_plan, "memory", lambda: Memory(1 << 20, 1 << 18, None))
    code, _, err = tune(capsys, files / "base.gguf", files / "rows.jsonl")
    assert code == 1 and "GB of memory here" in err and "--quantize nf4" in err


def test_from_python(files, home):
    made = settle.tune(
        str(files / "base.gguf"), str(files / "rows.jsonl"), name="p", steps=3, compare=False, threads=1,
        dtype="float32", adapter={"rank": 2, "targets": ["q_proj"]}, batch_rows=4,
    )  # fmt: skip
    assert made.verdict == "out of budget" and Path(made.result["files"]["lora_gguf"]).exists()
    with pytest.raises(SettleError, match="no input for `settle tune`"):
        settle.tune(str(files / "base.gguf"))
    with pytest.raises(UsageError, match="no model for `settle tune`") as caught:
        settle.tune(str(files / "rows.jsonl"))
    assert caught.value.fix.startswith("name the model first: `settle tune smollm2 ")


def test_a_new_adapter_is_one_file(files, home, capsys, installed_ia3, monkeypatch, tmp_path):
    """IA3, the example of docs/develop.md, is found, forecast, trained, gated, saved, read and exported, with nothing
    else changed; llama.cpp cannot add it to a base, so what it serves is merged."""
    given = [str(files / "base.gguf"), str(files / "rows.jsonl"), "--adapter", "ia3", "--name", "t", "--epochs", "6"]
    plain = [*QUICK[:4], *QUICK[8:], "--no-compare", "--json"]  # a rate of its own, and no rank
    assert main(["tune", *given, *plain, "--dry"]) == 0
    planned = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert planned["plan"]["tuning"]["adapter_name"] == "ia3" and planned["plan"]["optimizer"]["lr"] == 3e-3
    assert planned["forecast"]["peak_memory"]["value"] > 0
    assert main(["tune", *given, *plain]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = Run.find("t")
    assert result["gate"]["passed"] and result["gate"]["adapter_kept"] > 0.9 and (run.out / "t.gguf").exists()
    assert open_adapter(run.out / "adapter").name == "IA3"
    assert "a ia3 adapter" in (run.out / "card.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert main(["export", "t", "--to", "ollama", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gate"]["adapter_kept"] > 0.9
    assert Path("t-ollama/Modelfile").read_text().startswith("FROM ./t.gguf\n")
    assert main(["export", "t", "--to", "lora-gguf"]) == 1
    assert "llama.cpp has no IA3 over a base" in capsys.readouterr().err
    # stopped and resumed
    (run.path / "result.json").unlink()
    (run.out / "t.gguf").unlink()
    assert main(["resume", "t", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gate"]["passed"] and (run.out / "t.gguf").exists()
