"""Which models the page Chat offers."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="needs the extra `studio`")

from settle.base.files import write_json
from settle.base.run import Run
from settle.formats.gguf import export_gguf
from settle.formats.lora_gguf import export_lora
from settle.library.facts import chat_models
from settle.library.store import StoredModel, add_model
from settle.studio.pages.chat import listed_name
from tests.studio.made_models import TEMPLATE
from tests.trained import adapter, trained


def test_models_that_chat_are_apart_from_those_that_complete_text(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    made = trained()
    for name, about in (("chats", {"chat_template": TEMPLATE}), ("completes", {"base": True})):
        export_gguf(made.part, made.weights, made.tokenizer, tmp_path / f"{name}.gguf", "f32", about)
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF")
    for name in ("chats", "completes", "damaged"):
        add_model(StoredModel(name, "gguf", Path(tmp_path / f"{name}.gguf"), "ab" * 32, "test"))
    for name, architecture, template in (
        ("folder", "LlamaForCausalLM", TEMPLATE), ("base", "LlamaForCausalLM", None), ("embeds", "BertModel", TEMPLATE)
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
        add_model(StoredModel(name, "safetensors", tmp_path / name, "ab" * 32, "test"))
    chats, completes = chat_models()
    assert (sorted(chats), sorted(completes)) == (["chats", "folder"], ["base", "completes"])


def test_a_tuned_run_leads_to_its_adapter_and_not_to_its_base(tmp_path, monkeypatch):
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path))
    made, base = trained(), tmp_path / "small.gguf"
    export_gguf(made.part, made.weights, made.tokenizer, base, "f32", {"chat_template": TEMPLATE})
    add_model(StoredModel("small", "gguf", base, "ab" * 32, "test"))
    run = Run.create("tune", "rows")
    write_json(run.path / "plan.json", {"tuning": {"base": str(base), "base_name": "small"}})
    export_lora(made.part, adapter(made.part), run.out / "rows-lora.gguf")
    chats, _ = chat_models()
    assert [listed_name(name, chats) for name in ("rows", "small", "none", "")] == ["small:rows", "small", "none", ""]
    assert "small:rows" in chats
