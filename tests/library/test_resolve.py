"""The one rule for names of models: a table of situations, and every resolver that commands use agrees on each."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from settle.base.errors import FormatError, RunError, SettleError, UsageError
from settle.base.files import write_json
from settle.base.run import Run
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.formats.safetensors import export_safetensors
from settle.library import facts
from settle.library.pretrained import open_pretrained
from settle.library.reference import ModelRef
from settle.library.resolve import (
    all_refs,
    find_run,
    portable_name,
    resolve,
    resolve_draft,
    resolve_gguf,
    resolve_whole,
)
from settle.library.run_models import MadeModel, models_of, record_made
from settle.library.store import StoredModel, add_model, damaged_models, stamp_of, store
from tests.trained import adapter


class Machine:
    """A home and a current folder, and what may be in them."""

    def __init__(self, tiny, home: Path, here: Path) -> None:
        self.tiny, self.home, self.here = tiny, home, here
        self.gguf = export_gguf(tiny.part, tiny.weights, tiny.tokenizer, home / "original.gguf", "q8_0")

    def file(self, name: str) -> Path:
        path = self.here / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.gguf.read_bytes())
        return path

    def folder(self, name: str) -> Path:
        return export_safetensors(self.tiny.part, self.tiny.weights, self.tiny.tokenizer, self.here / name)

    def run(self, name: str) -> Path:
        run = Run.create("train", name)
        path = run.out / f"{name}.gguf"
        path.write_bytes(self.gguf.read_bytes())
        return path

    def stored(self, name: str, path: Path | None = None) -> Path:
        inside = store() / name / f"{name}.gguf"
        if path is None:
            inside.parent.mkdir(parents=True)
            inside.write_bytes(self.gguf.read_bytes())
        path = path or inside
        add_model(
            StoredModel(name, "gguf" if path.is_file() else "safetensors", path, "0f", "hub:x/y", "", stamp_of(path))
        )
        return path

    def adapter(self, name: str, base: Path) -> Path:
        run = Run.create("tune", name)
        write_json(run.path / "plan.json", {"tuning": {"base": str(base), "base_name": "below"}})
        return export_lora(self.tiny.part, adapter(self.tiny.part), run.out / f"{name}-lora.gguf")

    def draft(self, name: str) -> Path:
        path = self.run(name)
        run = Run.find(name)
        write_json(run.path / "result.json", {"pair": {"draft_tokens": 3, "draft_sure": 0.5, "speed_up": 1.5}})
        draft = run.out / f"{name}-draft.gguf"
        draft.write_bytes(path.read_bytes())
        return path


@pytest.fixture
def machine(tiny, home, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return Machine(tiny, home, here)


def agree(name: str) -> ModelRef:
    """What a name of a whole model resolves to, after every resolver has said the same."""
    ref = resolve(name)
    assert resolve_whole(name) == ref and open_pretrained(name).source.path == ref.path
    if ref.source.kind == "gguf":
        assert resolve_gguf(name) == ref and resolve_draft(name).kind in ("model", "draft")
    return ref


SITUATIONS: dict[str, tuple[Callable[[Machine], Path], str, str]] = {
    "a file": (lambda m: m.file("x.gguf"), "x.gguf", "x"),
    "a file in a folder": (lambda m: m.file("models/x.gguf"), "models/x.gguf", "x"),
    "a file without an ending": (lambda m: m.file("notes"), "notes", "notes"),
    "a folder": (lambda m: m.folder("hf"), "./hf", "hf"),
    "a folder by its name alone": (lambda m: m.folder("hf"), "hf", "hf"),
    "a run": (lambda m: m.run("notes"), "notes", "notes"),
    "a run that is named as one": (lambda m: m.run("notes"), "run:notes", "notes"),
    "a run's own folder": (lambda m: m.run("notes"), "FOLDER", "notes"),
    "a model of the store": (lambda m: m.stored("small"), "small", "small"),
    "one that is named as such": (lambda m: m.stored("small"), "store:small", "small"),
    "a file that the store links to": (lambda m: m.stored("small", m.file("x.gguf")), "x.gguf", "small"),
    "a run with a draft": (lambda m: m.draft("quick"), "quick", "quick"),
    "letters beyond ASCII": (lambda m: m.file("café.gguf"), "café.gguf", "café"),
    "Latin-1 bytes": (lambda m: m.file(os.fsdecode(b"caf\xe9.gguf")), os.fsdecode(b"caf\xe9.gguf"), "caf\\xe9"),
    "a file beside a run, said": (lambda m: (m.run("notes"), m.file("notes"))[1], "./notes", "notes"),
    "a run beside a file, said": (lambda m: (m.file("notes"), m.run("notes"))[1], "run:notes", "notes"),
    "the store beside a run, said": (lambda m: (m.run("notes"), m.stored("notes"))[1], "store:notes", "notes"),
    "a run whose file the store links to": (lambda m: m.stored("notes", m.run("notes")), "notes", "notes"),
    "a run beside a folder of texts": (lambda m: ((m.here / "notes").mkdir(), m.run("notes"))[1], "notes", "notes"),
    "a run beside a damaged model": (lambda m: (damaged(m), m.run("notes"))[1], "notes", "notes"),
}


def damaged(machine: Machine, name: str = "bad", text: bytes = b"{") -> None:
    machine.stored(name)
    (store() / name / "model.json").write_bytes(text)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_command_takes_the_same_model(machine, situation):
    make, name, shown = SITUATIONS[situation]
    path = make(machine)
    ref = agree(name.replace("FOLDER", str(path.parents[1])))
    assert ref.kind == "model" and ref.path.samefile(path) and ref.source.name == shown


AMBIGUOUS = {
    "a file and a run": (lambda m: (m.file("notes"), m.run("notes")), ["./notes", "run:notes"]),
    "any file and a run": (
        lambda m: ((m.here / "notes").write_text("hello"), m.run("notes")),
        ["./notes", "run:notes"],
    ),
    "a folder and a run": (lambda m: (m.folder("notes"), m.run("notes")), ["./notes", "run:notes"]),
    "a file and a stored model": (lambda m: (m.file("notes"), m.stored("notes")), ["./notes", "store:notes"]),
    "a run and a stored model": (lambda m: (m.run("notes"), m.stored("notes")), ["run:notes", "store:notes"]),
    "all three": (
        lambda m: (m.run("notes"), m.stored("notes"), m.file("notes")),
        ["./notes", "run:notes", "store:notes"],
    ),
    "an adapter and a stored model": (
        lambda m: (m.adapter("notes", m.gguf), m.stored("notes")),
        ["run:notes", "store:notes"],
    ),
    "a run and a damaged one": (lambda m: (m.run("notes"), damaged(m, "notes")), ["run:notes", "store:notes"]),
}


@pytest.mark.parametrize("resolver", [resolve, resolve_whole, resolve_gguf, open_pretrained])
@pytest.mark.parametrize("situation", AMBIGUOUS)
def test_a_name_that_means_several_is_refused_by_every_command(machine, situation, resolver):
    make, spellings = AMBIGUOUS[situation]
    make(machine)
    with pytest.raises(UsageError, match="'notes' means several models"):
        find_run("notes")
    with pytest.raises(UsageError, match="'notes' means several models") as error:
        resolver("notes")
    assert all(f"`{spelling}`" in error.value.fix and spelling in error.value.what for spelling in spellings)
    assert portable_name("other") == "other"


@pytest.mark.parametrize(
    ("make", "name", "error", "says"),
    [
        (lambda m: m.stored("small"), "other", UsageError, "no model 'other'.*known: small.*`settle pull other`"),
        (lambda m: None, "none.gguf", UsageError, "there is no file of that name"),
        (lambda m: None, "./none", UsageError, "there is no file of that name"),
        (lambda m: None, "owner/name", UsageError, "`settle pull owner/name` gets one"),
        (lambda m: None, os.fsdecode(b"caf\xe9"), UsageError, r"no model 'caf\\\\xe9'"),
        (lambda m: None, "x" * 5000, UsageError, "no model"),
        (lambda m: None, "x\0y", UsageError, "no model"),
        (lambda m: None, "", UsageError, "no model is named"),
        (lambda m: None, "run:none", UsageError, "no run named 'none'"),
        (lambda m: None, "store:none", UsageError, "no model 'none' in the store"),
        (lambda m: (m.here / "texts").mkdir(), "texts", FormatError, "no config.json in texts"),
        (lambda m: Run.create("train", "cut"), "cut", UsageError, "no exported model yet.*settle resume cut"),
        (
            lambda m: m.stored("gone", m.file("x.gguf")).unlink(),
            "gone",
            UsageError,
            "are gone from.*settle pull hub:x/y",
        ),
        (lambda m: damaged(m), "bad", RunError, "model.json is damaged.*pull it again"),
        (lambda m: damaged(m, "bad", b"[1]"), "bad", RunError, "model.json is damaged"),
        (lambda m: damaged(m, "bad", b'{"path": "caf\xe9"}'), "bad", RunError, "model.json is damaged"),
        (
            lambda m: m.adapter("t", m.file("x.gguf")).touch() or (m.here / "x.gguf").unlink(),
            "t",
            UsageError,
            "is gone",
        ),
    ],
)
def test_what_is_not_there_is_said_alike(machine, make, name, error, says):
    make(machine)
    for resolver in (resolve, resolve_whole, resolve_gguf, open_pretrained):
        with pytest.raises(error, match=says):
            resolver(name)


def test_an_adapter(machine):
    base = machine.stored("small")
    path = machine.adapter("t", base)
    for name in ("t", "run:t", "small:t"):
        ref = resolve(name)
        assert (ref.kind, ref.path, ref.weights, ref.adapter) == ("adapter", path, base, path)
    assert resolve_gguf("t") == resolve("t") and resolve("t").adapts(resolve("small"))
    for resolver in (resolve_whole, open_pretrained):
        with pytest.raises(UsageError, match="t is an adapter and no whole model.*settle export t"):
            resolver("t")
    with pytest.raises(UsageError, match="is an adapter and no draft"):
        resolve_draft("t")
    assert [ref.id for ref in all_refs()] == ["small", "small:t"]


def test_the_run_of_a_name(machine):
    path = machine.run("notes").parents[1]
    for name in ("notes", "run:notes", path.name, str(path)):
        assert find_run(name).path == path
    machine.stored("small")
    for name in ("small", "store:small", "./notes", "none"):
        assert find_run(name) is None
    machine.file("notes")
    assert find_run("run:notes").path == path and find_run("./notes") is None


def test_a_draft(machine):
    machine.draft("quick")
    draft = resolve_draft("quick")
    assert draft.kind == "draft" and draft.path.name == "quick-draft.gguf" and draft.proposal == (3, 0.5, 1.5)
    assert resolve("quick").path.name == "quick.gguf"
    assert resolve_draft("run:quick") == draft and resolve_draft(str(machine.file("x.gguf"))).proposal is None


def test_a_collection(machine):
    machine.stored("small")
    (machine.home / "collections" / "docs").mkdir(parents=True)
    ref = resolve("docs@small")
    assert (ref.kind, ref.name, ref.id, ref.base) == ("collection", "docs", "docs@small", resolve("small"))
    for resolver in (resolve_whole, resolve_gguf):
        with pytest.raises(UsageError, match="docs@small is a collection of documents"):
            resolver("docs@small")
    with pytest.raises(UsageError, match="no model 'none@small'"):
        resolve("none@small")


def test_names_that_clients_see_are_each_of_one_model(machine):
    machine.run("notes")
    machine.stored("notes")
    machine.adapter("t", machine.stored("small"))
    damaged(machine)
    ids = [ref.id for ref in all_refs()]
    assert ids == ["store:notes", "small", "run:notes", "small:t"]
    assert [resolve(name).path for name in ids] == [ref.path for ref in all_refs()]
    assert [str(error) for error in damaged_models()] != []


def test_a_folder_of_the_store_is_converted_when_llama_cpp_needs_it(machine):
    machine.stored("small", machine.folder("hf"))
    assert resolve("small").source.kind == "safetensors"
    for name in ("small", "hf", "./hf"):
        ref = resolve_gguf(name)
        assert ref.path == store() / "small" / "small-bf16.gguf" and facts.read_facts(ref.path).use == "generate"
    machine.folder("other")
    with pytest.raises(UsageError, match="is not GGUF.*settle pull other"):
        resolve_gguf("other")


# --- what a run made ---


def test_a_record_is_believed_before_endings(machine, tmp_path):
    path = machine.run("t")
    run = Run.find("t")
    odd = path.rename(run.out / "odd-lora.gguf")
    (run.out / "t-draft.gguf").write_bytes(machine.gguf.read_bytes())
    record_made(run, {"gguf": str(odd), "ollama": "x"})
    assert models_of(run) == (MadeModel(kind="model", path=str(odd)),) and agree("t").path == odd
    record_made(run, {"lora_gguf": str(run.out / "t-lora.gguf")}, resolve(machine.gguf).source)
    assert len(models_of(run)) == 1  # the adapter's file is not there
    odd.unlink()
    with pytest.raises(UsageError, match=r"odd-lora\.gguf, which t exported, is no longer in .*settle export t --out"):
        resolve("t")


def test_a_run_that_learned_nothing_says_so_and_not_that_its_model_is_still_to_come(home):
    run = Run.create("tune", "short")
    write_json(run.path / "result.json", {"verdict": "broken", "why": "nothing was learned in 2 steps"})
    with pytest.raises(
        UsageError, match=r"short made no model: nothing was learned in 2 steps.*settle runs show short"
    ):
        resolve("short")


def test_records_of_a_newer_version_and_damaged_ones(machine):
    machine.run("t")
    run = Run.find("t")
    write_json(run.out / "models.json", {"version": 2, "models": [], "more": 1})
    with pytest.raises(RunError, match="has version 2, and this settle reads up to 1"):
        resolve("t")
    assert all_refs() == []
    for wrong in (
        [],
        {"version": 1},
        {"version": 1, "models": [{"kind": "cat", "path": "x"}]},
        {"version": "1", "models": []},
    ):
        write_json(run.out / "models.json", wrong)
        with pytest.raises(RunError, match=r"models\.json is damaged"):
            resolve("t")


def test_runs_of_before_records(home):
    """Neither an adapter nor a draft nor a half-written file is a model; a name that ends like one is only a name."""
    run = Run.create("tune", "mine")
    for name in ("mine-lora", "mine-draft", ".mine"):
        (run.out / f"{name}.gguf").touch()
    assert [made.kind for made in models_of(run)] == ["adapter"]
    with pytest.raises(UsageError, match="is an adapter and no whole model"):
        resolve("mine")
    (run.out / "mine.gguf").touch()
    assert resolve("mine").path == run.out / "mine.gguf"
    named = Run.create("tune", "my-lora")
    with pytest.raises(UsageError, match="has no exported model yet"):
        resolve("my-lora")
    (named.out / "my-lora.gguf").touch()
    assert resolve("my-lora").path == named.out / "my-lora.gguf"


def test_references_do_not_change(machine):
    ref = resolve(machine.file("x.gguf"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        ref.name = "y"  # type: ignore[misc]
    assert (
        len(ref.source.sha256) == 64 and facts.read_facts(ref.path).template and isinstance(SettleError("x"), Exception)
    )


@pytest.mark.parametrize("name", ["rows.jsonl", "table.CSV"])
def test_a_file_of_data_in_the_place_of_the_model_is_said(home, tmp_path, name):
    path = tmp_path / name
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UsageError, match="holds data and is not a model") as error:
        resolve(path)
    assert f"settle tune smollm2 {name}" in error.value.fix
