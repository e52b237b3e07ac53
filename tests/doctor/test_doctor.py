"""`settle doctor` from the look to the fix, with a check that another package brings."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from settle.cli import main
from settle.doctor.proof_folder import opened
from tests import examples

CODE = Path(__file__).with_name("wobbly_knob.py")


@pytest.fixture
def wobbly(home, tmp_path_factory, monkeypatch):
    """Set a level that is too large, and return the home."""
    site = tmp_path_factory.mktemp("site")
    examples.install(site, {"doctor/checks": "wobbly_knob:WobblyKnob"}, monkeypatch, lambda name: CODE.read_text())
    (home / "level").write_text("4")
    yield home
    monkeypatch.undo()
    examples.forget_parts()


def only(*arguments):
    return main(["doctor", "--only", "901", *arguments])


def folder(home):
    return next((home / "doctor").iterdir())


def test_the_look_changes_nothing_and_says_likely(wobbly, capsys):
    assert only() == 3
    out = capsys.readouterr()
    assert "the level is 4" in out.out and "likely, not proven" in out.out + out.err
    assert not (wobbly / "asked").exists() and (wobbly / "level").read_text() == "4"


def test_nothing_wrong_is_0(wobbly, capsys):
    (wobbly / "level").write_text("2")
    assert only() == 0
    assert "found nothing wrong" in "".join(capsys.readouterr())


def test_a_proof_says_its_time_before_and_leaves_its_folder(wobbly, capsys):
    assert main(["doctor", "--prove", "wobbly-knob"]) == 3
    said = "".join(capsys.readouterr())
    assert said.index("about 0.3 s") < said.index("proven: the level is 4") and "the fix holds on other items" in said
    record = json.loads((folder(wobbly) / "proof.json").read_text())
    assert record["proof"]["state"] == "proven" and record["proof"]["verified"] and record["changed"] == "level = 2"
    assert record["again"] == f"settle doctor {folder(wobbly)}"
    assert (wobbly / "level").read_text() == "4", "without --fix nothing is written"


def test_the_folder_runs_it_again_from_its_first_measurement(wobbly, capsys):
    main(["doctor", "--prove", "901"])
    asked = (wobbly / "asked").read_text()
    capsys.readouterr()
    assert main(["doctor", str(folder(wobbly))]) == 3
    assert "proven: the level is 4" in "".join(capsys.readouterr())
    assert (wobbly / "asked").read_text() == asked * 2


def test_after_ctrl_c_the_same_command_goes_on(wobbly, capsys):
    (wobbly / "interrupt").touch()
    assert main(["doctor", "--prove", "901"]) == 130
    assert "the same command goes on" in "".join(capsys.readouterr())
    (wobbly / "interrupt").unlink()
    assert main(["doctor", "--prove", "901"]) == 3
    assert len((wobbly / "asked").read_text().splitlines()) == 32


def test_a_doctor_that_was_killed_leaves_nothing_locked(wobbly, capsys):
    (wobbly / "hang").touch()
    code = "import sys; from settle.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([sys.executable, "-c", code, "doctor", "--prove", "901"], env=environment)
    while not (wobbly / "hanging").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    (folder(wobbly) / "fixed.gguf").write_bytes(b"a copy of a model")
    (wobbly / "hang").unlink()
    assert main(["doctor", "--prove", "901"]) == 3
    assert "proven: the level is 4" in "".join(capsys.readouterr())
    assert not list(folder(wobbly).glob("*.gguf"))


def test_fix_writes_and_looks_again(wobbly, capsys):
    main(["doctor", "--prove", "901", "--fix"])
    assert "wrote level = 2" in "".join(capsys.readouterr()) and (wobbly / "level").read_text() == "2"
    assert only() == 0


def test_a_fix_after_which_it_is_still_so_is_taken_back(wobbly, capsys):
    (wobbly / "no-write").touch()
    main(["doctor", "--prove", "901", "--fix"])
    assert "taken back" in "".join(capsys.readouterr()) and (wobbly / "level").read_text() == "4"


def test_a_fix_that_makes_something_else_worse_is_not_written(wobbly, capsys):
    (wobbly / "harm").touch()
    main(["doctor", "--prove", "901", "--fix"])
    said = "".join(capsys.readouterr())
    assert "the fix holds on other items" in said and "something else got worse with it: from 1 to 10" in said
    assert "the fix makes something else worse, so it is not written" in said
    assert (wobbly / "level").read_text() == "4"


def test_what_is_ruled_out_is_nothing_wrong(wobbly, capsys):
    (wobbly / "idle").touch()
    assert main(["doctor", "--prove", "901"]) == 0
    assert "ruled out" in "".join(capsys.readouterr())
    assert main(["doctor", str(folder(wobbly))]) == 0, "nor when its proof is run again"


def test_copies_of_a_model_do_not_stay(wobbly, capsys):
    main(["doctor", "--prove", "901"])
    (folder(wobbly) / "fixed.gguf").write_bytes(b"large")
    (folder(wobbly) / "whole.record").mkdir()
    main(["doctor", "--prove", "901"])
    assert sorted(path.name for path in folder(wobbly).iterdir()) == [".lock", "measurements.jsonl", "proof.json"]


def test_two_doctors_at_once(wobbly, capsys):
    main(["doctor", "--prove", "901"])
    with opened(folder(wobbly)):
        assert main(["doctor", "--prove", "901"]) == 1
    assert "another settle is proving this" in capsys.readouterr().err


def test_a_damaged_proof_folder(wobbly, capsys):
    main(["doctor", "--prove", "901"])
    (folder(wobbly) / "proof.json").write_text('{"subject": null, "finding": {}}')
    assert main(["doctor", str(folder(wobbly))]) == 1
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wobbly-nob", "902"])
def test_a_check_that_there_is_not(wobbly, name, capsys):
    assert main(["doctor", "--prove", name]) == 2
    assert "there is no check" in capsys.readouterr().err


def test_json_is_the_last_line(wobbly, capsys):
    main(["doctor", "--only", "901", "--prove", "all", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    (found,) = result["findings"]
    assert (found["number"], found["state"], found["fix"]) == (901, "proven", "echo 2 > level")
    assert found["proof"]["verified"]
