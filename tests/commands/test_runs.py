import json
import os
import subprocess
import sys

import pytest

from settle.base.errors import RunError, UsageError
from settle.base.event_log import Events
from settle.base.events import Eval, Step
from settle.base.files import write_json
from settle.base.run import TAIL_BYTES, Run, free_name, present_names
from settle.cli import main
from settle.jobs.run_reports import RunSummary, run_summaries
from settle.library import deletion

RESULT = {
    "verdict": "settled",
    "why": "little is left to gain",
    "best": {"step": 20, "loss": 2.0, "bits_per_byte": 1.5},
    "forecast": {"time": {"value": 100, "low": 80, "high": 130}},
    "actual": {"time": 90.0},
    "gate": {"passed": True},
}


def a_run(name, result=None, steps=20):
    run = Run.create("train", name)
    events = Events(run.events)
    for step in range(0, steps + 1, 10):
        events.emit(Step(step=step, tokens=step * 1000, loss=3.0, lr=0.1, grad_norm=1.0, tokens_per_second=5.0))
        events.emit(Eval(step=step, tokens=step * 1000, loss=2.5, stderr=0.1, bits_per_byte=1.75))
    events.close()
    (run.out / "curves.png").write_bytes(b"x" * 1000)
    if result is not None:
        write_json(run.path / "result.json", result)
    return run


def test_none_yet_says_how_to_start(home, capsys):
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "settle train" in err


