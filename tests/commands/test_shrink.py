"""`settle shrink`: a budget is met and measured, or said not to be."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

import settle
from settle.base import registry
from settle.base.event_log import Events
from settle.base.files import write_atomic
from settle.base.run import Run
from settle.base.settings import recipe_text
from settle.cli import main
from settle.evaluate.gate.export import ExportedModel, export_run_model
from settle.formats.gguf import read_gguf
from settle.shrink import quantizers
from settle.shrink.search import routes
from settle.shrink.types.mixes import mix_types
from settle.shrink.types.quantize_file import quantize_gguf
from tests.examples import example

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp_py_sync") is None, reason="the extra `shrink` is not installed"
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory, tiny):
    """A home with a finished run; what is measured of it stays for the tests that follow."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        run = Run.create("train", "notes")
        model, part, weights, tokenizer = tiny.model, tiny.part, tiny.weights, tiny.tokenizer
        exported = ExportedModel("notes", model, part, weights, tokenizer, tiny.held_out, {"base": True})
        export_run_model(exported, run.out, Events())
        text = home / "text.txt"
        text.write_text("\n\n".join(tiny.held_out * 2), encoding="utf-8")
        yield home


@pytest.fixture(autouse=True)
def here(kept, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(kept))


def shrunk(capsys, *arguments, code=0):
    assert main(["shrink", *map(str, arguments), "--json"]) == code
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture(scope="module")
def typed(kept):
    """The result of a run that was asked for a type."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(kept))
        return settle.shrink("notes", str(kept / "text.txt"), to="q4_k_m", name="typed").result.to_json()


def quantized(kept, mix):
    """The run's file in a mix, made without a search."""
    path = Run.find("notes").out / "notes.gguf"
    kinds = {name: choice.kind for name, choice in mix_types(read_gguf(path), mix).items()}
    return str(quantize_gguf(path, kept / f"{mix}.gguf", kinds, None, mix))


def test_a_type(typed):
    result = typed
    file = read_gguf(result["files"]["gguf"])
    assert file.tensors["blk.0.ffn_down.weight"].dtype == "Q5_0"  # 128 values in a row are no 256
    assert result["gate"]["passed"] and result["chosen"]["recipe"] == "Q4_K_M"
    assert 0 < result["chosen"]["divergence"]["kl"]["value"] < 1
    assert result["chosen"]["bytes"] < result["reference"]["bytes"]
    run = Run.find("typed")
    assert run.status == "finished" and (run.out / "pareto.png").stat().st_size > 10_000
    card = (run.out / "card.md").read_text()
    assert result["audit"]["sentence"] in card and run.read("plan.json")["reaches"] == []
    assert 'base_model: "notes"' in card and "| blk.0.ffn_down.weight | Q5_0 |" in card
    assert main(["chat", "typed", "def f(", "--max-tokens", "4"]) == 0


