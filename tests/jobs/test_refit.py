"""`settle train --refit`: a second model on all of the text, beside the judged one and apart from it."""

import errno
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from settle.base.files import home
from settle.base.run import Run
from settle.cli import main
from settle.data.prepare import prepared
from settle.data.store import StoreWriter, TokenStore
from settle.library.resolve import resolve_gguf

SETTINGS = [
    "--size", "60k", "--dtype", "float32", "--context", "32", "--batch-tokens", "128", "--threads", "1",
    "--data.vocab-size", "400", "--refit",
]  # fmt: skip
SHORT, LONG = ("--steps", "40"), ("--steps", "65")


def train(text: Path, capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[dict[str, Any], str]:
    """The result that is printed last, and what was said."""
    assert main(["train", str(text), *SETTINGS, *argv, "--json"]) == 0
    out, err = capfd.readouterr()
    return json.loads(out.splitlines()[-1]), err


def interrupted(argv: list[str], name: str) -> int:
    """The exit code of a command that gets Ctrl-C once a run of that name has taken 5 steps."""
    over = threading.Event()

    def watch() -> None:
        events = f"runs/*-{name}-*/events.jsonl"
        while not over.wait(0.005):
            if any('"kind": "step", "step": 5,' in path.read_text() for path in home().glob(events)):
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return main(argv)
    finally:
        over.set()
        watcher.join()


def weights(run: Run) -> dict[str, np.ndarray]:
    return load_file(run.out / "hf" / "model.safetensors")


def test_it_learns_from_all_of_the_text_and_is_judged_by_nothing(text: Path, capfd: Any) -> None:
    printed, said = train(text, capfd, *SHORT, "--name", "a")
    judged, refit = Run.find("a"), Run.find("a-unjudged")
    done, made = judged.result(), refit.result()
    assert done and made and printed == done.to_json()
    assert "refit: after the verdict, the same steps on all of the text take about" in said
    plans = [run.read("plan.json") for run in (judged, refit)]
    corpus = prepared(plans[0]["corpus"])
    assert corpus
    sides = [corpus.train, corpus.selection, corpus.held_out]
    whole = TokenStore(corpus.train.folder.parent / "all")
    assert whole.num_bytes == sum(side.num_bytes for side in sides) == text.stat().st_size
    documents = [side.document(i).tolist() for side in sides for i in range(side.num_documents)]
    assert [whole.document(i).tolist() for i in range(whole.num_documents)] == documents
    changed = {key for key in plans[0]["loop"] if plans[0]["loop"][key] != plans[1]["loop"][key]}
    assert changed - {"average"} == {"until_settled", "is_refit"} and plans[1]["loop"]["max_steps"] == 40
    events = [[json.loads(line) for line in run.events.read_text().splitlines()] for run in (judged, refit)]
    rates = [[e["lr"] for e in told if e["kind"] == "step"] for told in events]
    assert rates[0] == rates[1]
    assert not [e for e in events[1] if e["kind"] == "eval"]
    assert made.verdict == "not judged" and made.best and made.best.loss is None and made.gate["passed"]
    card = (refit.out / "card.md").read_text()
    assert "**not judged**" in card and "bits per byte |" not in card and "Judged on" not in card
    assert resolve_gguf("a-unjudged").source.path == refit.out / "a-unjudged.gguf"
    assert main(["runs", "show", "a-unjudged"]) == 0
    shown = capfd.readouterr().out
    assert "not judged" in shown and "held-out loss" not in shown
    assert any((weights(judged)[name] != weight).any() for name, weight in weights(refit).items())


def test_held_out_text_of_the_user_stays_out_of_it(text: Path, capfd: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("quiet gulls above the walls of stone turn the lights over the harbour and the old sea. " * 40)
    _, said = train(text, capfd, *SHORT, "--name", "b", "--data.held-out-from", str(own))
    assert "your held-out text stays out of it" in said
    (whole,) = (home() / "tokens").glob("*/all")
    assert TokenStore(whole).num_bytes == text.stat().st_size
    assert main(["train", str(text), *SETTINGS, *SHORT, "--name", "b-unjudged"]) == 2
    Run.find("b").path.rename(Run.find("b").path.with_name("2026-01-01-train-c-abcdef"))
    assert main(["train", str(text), *SETTINGS, *SHORT, "--name", "b"]) == 2
    assert "'b-unjudged' exists already" in capfd.readouterr().err


def test_one_that_was_stopped_is_resumed_by_either_name_to_the_same_bits(
    text: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(text, capfd, *LONG, "--name", "whole")
    argv = ["train", str(text), *SETTINGS, *LONG, "--name", "cut"]
    assert interrupted(argv, "refit-cut") == 130
    assert "`settle resume cut-unjudged` continues" in capfd.readouterr().err
    judged, before = Run.find("cut"), (Run.find("cut").path / "result.json").read_bytes()
    assert judged.status == "finished" and Run.find("cut-unjudged").status == "interrupted"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("settle.evaluate.gate.export.export_safetensors", full)
        assert main(["resume", "cut"]) == 1
    assert "the trained weights are safe" in " ".join(capfd.readouterr().err.split())
    assert main(["resume", "cut", "--json"]) == 0
    out, said = capfd.readouterr()
    assert json.loads(out.splitlines()[-1])["verdict"] == judged.result().verdict
    assert (judged.path / "result.json").read_bytes() == before
    one, other = (weights(Run.find(f"{name}-unjudged")) for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert main(["resume", "cut"]) == 0
    assert "there is nothing to resume" in capfd.readouterr().err


def test_a_time_budget_is_for_both_models(text: Path, capfd: Any) -> None:
    """What is left when the run is planned is halved; a refit that does not fit would be said before the first step."""
    argv = ["train", str(text), "--size", "60k", "--threads", "1", "--dry", "--json", "--time", "5m"]
    budgets = []
    for more in ([], ["--refit"]):
        assert main([*argv, *more]) == 0
        budgets.append(json.loads(capfd.readouterr().out.splitlines()[-1]))
    whole, half = (made["plan"]["loop"]["seconds"] for made in budgets)
    assert whole == 300 and 140 < half < 150 + 0.5 * 60
    assert "refit" not in budgets[0]
    assert half + budgets[1]["refit"]["time"] < 300
    assert main([*argv[:6], "--refit", "--time", "2s"]) == 2  # less than a second run takes to begin
    assert re.search(r"nothing would be learned → give --time \d+m", " ".join(capfd.readouterr().err.split()))


def test_stores_are_joined_document_by_document(tmp_path: Path) -> None:
    stores = []
    for place, lengths in enumerate(([3, 1, 4], [2])):
        with StoreWriter(tmp_path / str(place), 0, np.uint16) as writer:
            ids = np.arange(sum(lengths)) + 10 * place
            origins = np.array([[place, row, row + 7] for row in range(len(lengths))])
            writer.append(ids, np.cumsum(lengths), origins, len(ids))
            stores.append(writer.close())
    with StoreWriter(tmp_path / "joined", 0, np.uint16) as writer:
        for store in stores:
            writer.extend(store)
        joined = writer.close()
    assert [joined.document(i).tolist() for i in range(4)] == [[0, 1, 2], [3], [4, 5, 6, 7], [10, 11]]
    assert joined.origins.tolist() == [[0, 0, 7], [0, 1, 8], [0, 2, 9], [1, 0, 7]]
    assert (joined.num_bytes, joined.num_tokens) == (10, 10)