def test_a_list_newest_first(home, capsys):
    a_run("old", RESULT)
    a_run("new")
    assert main(["runs"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["new", "interrupted"], ["old", "finished"]]
    assert "settled" in lines[2] and "20 k" in lines[2] and "1 min 30 s" in lines[2] and "1.75" in lines[1]


def test_show_a_finished_run(home, capsys):
    run = a_run("notes", RESULT)
    assert main(["runs", "show", "notes"]) == 0
    out = capsys.readouterr().out
    for part in ("settled", "little is left to gain", "2 nats", "passed", str(run.path), "curves.png", "inside -10 %"):
        assert part in out
    assert main(["runs", "show", "notes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["run"]
    assert told["verdict"] == "settled" and told["files"] == [{"path": str(run.out / "curves.png"), "bytes": 1000}]


def test_a_reader_that_leaves_is_no_damage_of_the_run(home):
    """As `settle runs show calm | head -1`."""
    a_run("done", RESULT)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "settle", "runs", "show", "done"], stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert done.stderr == "" and done.returncode == 1


def test_show_an_interrupted_and_a_bare_run(home, capsys):
    a_run("cut")
    Run.create("train", "bare")
    assert main(["runs", "show", "cut"]) == 0
    assert "settle resume cut" in capsys.readouterr().out
    assert main(["runs", "show", "bare"]) == 0
    assert main(["runs"]) == 0
    assert "bare" in capsys.readouterr().out


def test_prune_deletes_the_checkpoints_of_finished_runs_only(home, capsys):
    finished, cut = a_run("notes", RESULT), a_run("cut")
    for run in (finished, cut):
        (run.checkpoints / "00000020").mkdir()
        (run.checkpoints / "00000020" / "model.safetensors").write_bytes(b"x" * 3_000_000)
    assert main(["runs"]) == 0
    out, err = capsys.readouterr()
    assert "3 MB" in out and "`settle runs prune` frees 3 MB" in err
    assert main(["runs", "prune", "cut"]) == 2
    assert "settle resume cut" in capsys.readouterr().err
    assert main(["runs", "prune", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"pruned": {"notes": 3_000_000}, "bytes": 3_000_000}
    assert not finished.checkpoints.exists() and (finished.out / "curves.png").exists()
    assert (cut.checkpoints / "00000020" / "model.safetensors").exists()


def test_several_runs_are_removed_at_once_and_a_no_keeps_them(home, capsys, monkeypatch):
    runs = [a_run("one", RESULT), a_run("two", RESULT)]
    monkeypatch.setattr(deletion, "confirm", lambda question: "one, two" not in question)
    assert main(["runs", "remove", "one", "two"]) == 0
    assert "nothing was deleted" in capsys.readouterr().err and all(run.path.exists() for run in runs)
    assert main(["runs", "remove", "one", "two", "--yes"]) == 0
    assert not any(run.path.exists() for run in runs)


def test_remove_frees_the_name_but_not_under_a_running_one(home, capsys):
    run = a_run("notes", RESULT)
    with run.lock(), pytest.raises(RunError, match="another settle"), Run(run.path).lock():
        pass
    with run.lock():
        assert main(["runs", "remove", "notes"]) == 1
    assert run.path.exists()
    assert main(["runs", "remove", "notes"]) == 0
    assert not run.path.exists() and "removed notes" in capsys.readouterr().err
    a_run("notes")


def test_a_long_or_torn_event_file_is_read_from_its_end(home):
    run = a_run("long", steps=10)
    line = json.dumps({"time": 5.0, "kind": "step", "step": 1, "tokens": 1, "loss": 1.0}) + "\n"
    with run.events.open("a") as f:
        f.write(line * (2 * TAIL_BYTES // len(line)))
        f.write(json.dumps({"time": 99.0, "kind": "eval", "step": 7, "tokens": 70, "loss": 1.25}) + "\n")
        f.write('{"time": 100.0, "kind": "ev')
    summary = RunSummary.of(run)
    assert (summary.loss, summary.tokens, summary.bits_per_byte) == (1.25, 1, None)


DEEP = "[" * 100_000
TAMPERED = {
    "result.json": ["{}", "[1]", '"x"', DEEP, "", '{"verdict": "settled", "best": "x"}', '{"version": "x"}', "\xff"],
    "forecast.json": ["[]", '"x"', DEEP, '{"time": {"value": "x", "low": null, "high": 1}}'],
    "plan.json": ["[]", "", DEEP, '{"tuning": "x"}'],
    "out/models.json": ["[]", DEEP, '{"version": 1, "models": [{"kind": 5}]}'],
    "events.jsonl": [
        DEEP + "\n", '{"kind": "step", "step": ' + "9" * 5000 + "}\n", '{"time": "x", "kind": "run"}\n',
        '{"time": 1e300, "kind": "eval", "step": 1, "tokens": 1, "loss": 1, "stderr": 0, "bits_per_byte": 1}\n',
    ],
}  # fmt: skip


@pytest.mark.parametrize(("file", "text"), [(file, text) for file, texts in TAMPERED.items() for text in texts])
def test_a_tampered_run_breaks_no_list(home, capsys, file, text):
    """It is listed with its fault, beside the others; shown, it is one error without a traceback."""
    a_run("sound", RESULT)
    (a_run("tampered", RESULT).path / file).write_text(text, encoding="latin-1")
    assert main(["runs", "--json"]) == 0
    listed = {run["name"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert listed["sound"]["verdict"] == "settled" and listed["tampered"]["status"] in ("finished", "damaged")
    assert bool(listed["tampered"]["damage"]) == (listed["tampered"]["status"] == "damaged")
    for command in (["runs", "--ledger"], ["runs", "show", "sound"], ["models"]):
        assert main(command) == 0
    assert main(["runs", "show", "tampered"]) in (0, 1)
    assert "Traceback" not in capsys.readouterr().err


def test_a_renamed_run_is_found_by_all_its_names(home, capsys):
    run = a_run("notes", RESULT)
    write_json(run.path / "plan.json", {"asked": {"model": "notes"}})
    for old, new in (("notes", "poems"), ("notes", "verse")):  # an earlier name leads to it, too
        assert main(["runs", "rename", old, new]) == 0
    assert Run.find("verse").path == Run.find("poems").path == Run.find("notes").path == run.path
    assert (Run.find("notes").name, Run.find("notes").earlier) == ("verse", ("notes", "poems"))
    assert [(one.name, one.base) for one in run_summaries()] == [("verse", "verse")]
    assert present_names("smollm2:poems") == "smollm2:verse" and free_name("poems") == "poems-2"
    with pytest.raises(UsageError, match="was the name of 'verse'"):
        Run.create("train", "poems")
    assert main(["runs", "rename", "verse", "notes"]) == 0  # and back
    assert (Run.find("verse").name, Run.find("verse").earlier) == ("notes", ("poems", "verse"))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("notes", "../notes", "not a usable name"),
        ("notes", "other", "another run"),
        ("notes", "notes", "already"),
        ("nobody", "new", "no run named"),
        ("small-seed0", "new", "found by its name"),
        ("small", "new", "small-seed0"),
        ("notes", "smollm2", "a model of the store"),
        ("notes", "gpt-4", "clients of the server"),
        ("busy", "new", "working"),
    ],
)
def test_a_name_that_would_hide_or_lose_something_is_refused(home, capsys, old, new, why):
    for name in ("notes", "other", "small", "small-seed0", "busy"):
        a_run(name, RESULT)
    for file, value in (("models/smollm2/model.json", {}), ("server/aliases.json", {"gpt-4": "smollm2:notes"})):
        (home / file).parent.mkdir(parents=True)
        write_json(home / file, value)
    with Run.find("busy").lock():
        assert main(["runs", "rename", old, new]) == (1 if old == "busy" else 2)
    assert why in capsys.readouterr().err and not list(home.glob("runs/*/names.txt"))
