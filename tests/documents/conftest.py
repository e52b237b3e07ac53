"""Readers for tests, joined as those of other packages, and a folder for documents."""

import pytest

from tests import examples


@pytest.fixture(scope="package", autouse=True)
def joined(tmp_path_factory):
    """`stuck` is a reader that misbehaves, `notes` one of a new kind and `hashed` an embedder, joined as other people's
    packages join, here and in every process that is started.
    """
    site = tmp_path_factory.mktemp("parts")
    (site / "settle_notes.py").write_text(examples.example("notes"), encoding="utf-8")
    points = (
        "[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n"
        "[settle.documents.readers]\nstuck = tests.documents.stuck:Stuck\nnotes = settle_notes:Notes\n"
    )
    with examples.joined(site, points):
        yield


@pytest.fixture
def folder(tmp_path):
    """An empty folder for documents."""
    made = tmp_path / "documents"
    made.mkdir()
    return made


@pytest.fixture(autouse=True)
def fresh_home(tmp_path_factory, monkeypatch):
    """A SETTLE_HOME beside the documents: no test finds what another one made."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
