"""`settle eval` with real models in real children."""

import json

import pytest

from settle.base.files import write_json
from settle.base.run import Run
from settle.cli import main
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.library.resolve import resolve
from tests.trained import adapter, merged

PROMPTS = (
    "def __init__(self",
    "return self.",
    "for action in",
    "if not ",
    "raise ",
    "parser = ",
    "class ",
    "import ",
    "self.",
    "x = ",
)


@pytest.fixture(scope="module")
def files(tiny, tmp_path_factory):
    """A base, an adapter over it, the same merged, and rows whose answers are those of the adapted model."""
    folder = tmp_path_factory.mktemp("eval")
    lora = adapter(tiny.part, strength=0.3)
    base = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, folder / "base.gguf", "f32", {"base": True})
    export_lora(tiny.part, lora, folder / "lora.gguf")
    export_gguf(tiny.part, merged(tiny.weights, lora), tiny.tokenizer, folder / "tuned.gguf", "f32", {"base": True})
    from settle.infer.engine import Engine

    with Engine(base, 64, threads=1, adapter=folder / "lora.gguf") as engine:
        rows = [{"prompt": p, "completion": engine.answer(engine.plain(p), 6)[0]} for p in PROMPTS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(capsys, *args):
    code = main(["eval", *map(str, args), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else {}, err


def test_adapter_against_its_base(files, home, capsys):
    given = ("--rows", files / "rows.jsonl", "--only-rows", "--max-tokens", 6, "--score", "exact")
    code, result, err = run(capsys, files / "base.gguf", "--adapter", files / "lora.gguf", *given)
    assert (code, result["verdict"]) == (0, "better"), err
    assert result["score"]["tuned"] == 1 > result["score"]["base"] and result["forgetting"] is None
    code, result, _ = run(capsys, files / "base.gguf", "--against", files / "tuned.gguf", *given)
    assert (code, result["verdict"]) == (3, "worse")
    assert result["headline"].startswith("worse than tuned: exact match 100.0 % → ")


def test_a_run_and_what_it_forgot(tiny, files, home, capsys):
    made = Run.create("tune", "mine")
    (made.out / "mine-lora.gguf").write_bytes((files / "lora.gguf").read_bytes())
    write_json(made.path / "plan.json", {"tuning": {"base": str(files / "base.gguf")}})
    ref = resolve("mine")
    assert (ref.name, ref.weights, ref.adapter) == ("mine", files / "base.gguf", made.out / "mine-lora.gguf")
    known = files / "known.txt"
    known.write_text(tiny.held_out[0][:800])
    assert main(["eval", "mine", "--rows", str(files / "rows.jsonl"), "--familiar", str(known)]) in (0, 3)
    out, err = capsys.readouterr()
    assert (
        "the answers that changed most" not in out and "loss on familiar text" in out
    )  # tables have no title in a pipe
    assert "forgot" in err and "instructions followed" not in out  # a base that takes no turns


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("base.gguf",), "--against"),
        (("base.gguf", "--against", "tuned.gguf"), "--rows FILE"),
        (("base.gguf", "--against", "tuned.gguf", "--rows", "rows.jsonl", "--score", "nonsense"), "no score"),
        (("base.gguf", "--against", "nobody", "--rows", "rows.jsonl"), "no model 'nobody'"),
        (("base.gguf", "--adapter", "tuned.gguf", "--rows", "rows.jsonl"), "no LoRA adapter"),
        (("base.gguf", "--against", "tuned.gguf", "--rows", "broken.jsonl"), "rows cannot be used"),
        (("base.gguf", "--adapter", "lora.gguf", "--rows", "rows.jsonl", "--familiar", "no.txt"), "cannot be read"),
    ],
)
def test_what_cannot_be_compared(args, says, files, home, capsys, monkeypatch):
    monkeypatch.chdir(files)
    turns = [{"role": "assistant", "content": "a"}]
    (files / "broken.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert main(["eval", *args]) in (1, 2)
    assert says in capsys.readouterr().err
