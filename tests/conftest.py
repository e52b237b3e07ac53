import os
from pathlib import Path

import pytest

from settle.base import registry

# Two tests run at a time, and tiny models gain nothing from threads: two that wait for each other only spin. Said
# before torch is loaded; what a test starts inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh SETTLE_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SETTLE_HOME", str(folder))
    return folder


@pytest.fixture
def installed_ia3(tmp_path_factory, monkeypatch):
    """Another package that brings one adapter, in one file: `tests/model/adapters/ia3.py`."""
    yield from installed("model.adapters", "ia3", "tests.model.adapters.ia3:IA3", tmp_path_factory, monkeypatch)


def installed(family, name, part, tmp_path_factory, monkeypatch):
    """A package that brings one part of a family, while a fixture lasts."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / f"settle_{name}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: settle-{name}\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[settle.{family}]\n{name} = {part}\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{Path(__file__).parent.parent}")
    _forget_parts()
    yield
    monkeypatch.undo()
    _forget_parts()


def _forget_parts():
    for function in vars(registry).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()
