"""The whole path of `settle train` on real text: a tiny model, a few dozen steps."""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import settle
from settle.base.errors import UsageError
from settle.base.event_log import read_records
from settle.base.run import Run
from settle.cli import main

SMALL = ["--size", "100k", "--steps", "40", "--threads", "1", "--context", "64", "--batch-tokens", "512"]


@pytest.fixture
def notes(tmp_path):
    """A folder of real text: some modules of the standard library and a binary file among them."""
    folder = tmp_path / "notes"
    folder.mkdir()
    library = Path(sysconfig.get_path("stdlib"))
    for name in ("argparse", "ast", "calendar", "cmd", "csv", "difflib", "dis", "heapq", "inspect", "json/decoder"):
        (folder / f"{Path(name).name}.py").write_text((library / f"{name}.py").read_text())
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8)
    return folder


def test_from_a_folder_to_a_file_that_answers(home, notes, capfd):
    assert main(["train", str(notes), "--name", "first", *SMALL, "--json"]) == 0
    out, err = capfd.readouterr()
    result = json.loads(out.splitlines()[-1])
    run = Run.find("first")
    assert json.loads(out.splitlines()[0]).items() >= {"kind": "run", "path": str(run.path)}.items()
    assert result == run.read("result.json") and result["verdict"] == "out of budget" and result["gate"]["passed"]
    assert {"recipe.toml", "plan.json", "forecast.json", "events.jsonl", "out", "result.json"} <= {
        p.name for p in run.path.iterdir()
    }
    assert not run.checkpoints.exists()  # nothing can be resumed any more
    assert {"first.gguf", "hf", "card.md", "curves.png", "Modelfile"} <= {p.name for p in run.out.iterdir()}
    events = list(read_records(run.events))
    kinds = {e["kind"] for e in events}
    assert {"proof", "eval", "step", "checkpoint", "decay", "gate"} <= kinds
    assert set(result["forecast"]) >= {"time", "peak_memory", "energy", "loss"}
    assert all(name in result["actual"] for name in ("time", "peak_memory", "energy", "loss"))
    order = [e["kind"] for e in events]
    assert "data" in [e["phase"] for e in events if e["kind"] == "phase"]  # reading is in the log, too
    assert order.index("plan") < order.index("forecast") < order.index("proof") < order.index("step")
    began = {e["phase"]: e["elapsed"] for e in events if e["kind"] == "phase"}
    assert result["actual"]["time"] >= began["result"] > began["export"]  # all that the forecast counts
    assert "picture.png" in (run.out / "card.md").read_text() + json.dumps(run.read("plan.json"))
    assert "Traceback" not in err

    again = settle.open_run("first")
    assert again.verdict == "out of budget" and len(again.generate("def ", max_tokens=8, temperature=0)) > 0


def test_the_python_interface_says_the_same(home, notes):
    run = settle.train(
        str(notes), name="api", size="100k", steps=20, threads=1, context=64, batch_tokens=512, data={"vocab_size": 400}
    )
    assert run.verdict == "out of budget" and run.path == Run.find("api").path
    assert run.result["best"]["loss"] < 6.0  # below ln 400


def test_dry_shows_the_plan_and_leaves_nothing(home, notes, capfd):
    assert main(["train", str(notes), *SMALL, "--dry", "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out.splitlines()[-1])
    assert told["plan"]["loop"]["max_steps"] == 40 and told["plan"]["origin"]["steps"] == "asked"
    assert set(told["forecast"]) >= {"time", "peak_memory", "energy", "cost", "loss"}
    assert "asked" in err and "derived" in err and Run.all() == []


def test_a_recipe_lies_below_the_command_line(home, notes, tmp_path, capfd):
    recipe = tmp_path / "r.toml"
    recipe.write_text('steps = 30\nsize = "100k"\n[data]\nvocab_size = 400\n')
    assert main(["train", str(notes), "--recipe", str(recipe), "--steps", "25", "--dry", "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    origin = told["plan"]["origin"]
    assert told["plan"]["loop"]["max_steps"] == 25
    assert (origin["steps"], origin["size"], origin["data.vocab_size"]) == ("asked", "recipe", "recipe")
    assert origin["seed"] == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 30\n", "steps"),
        ("[data]\nvocabsize = 400\n", "data.vocab_size"),
        ('seed = "many"\n', "seed = 'many'"),
        ('optimizer = "moun"\n', "muon"),
        ("[rates]\nlearning_rate = 1.0\n", "optimizer muon has no setting 'optimizer.learning_rate'"),
    ],
)
def test_a_misspelled_or_mistyped_recipe(home, notes, tmp_path, capfd, text, said):
    recipe = tmp_path / "r.toml"
    recipe.write_text(text)
    assert main(["train", str(notes), "--recipe", str(recipe), *SMALL]) == 2
    err = capfd.readouterr().err
    assert said in err and "Traceback" not in err and Run.all() == []


@pytest.mark.parametrize("recipe", sorted(Path(__file__).parents[2].glob("recipes/*.toml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_can_be_planned(home, notes, recipe, capfd):
    assert main(["train", str(notes), "--recipe", str(recipe), "--time", "10s", "--dry", "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["plan"]["loop"]["seconds"] == 10 and told["forecast"]["time"]["value"] > 0


def test_a_name_that_exists(home, notes, capfd):
    Run.create("train", "taken")
    assert main(["train", str(notes), "--name", "taken", *SMALL]) == 2
    assert "exists already" in capfd.readouterr().err


def test_nothing_to_train_on(home, tmp_path, capfd):
    assert main(["train"]) == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["train", str(empty)]) == 1
    err = capfd.readouterr().err
    assert "no input for `settle train`" in err and "too little text" in err and Run.all() == []
    with pytest.raises(UsageError, match="no file or folder"):
        settle.train(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no setting 'stepz'"):
        settle.train(str(empty), stepz=3)


def test_no_socket_leaves_the_machine(home, notes):
    """Every connection of a whole run, the engine's included, is to loopback."""
    quick = ["--size", "100k", "--steps", "4", *SMALL[4:]]
    code = (
        "import sys, socket\n"
        "def watch(event, args):\n"
        "    if event == 'socket.connect' and not (isinstance(args[1], tuple) and args[1][0].startswith('127.')):\n"
        "        raise SystemExit(f'a connection to {args[1]}')\n"
        "sys.addaudithook(watch)\n"
        "from settle.cli import main\n"
        f"raise SystemExit(main(['train', {str(notes)!r}, '--name', 'quiet', *{quick!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
