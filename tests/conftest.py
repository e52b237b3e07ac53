import pytest


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A fresh SETTLE_HOME."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("SETTLE_HOME", str(folder))
    return folder
