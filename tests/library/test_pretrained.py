"""Pretrained models opened by name."""

import pytest

from settle.base.errors import SettleError, UsageError
from settle.formats.safetensors import export_safetensors
from settle.library.pretrained import open_pretrained
from settle.library.store import StoredModel, add_model, stamp_of
from settle.model.source import hash_of


def test_names_of_the_store(tiny, tmp_path, monkeypatch):
    folder = export_safetensors(tiny.part, tiny.weights, tiny.tokenizer, tmp_path / "model")
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="no model 'mine'.*settle pull mine"):
        open_pretrained("mine")
    add_model(StoredModel("mine", "safetensors", folder, "abc", str(folder), "mit", stamp_of(folder)))
    for what in ("mine", folder):
        opened = open_pretrained(what)
        assert opened.name == "mine" and opened.source.sha256 == "abc" and opened.license == "mit"
    (folder / "generation_config.json").write_text("{}")
    assert open_pretrained("mine").source.sha256 == hash_of(folder) != "abc"
    with pytest.raises(UsageError, match="known: mine"):
        open_pretrained("other")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(SettleError, match="are gone from"):
        open_pretrained("mine")
