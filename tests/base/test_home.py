"""The home is private, and what killed processes left is removed."""

import os
import subprocess
import sys

import pytest

from settle.base.files import home, sweep_leftovers


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_nobody_else_reads_it(tmp_path, monkeypatch):
    """A new one, and one that an earlier settle made."""
    for name, mode in (("new/home", None), ("old", 0o755)):
        folder = tmp_path / name
        if mode:
            folder.mkdir(mode=mode)
        monkeypatch.setenv("SETTLE_HOME", str(folder))
        assert home() == folder and folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_is_more_than_its_home(tmp_path, monkeypatch):
    folder = tmp_path / "person"
    folder.mkdir()
    folder.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("SETTLE_HOME", str(folder))
    assert home().stat().st_mode & 0o777 == 0o755


def test_leftovers(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, living = int(done.stdout), os.getpid()
    (tmp_path / f".unproven-{dead}-x").mkdir()
    (tmp_path / f".unproven-{dead}-x" / "half.part").write_bytes(b"x")
    for name in (f".unproven-{living}-x", f".m.gguf.{living}.part", f".m.gguf.{dead}.part", "mine", ".unproven-mine"):
        (tmp_path / name).write_bytes(b"x")
    for prefix in (".unproven-", ".m.gguf."):
        sweep_leftovers(tmp_path, prefix)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {f".unproven-{living}-x", f".m.gguf.{living}.part", "mine", ".unproven-mine"}
