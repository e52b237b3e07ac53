"""What is exported by a name, and what is refused before anything is read."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from settle.base.errors import UsageError
from settle.base.event_log import Events
from settle.base.files import write_json
from settle.base.run import Run
from settle.evaluate.gate import export as module
from settle.evaluate.gate.export import ADAPTER_FOLDER, HF_FOLDER, _exported, _turns, export, export_by_name
from settle.formats import Format
from tests.records import into

GGUF, ADAPTER = Format.part("gguf"), next(kind for kind in Format.parts().values() if kind.holds == "adapter")


def finished(home: Path, *folders: str) -> Run:
    run = Run.create("train", "r")
    for folder in folders:
        (run.out / folder).mkdir(parents=True)
    write_json(run.path / "plan.json", {})
    return run


def asked(form: type[Format] = GGUF, name: str = "r") -> Any:
    return _exported(name, None, form(), Events())


def test_a_run_without_a_model_is_refused_and_how_it_is_finished_said(home: Path) -> None:
    finished(home)
    with pytest.raises(UsageError, match="r has no finished model") as caught:
        asked()
    assert caught.value.fix == "`settle resume r` finishes it"


def test_a_run_that_made_only_a_file_names_it(home: Path) -> None:
    run = finished(home)
    run.out.mkdir(exist_ok=True)
    (run.out / "r-Q8_0.gguf").write_bytes(b"")
    write_json(run.path / "result.json", {"verdict": "done", "why": "it is small"})
    with pytest.raises(UsageError, match="is an exported file already: .*r-Q8_0.gguf"):
        asked()


def test_what_a_run_made_is_what_is_exported(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("_model_of_run", "_adapter_of_run", "_adapter_of_folder"):
        monkeypatch.setattr(module, kind, lambda *args, kind=kind: kind)
    run = finished(home, HF_FOLDER)
    assert asked() == "_model_of_run"
    with pytest.raises(UsageError, match="r trained every weight: it has no adapter") as caught:
        asked(ADAPTER)
    assert "gguf" in caught.value.fix and ADAPTER.part_name() not in caught.value.fix.split(": ")[1].split(", ")
    (run.out / ADAPTER_FOLDER).mkdir()
    assert asked() == asked(ADAPTER) == "_adapter_of_run"
    folder = home / "peft"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    assert asked(name=str(folder)) == "_adapter_of_folder"


def test_a_file_that_is_there_is_replaced_only_when_asked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[Any] = []
    monkeypatch.setattr(module, "_exported", lambda *args: SimpleNamespace(name="r", gguf_keys={}))
    monkeypatch.setattr(module, "export", lambda exported, form, path, limit, check: None)
    there, events = tmp_path / "x.gguf", Events(listeners=[into(heard)])
    there.write_text("x")

    def to(path: Path | None, replace: bool = False) -> Path:
        return export_by_name("r", GGUF(), path, None, 0.02, events, replace)[0]

    with pytest.raises(UsageError, match="x.gguf exists already"):
        to(there)
    assert to(there, replace=True) == there and to(tmp_path / "y.gguf").name == "y.gguf"
    with pytest.raises(UsageError, match="there is no folder"):
        to(tmp_path / "none" / "y.gguf")
    monkeypatch.setattr(GGUF, "default_path", lambda self, name: tmp_path / "made" / f"{name}.gguf")
    assert to(None) == tmp_path / "made" / "r.gguf" and (tmp_path / "made").is_dir()
    assert [event["text"].split()[0] for event in heard[:2]] == ["reading", "wrote"] and len(heard) == 6


@pytest.mark.parametrize(
    ("of_run", "of_base", "said"),
    [
        ({"t": "new"}, {"t": "old"}, ("new", False)),
        ({"t": "same"}, {"t": "same"}, (None, False)),
        ({"t": "same"}, {"t": "same", "plain": True}, ("same", False)),  # the base took no turns by itself
        ({}, {"t": "old"}, (None, False)),
        ({}, {"t": "old", "plain": True}, (None, True)),
        ({"t": "new", "plain": True}, {"t": "old"}, (None, False)),
    ],
)
def test_the_template_of_a_tuned_model_goes_with_it_where_it_is_another(
    home: Path, monkeypatch: pytest.MonkeyPatch, of_run: Any, of_base: Any, said: tuple[str | None, bool]
) -> None:
    files = [SimpleNamespace(path="draft.gguf", kind="draft"), SimpleNamespace(path="r.gguf", kind="model")]
    monkeypatch.setattr(module, "models_of", lambda run: files)

    def metadata(of: Any) -> dict[str, Any]:
        return {"tokenizer.chat_template": of.get("t", ""), "settle.base": of.get("plain", False)}

    read: list[str] = []

    def read_gguf(path: Path) -> Any:
        read.append(path.name)
        return SimpleNamespace(metadata=metadata(of_run))

    monkeypatch.setattr(module, "read_gguf", read_gguf)
    base: Any = SimpleNamespace(metadata=metadata(of_base), tokenizer=SimpleNamespace(chat_template=of_base["t"]))
    assert _turns(Run.create("tune", "r"), base) == said and read == ["r.gguf"]


def test_an_adapter_is_merged_only_where_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    from settle.evaluate.gate import export as functions

    monkeypatch.setattr(functions, "export_adapter", lambda exported, form, path: "adapter")
    monkeypatch.setattr(functions, "export_model", lambda exported, form, path, check: exported)
    made = functions.ExportedAdapter.__new__(functions.ExportedAdapter)
    monkeypatch.setattr(functions.ExportedAdapter, "merged", lambda self, limit: f"merged {limit}")
    for holds, wanted in (("adapter", "adapter"), ("model", "merged 0.5")):
        form: Any = SimpleNamespace(holds=holds)
        assert export(made, form, Path("x"), 0.5) == wanted
