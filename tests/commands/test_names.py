"""Every command that takes a model refuses a name that means several, before it does anything else."""

import pytest

from settle.base.registry import part_names
from settle.base.run import Run
from settle.cli import main
from settle.commands import Command
from settle.formats.gguf import export_gguf

ARGUMENTS = {
    "chat": ["notes", "hi"],
    "decide": ["notes", "hi"],
    "distill": ["notes", "rows.jsonl", "--student", "notes"],
    "doctor": ["notes"],
    "eval": ["notes", "--rows", "rows.jsonl"],
    "export": ["notes"],
    "generate": ["notes", "rows.jsonl"],
    "serve": ["notes", "--port", "0"],
    "shrink": ["notes", "--to", "Q4_0"],
    "tokens": ["notes", "hi"],
    "tune": ["notes", "rows.jsonl"],
}
NEEDS_DOCUMENTS = {"ask"}  # chooses its model by the same function, when there is a collection
TAKES_A_MODEL = ("a run", "runs,", "model that writes")


def names_a_model(name: str) -> bool:
    fields = Command.part(name).model_fields.values()
    return any((field.description or "").startswith(TAKES_A_MODEL) for field in fields)


def test_each_command_that_takes_a_model_is_here():
    assert {name for name in part_names("commands") if names_a_model(name)} == {*ARGUMENTS} | NEEDS_DOCUMENTS


@pytest.mark.parametrize("command", ARGUMENTS)
def test_a_name_that_means_several_models(command, tiny, home, tmp_path, monkeypatch, capsys):
    if command == "shrink":
        pytest.importorskip("llama_cpp_py_sync")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    run = Run.create("train", "notes")
    path = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, run.out / "notes.gguf", "f16", {"base": True})
    (tmp_path / "notes").write_bytes(path.read_bytes())
    assert main([command, *ARGUMENTS[command]]) == 2
    error = capsys.readouterr().err
    assert "'notes' means several models: run:notes" in error and "say which: `run:notes` or `./notes`" in error
