"""File names that are not UTF-8, or hold control characters, cost nobody a run: from its input to its card."""

import json
import os
import random
import subprocess
import sys
import tomllib

import pytest

from settle.base.run import Run
from settle.base.settings import read_recipe, recipe_text
from settle.base.visible import visible_name
from settle.cli import main

LATIN1 = os.fsdecode(b"caf\xe9")
WORDS = ("sea", "lever", "frost", "guard", "valve", "turns", "slowly", "under", "water", "crew", "watches", "care")
TINY = ["--size", "200k", "--steps", "2", "--threads", "1"]


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder with texts and rows of which each has a name that some writer could not write."""
    folder = tmp_path / os.fsdecode(b"d\xe9pot")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("file names are Unicode on this file system")
    monkeypatch.chdir(tmp_path)
    dice = random.Random(1)
    for name in (f"{LATIN1}.txt", "del\x7f.txt", "two\nlines \x1b[31m.txt"):
        paragraphs = (" ".join(dice.choices(WORDS, k=40)) for _ in range(90))
        (folder / name).write_text("\n\n".join(paragraphs))
    (tmp_path / f"{LATIN1}.txt").write_text("\n\n".join(" ".join(dice.choices(WORDS, k=40)) for _ in range(99)))
    for name in (f"rows-{LATIN1}.jsonl", f"held-{LATIN1}.jsonl"):
        rows = [{"prompt": " ".join(dice.choices(WORDS, k=5)), "completion": dice.choice(WORDS)} for _ in range(60)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def finished(name):
    run = Run.find(name)
    card = (run.out / "card.md").read_text(encoding="utf-8")
    assert run.status == "finished" and not any(sign in card for sign in "\x1b\x7f\udce9")
    return run, card


def test_train_resume_and_recipe(odd, home):
    assert main(["train", str(odd), "--name", "odd", "--data.held-out-from", f"{LATIN1}.txt", *TINY]) == 0
    run, card = finished("odd")
    assert "`caf\\xe9.txt`" in card and "`del\\x7f.txt`" in card and "`two\\nlines \\x1b[31m.txt`" in card
    (run.path / "result.json").unlink()
    (run.out / "card.md").unlink()
    assert main(["resume", "odd"]) == 0
    assert finished("odd")[1].count("caf\\xe9") == card.count("caf\\xe9")
    tomllib.loads((run.path / "recipe.toml").read_text(encoding="utf-8"))
    assert main(["train", "--recipe", str(run.path / "recipe.toml"), "--name", "again", "--dry"]) == 0
    assert main(["runs", "show", "odd"]) == 0


@pytest.mark.slow
def test_tune_distill_and_chat_with_a_model_of_such_a_name(odd, home, tiny, monkeypatch):
    from settle.formats.gguf import export_gguf

    model = f"./{LATIN1}.gguf"
    export_gguf(tiny.part, tiny.weights, tiny.tokenizer, odd.parent / model, "f32", {"base": True})
    tuned = ["--rows.held-out-from", f"held-{LATIN1}.jsonl", "--name", "tuned", "--steps", "2", "--threads", "1"]
    tuned += ["--compare-rows", "4"]
    assert main(["tune", model, f"rows-{LATIN1}.jsonl", *tuned]) in (0, 3)  # done, or done and no better
    assert "caf\\xe9" in finished("tuned")[1]
    less = ["--drop-layers", "1", "--name", "small", "--steps", "2", "--threads", "1"]
    assert main(["distill", model, f"{LATIN1}.txt", *less]) in (0, 3)
    finished("small")
    assert main(["chat", model, "the sea", "--max-tokens", "3"]) == 0
    assert main(["chat", "tuned", "the sea", "--max-tokens", "3"]) == 0
    assert main(["export", "tuned", "--out", f"./out-{LATIN1}.gguf"]) == 0


def test_index_knows_them_by_signs_for_their_bytes(odd, home, capsys):
    folder = odd.parent / LATIN1
    folder.mkdir()
    (folder / f"{LATIN1}.txt").write_text("The frost guard is a lever.\n")
    for unchanged in (False, True):
        assert main(["index", str(folder), "--name", "docs"]) == 0
        assert ("1 unchanged" in capsys.readouterr().err) is unchanged
    assert main(["ask", "docs", "What is the frost guard?", "--passages"]) == 0
    assert "caf\\xe9/caf\\xe9.txt" in capsys.readouterr().out


def test_an_argument_that_is_no_text_and_no_file(home, capsys):
    assert main(["ask", "docs", LATIN1]) == 2
    assert "caf\\xe9 is not UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plain", "\x7f", "\x1b[0m\n\x85\u2028", LATIN1, "file:///plain", "100%"])
def test_a_recipe_gives_back_every_name(name, tmp_path):
    path, value = tmp_path / "recipe.toml", str(tmp_path / name) if name == LATIN1 else name
    path.write_text(recipe_text({"inputs": [value], "data": {"held_out_from": value}}), encoding="utf-8")
    assert read_recipe(path) == {"inputs": [value], "data": {"held_out_from": value}}


def test_names_for_people():
    assert visible_name(f"{LATIN1}\n\x1b\x9b\u202e.txt") == "caf\\xe9\\n\\x1b\\x9b\\u202e.txt"
    assert visible_name("Über die Straße.md") == "Über die Straße.md"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_an_output_that_is_not_utf8(encoding, home):
    """What Windows does with `settle runs > list.txt`."""
    run = Run.create("train", "notes")
    result = {"verdict": "settled", "why": "≤ 0.5 % – “settled”", "forecast": {"loss": {"value": 2}}}
    (run.path / "result.json").write_text(json.dumps(result | {"actual": {"loss": 2.0}}))
    done = _settle(["runs", "show", "notes"], env=os.environ | {"PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and b"Traceback" not in done.stderr and b"settled" in done.stdout + done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams(closed, home):
    Run.create("train", "notes")
    command = f'"{sys.executable}" -m settle runs {closed}'
    done = subprocess.run(command, shell=True, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stdout + done.stderr


def test_a_question_on_stdin_that_is_not_utf8(home, tmp_path):
    (tmp_path / "plain.txt").write_text("The frost guard is a lever.\n")
    assert main(["index", str(tmp_path / "plain.txt"), "--name", "docs"]) == 0
    done = _settle(["ask", "docs", "--model", "none"], input=b"What is the frost guard, caf\xe9?")
    assert done.returncode in (0, 3) and b"Traceback" not in done.stderr


def _settle(argv, **options):
    return subprocess.run([sys.executable, "-m", "settle", *argv], capture_output=True, **options)
