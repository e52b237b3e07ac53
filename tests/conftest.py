import os

import pytest

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
