"""The cells of the notebooks, with a tiny model and few steps: what they show is what the run's files have."""

import base64
import io
import json
import re
import runpy
from html import unescape
from pathlib import Path

import nbformat
import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from settle.api import open_run
from settle.base.run import Run
from settle.evaluate.compare.verdict_file import VerdictFile
from settle.formats.gguf import export_gguf
from tests import examples
from tests.trained import trained

ROOT = Path(__file__).parent.parent
run = runpy.run_path(str(ROOT / "bench/notebooks.py"))["run"]
STORED = sorted((ROOT / "notebooks").glob("*.ipynb"))
CURSOR = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
TINY = {"threads": 1, "dtype": "float32"}


def shown(notebook, part):
    """The outputs of the cell that has this in its code, or is it: streams, and what is displayed by its type."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and part in cell.source]
    (cell,) = [cell for cell in code if cell.source == part] or code
    return [output.get("data") or {output["name"]: output["text"]} for output in cell.outputs]


def has_colour(outputs, name, alpha):
    """Whether the only picture among outputs has pixels of a colour that lies on white."""
    (png,) = (base64.b64decode(output["image/png"]) for output in outputs if "image/png" in output)
    wanted = 1 - alpha * (1 - np.array(to_rgb(name)))
    return (np.abs(imread(io.BytesIO(png))[..., :3] - wanted).max(axis=-1) < 0.01).sum() > 50


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_a_stored_notebook_shows_a_whole_run(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    pictures = [o.data["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    assert all(len(base64.b64decode(png)) < 200_000 for png in pictures)
    assert len(pictures) == (path.stem != "ask") and path.stat().st_size < 300_000
    assert not [o for o in outputs if CURSOR.search(o.get("text", "") + o.get("data", {}).get("text/plain", ""))]
    for cell in notebook.cells:
        for target in re.findall(r"\]\(([^)#:]+)\)", cell.source) if cell.cell_type == "markdown" else ():
            assert (path.parent / target).exists(), target


def test_train_shows_the_curve_with_its_forecast(text):
    parameters = f"TEXT = {str(text)!r}\nSETTINGS = {TINY | {'size': '60k', 'steps': 24}}\nPROMPT = 'sea wind'"
    notebook = run("train", parameters)
    (folder,) = Run.all()
    finished = open_run(folder.name)
    (progress,) = shown(notebook, "settle.train(")
    assert [*progress] == ["stdout"] and not CURSOR.search(progress["stdout"])
    assert "checks of the recipe passed" in progress["stdout"] and "start, step 0: sea wind" in progress["stdout"]
    (table,) = shown(notebook, "run.result")
    for fact in (finished.name, f"{finished.result.best.bits_per_byte:.4f}", "actual"):
        assert fact in table["text/html"]
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    number = len([event for event in events if event["kind"] == "eval" and not event["whole"]])
    (said,) = shown(notebook, "json.loads(")
    assert said["stdout"].startswith(f"{number} evaluations; ") and number > 2
    picture = shown(notebook, "axhspan")
    assert has_colour(picture, "tab:orange", 0.15) and has_colour(picture, "tab:blue", 1.0)
    (written,) = shown(notebook, "run.generate(")
    assert written["stdout"].startswith("sea wind") and len(written["stdout"]) > 20


def test_tune_shows_the_paired_verdict(home, tmp_path):
    tiny = trained()
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "base.gguf", "f32", {})
    settings = TINY | {"steps": 24, "batch_rows": 8, "compare_rows": 12, "rates": {"lr": 0.01}}
    parameters = f"BASE = {str(base)!r}\nROWS = {str(tmp_path / 'orders.jsonl')!r}\nSETTINGS = {settings}"
    notebook = run("tune", parameters)
    (folder,) = Run.all()
    verdict = VerdictFile.read(folder.out / "verdict.json")
    (first,) = shown(notebook, "def example")
    assert json.loads(first["stdout"].splitlines()[0])["completion"].startswith('{"name"')
    (headline,) = shown(notebook, "verdict.json")
    assert headline["stdout"].strip() == verdict.headline
    picture = shown(notebook, "axes.errorbar(")
    assert has_colour(picture, "tab:red", 1.0) and has_colour(picture, "grey", 1.0)
    checked = shown(notebook, "verify=True")
    assert "again" in str(checked)
    (answers,) = shown(notebook, "settle.chat(")
    assert re.match(rf"base: .*^{folder.name}: ", answers["stdout"], re.S | re.M)


def test_ask_shows_the_cited_passage_and_refuses(home, tmp_path):
    points = "[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n"
    with examples.joined(tmp_path, points):
        documents = ROOT / "bench/asked/documents/oncall"
        notebook = run("ask", f"FOLDER = {str(documents)!r}\nMODEL = 'none'\nSETTINGS = {{'embedder': 'hashed'}}")
    (passage,) = shown(notebook, "<mark>")
    html = passage["text/html"]
    name, line = re.search(r"oncall/([\w-]+\.md):(\d+)", html).groups()
    (mark, *_) = re.findall("<mark>(.*?)</mark>", html)
    assert "Copies are kept for 35 days" in mark
    assert (documents / name).read_text().splitlines()[int(line) - 1] == unescape(mark)
    assert f"[1] {documents / name}" in shown(notebook, "quoted = ")[-1]["text/html"]
    assert shown(notebook, "refused.kind")[0]["stdout"].startswith("refused - The documents do not answer this")


def test_an_interrupted_cell_leaves_a_run_that_resumes(text):
    manager, client = start_new_kernel()
    settings = TINY | {"size": "60k", "steps": 60, "name": "stopped"}

    def interrupt_training(message):
        if re.search(r"^step \d", message["content"].get("text", ""), re.M):
            manager.interrupt_kernel()

    try:
        train = f"import settle\nsettle.train({str(text)!r}, **{settings})"
        reply = client.execute_interactive(train, output_hook=interrupt_training, timeout=120)["content"]
        what, fix = reply["traceback"]
        assert (reply["ename"], what) == ("RunError", "RunError: stopped is not finished")
        assert "settle.resume('stopped')" in fix and Run.find("stopped").result() is None
        assert [*Run.find("stopped").checkpoints.iterdir()]
        resumed, resume = [], "print(settle.resume('stopped').result.actual)"
        reply = client.execute_interactive(resume, output_hook=resumed.append, timeout=120)["content"]
        assert reply["status"] == "ok", resumed
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    events = [json.loads(line) for line in Run.find("stopped").events.read_text().splitlines()]
    steps = [event["step"] for event in events if event["kind"] == "step"]
    assert steps == [*range(1, 61)], "each step once"
