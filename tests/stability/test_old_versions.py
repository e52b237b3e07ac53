"""Runs, collections and recipes that earlier versions made: this one opens them, or says what to do instead."""

import json
import lzma
import os
import re
import shutil
import signal
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from settle.base.event_log import Events
from settle.cli import main
from settle.jobs.job import INTERRUPTED, resume
from tests.stability.make import FOLDER, LETTERS
from tests.stability.public import RUN_FILES

ARCHIVES = sorted(Path(__file__).parent.glob("v*.tar.xz"))
CANNOT_RESUME = {"v0_1"}  # whose data were divided in another way


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda path: path.name.split(".")[0])
def opened(request, tmp_path_factory):
    """Return the version, and a home with what it made; what was made from lies beside it, the documents do not."""
    folder = tmp_path_factory.mktemp("old")
    home, inputs = folder / "home", folder / "inputs"
    with tarfile.open(request.param) as archive:
        archive.extractall(home, filter="data")
    shutil.move(home / "inputs", inputs)
    shutil.rmtree(inputs / "docs")
    (inputs / "letters.gguf").write_bytes(lzma.decompress(LETTERS.read_bytes()))
    for path in home.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".toml"):
            text = path.read_text(encoding="utf-8").replace(f"{FOLDER}/home", str(home))
            path.write_text(text.replace(str(FOLDER), str(inputs)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(home))
        yield request.param.name.split(".")[0], home


@pytest.fixture
def settle(opened, monkeypatch, capfd):
    """Run a command in that home; what it wrote to stdout, and its messages. An error has words and no traceback."""
    monkeypatch.setenv("SETTLE_HOME", str(opened[1]))

    def run(*argv, code=0):
        capfd.readouterr()
        assert main([str(arg) for arg in argv]) == code, capfd.readouterr().err
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return out, err

    return run


def test_there_is_one_of_every_version():
    assert {path.name.split(".")[0] for path in ARCHIVES} >= {"v0_1", "v0_2_early", "v0_2"}
    assert all(path.stat().st_size < 400_000 for path in (*ARCHIVES, LETTERS))


def test_runs_are_listed_and_shown(settle):
    listed, _ = settle("runs")
    assert all(re.search(rf"^{name} +{status}", listed, re.M) for name, status in
               (("story", "finished"), ("tuned", "finished"), ("halted", "interrupted")))  # fmt: skip
    assert "bits per byte" in settle("runs", "show", "story")[0] and "story" in settle("runs", "--ledger")[0]
    assert "no different from story" in settle("runs", "show", "tuned")[0]
    assert "settle resume halted" in settle("runs", "show", "halted")[0]


def test_a_run_has_the_files_that_are_promised(opened):
    version, home = opened
    there = {path.name for run in home.glob("runs/*") for path in run.iterdir()}
    assert set(RUN_FILES) - there == ({"audit"} if version == "v0_1" else set())


def test_models_write_and_are_exported(settle, tmp_path):
    for name in ("story", "tuned"):
        answer, _ = settle("chat", f"run:{name}", "sea wind", "--max-tokens", "4")
        assert answer  # what a model of some steps writes may be the ends of lines
        made = tmp_path / f"{name}.gguf"
        settle("export", name, "--out", made)
        assert made.read_bytes()[:4] == b"GGUF"


def test_a_recipe_can_be_planned(opened, settle):
    for job, name, model in (("train", "story", ()), ("tune", "tuned", ("run:story",))):
        (recipe,) = opened[1].glob(f"runs/*-{name}-*/recipe.toml")
        out, _ = settle(job, *model, "--recipe", recipe, "--name", "again", "--dry", "--json")
        assert json.loads(out.splitlines()[-1])["forecast"]


def test_a_collection_answers(settle):
    assert re.search(r"^harbour +3 ", settle("index")[0], re.M)
    assert "pier four" in settle("ask", "harbour", "When does the ferry to the island leave?", "--model", "none")[0]
    found, _ = settle("ask", "harbour", "How is the tower clock wound?", "--passages")
    assert found.splitlines()[0].endswith("clock.md:3  Clock")


def test_a_comparison_is_shown_again_or_said_to_be_unknown(opened, settle):
    if opened[0] in ("v0_1", "v0_2_early"):
        assert "there is no verdict.json" in settle("eval", "tuned", "--verify", code=1)[1]
    else:
        settle("eval", "tuned", "--verify", code=3)


def test_an_interrupted_run_is_resumed_or_says_how_to_start_it_again(opened, settle):
    version, home = opened
    if version in CANNOT_RESUME:
        _, err = settle("resume", "halted", code=1)
        command = re.search(r"`settle (train --recipe \S+) --name halted-again`", err)
        assert "begun by settle 0.1.0" in err and command
        settle(*command[1].split(), "--name", "halted-again", "--dry")
        return
    seen = []

    def stop_at_the_first_step(event):
        seen.append(event.kind)
        if event.kind == "step" and seen.count("step") == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with closing(Events(listeners=[stop_at_the_first_step])) as events:
        assert resume("halted", events) == INTERRUPTED
    assert seen.index("resumed") < seen.index("step") < seen.index("checkpoint")
