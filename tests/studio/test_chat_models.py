"""Which models the page Chat offers."""

import json
from pathlib import Path

import pytest

pytest.importorskip("nicegui", reason="needs the extra `studio`")

from settle.formats.gguf import export_gguf
from settle.library.facts import chat_models
from settle.library.store import StoredModel, add_model
from tests.studio.made_models import TEMPLATE
from tests.trained import trained


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