def test_a_folder_for_vllm(kept, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--to", "w4a16", "--name", "packed")
    folder = Path(result["files"]["compressed_tensors"])
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized" and config["dtype"] == "float16"
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    file = read_gguf(result["files"]["gguf"])
    assert file.tensors["blk.0.ffn_down.weight"].dtype == "Q4_0" and file.tensors["token_embd.weight"].dtype == "F16"
    assert result["chosen"]["name"] == "W4A16" and 0 < result["chosen"]["divergence"]["kl"]["value"] < 1


def test_a_size_is_kept_to_and_used_better_than_by_a_mix(kept, typed, capsys):
    mix = typed["chosen"]
    size = f"{mix['bytes'] / 1e3:.3f}kB"
    auto = shrunk(capsys, "notes", kept / "text.txt", "--to", size, "--name", "sized")["chosen"]
    assert auto["bytes"] <= mix["bytes"]
    assert auto["selection"]["kl"]["value"] <= mix["selection"]["kl"]["value"]


def test_a_loss_is_kept_to(kept, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--lose", "5%", "--name", "lossy")
    d = result["chosen"]["selection"]
    assert max(d["rise"]["high"], d["kl"]["high"] / d["reference_loss"]) <= 0.05
    judged = result["chosen"]["divergence"]  # on text that did not choose it
    assert judged["kl"] != d["kl"] and judged["reference_loss"] != d["reference_loss"]
    assert result["actual"]["kl"] == judged["kl"]["value"] and judged["rise"]["value"] < 0.1
    smaller = [c for c in result["candidates"] if c["bytes"] < result["chosen"]["bytes"]]
    for other in smaller:
        d = other["divergence"]
        assert max(d["rise"]["high"], d["kl"]["high"] / d["reference_loss"]) > 0.05


def test_from_python(kept):
    run = settle.shrink("notes", str(kept / "text.txt"), to="Q8_0", name="python")
    assert run.verdict == "within budget" and run.result.to_json()["chosen"]["recipe"] == "Q8_0"
    assert run.generate("def f(", max_tokens=4, temperature=0)


def test_what_nothing_can_meet_names_the_nearest_and_leaves_no_run(kept, capsys):
    for budget, says in ((["--to", "10kB"], "the nearest is"), (["--speed", "1e9"], "the fastest is")):
        assert main(["shrink", "notes", str(kept / "text.txt"), *budget, "--name", "never"]) == 1
        assert says in capsys.readouterr().err
    assert all(run.name != "never" for run in Run.all())


def test_a_model_that_is_quantized_already_is_refused_unless_asked(kept, capsys):
    small = quantized(kept, "Q8_0")
    assert main(["shrink", small, str(kept / "text.txt"), "--to", "Q4_0"]) == 2
    said = capsys.readouterr().err
    assert (
        "is quantized already (" in said
        and f"`settle shrink {small} {kept / 'text.txt'} --to Q4_0 --requantize`" in said
    )
    again = shrunk(capsys, small, kept / "text.txt", "--to", "Q4_0", "--requantize", "--name", "again")
    assert again["gate"]["passed"]
    assert "memory " in again["why"] and again["forecast"]["kl"] > 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "one budget decides, and none were given"),
        (["--to", "Q8_0", "--plan"], "--to, --plan were given"),
        (["--to", "Q4_X"], "there is no type 'Q4_X'"),
        (["--to", "400"], "'400' is not a size"),
        (["--lose", "0"], "'0' is not a share"),
    ],
)
def test_a_wrong_budget(arguments, says, capsys):
    assert main(["shrink", "notes", *arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_known_before(kept, capsys, monkeypatch):
    import shutil

    usage = shutil.disk_usage(kept)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert main(["shrink", "notes", "--to", "Q8_0", "--name", "full"]) == 1
    assert "no room for this work" in capsys.readouterr().err
    assert all(run.name != "full" for run in Run.all())


@pytest.mark.slow
def test_the_plan_is_predicted_and_then_measured(kept, capsys, monkeypatch):
    """Of every eighth file: each takes as long as the next one."""
    every = []
    monkeypatch.setattr("settle.jobs.shrink.routes", lambda c: every.extend(routes(c)) or every[::8])
    result = shrunk(capsys, "notes", kept / "text.txt", "--plan", "--name", "planned")
    measured = [c for c in result["candidates"] if c["divergence"]]
    assert (
        len(every) > 15
        and len(measured) == len(every[::8])
        and all(c["predicted_kl"] > 0 and c["footprint"] for c in measured)
    )
    assert not list(Run.find("planned").out.glob("*.gguf"))


def test_a_killed_one_begins_again(kept, capsys):
    """As a kill leaves it: the folder, its recipe, and what was being tried."""
    recipe = {"model": "notes", "inputs": [str(kept / "text.txt")], "to": "Q8_0", "name": "killed"}
    run = Run.create("shrink", "killed")
    write_atomic(run.path / "recipe.toml", recipe_text(recipe))
    (run.path / ".work-abc").mkdir()
    assert main(["resume", "killed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["gate"]["passed"]
    assert run.status == "finished" and not list(run.path.glob(".work-*"))


def test_one_that_was_killed_once_the_types_were_chosen_exports_those(kept, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--to", "Q5_0", "--name", "chosen")
    run = Run.find("chosen")
    assert run.read("plan.json")["chosen"]["kinds"] == result["kinds"]
    before = Path(result["files"]["gguf"]).read_bytes()
    (run.path / "result.json").unlink()
    Path(result["files"]["gguf"]).unlink()
    assert main(["resume", "chosen", "--json"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["kinds"] == result["kinds"] and Path(again["files"]["gguf"]).read_bytes() == before
    (run.path / "result.json").unlink()
    (kept / "text.txt").rename(kept / "before.txt")
    (kept / "text.txt").write_text("Another text. " * 400, encoding="utf-8")
    assert main(["resume", "chosen"]) == 1
    assert "the data has changed" in capsys.readouterr().err
    (kept / "before.txt").replace(kept / "text.txt")


def test_dry_makes_nothing(kept, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--to", "Q4_0", "--name", "dry", "--dry")
    assert result["chosen"]["recipe"] == "Q4_0" and all(run.name != "dry" for run in Run.all())


def test_a_vocabulary_is_cut_without_rounding(kept, capsys):
    small = quantized(kept, "Q4_0")
    cut = shrunk(capsys, small, kept / "text.txt", "--vocabulary", "--name", "cut")
    there, left = cut["vocabulary"]["tokens"]
    assert left < there and cut["chosen"]["divergence"]["kl"]["value"] < 1e-6
    before, after = read_gguf(small), read_gguf(cut["files"]["gguf"])
    assert after.tensors["blk.0.ffn_up.weight"].dtype == before.tensors["blk.0.ffn_up.weight"].dtype
    assert after.tensors["token_embd.weight"].shape[0] == left
    assert abs(cut["vocabulary"]["text"]["rise"]["value"]) < 0.05
    assert main(["shrink", "notes", "--vocabulary"]) == 2
    assert "your text decides" in capsys.readouterr().err


@pytest.fixture
def uniform(tmp_path, monkeypatch):
    """The quantizer of docs/develop.md, as one file in the family's folder."""
    (tmp_path / "uniform.py").write_text(example("uniform"), encoding="utf-8")
    caches = (registry.part_names, registry.part, registry._own_modules)
    with monkeypatch.context() as patch:
        patch.setattr(quantizers, "__path__", [*quantizers.__path__, str(tmp_path)])
        for cache in caches:
            cache.cache_clear()
        yield
    sys.modules.pop("settle.shrink.quantizers.uniform", None)
    for cache in caches:
        cache.cache_clear()


def test_a_new_quantizer_is_one_file(kept, uniform, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--to", "500kB", "--quantizer", "uniform", "--name", "one")
    assert result["chosen"]["bytes"] <= 500_000 and result["gate"]["passed"]
    tried = {c["name"].split()[0] for c in [result["chosen"], *result["candidates"]]}
    assert "uniform" in tried
    assert main(["shrink", "notes", "--to", "500kB", "--quantizer.nonsense", "1"]) == 2
    assert "quantizer.nonsense" in capsys.readouterr().err


def test_mixes_alone(kept, capsys):
    result = shrunk(capsys, "notes", kept / "text.txt", "--to", "500kB", "--quantizer", "mix", "--name", "mixes")
    assert result["chosen"]["bytes"] <= 500_000
