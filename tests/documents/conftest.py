"""Readers for tests, joined as those of other packages, and a folder for documents."""

import os
import sys

import pytest

from tests.examples import example, forget_parts


@pytest.fixture(scope="package", autouse=True)
def joined(tmp_path_factory):
    """`stuck` is a reader that misbehaves, `notes` one of a new kind and `hashed` an embedder, joined as other people's
    packages join, here and in every process that is started.
    """
    made = tmp_path_factory.mktemp("parts")
    info = made / "settle_tests_documents-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: settle-tests-documents\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[settle.retrieve.index.embedders]\nhashed = tests.retrieve.hashed:Hashed\n"
        "[settle.documents.readers]\nstuck = tests.documents.stuck:Stuck\nnotes = settle_notes:Notes\n"
    )
    (made / "settle_notes.py").write_text(example("notes"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(made))
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forget_parts()
        yield
    forget_parts()


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
