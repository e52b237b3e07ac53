"""The home is private, what killed processes left is removed, and a line that was cut off costs no other."""

import os
import subprocess
import sys

import pytest

from settle.base.errors import ResourceError
from settle.base.files import append_lines, home, read_lines, sweep_leftovers


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_nobody_else_reads_it(tmp_path, monkeypatch):
    """A new one, and one that an earlier settle made where nobody named another place."""
    monkeypatch.setenv("SETTLE_HOME", str(tmp_path / "new/home"))
    assert home() == tmp_path / "new/home" and home().stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("SETTLE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".settle").mkdir(mode=0o755)
    assert home() == tmp_path / ".settle" and home().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o2775, 0o770, 0o755, 0o1777])
def test_a_folder_that_somebody_made_and_named_keeps_its_permissions(tmp_path, monkeypatch, mode):
    """As one that a group shares."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("SETTLE_HOME", str(folder))
    assert home().stat().st_mode & 0o7777 == mode


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


# --- append-only files of JSON lines ---


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "made" / "lines.jsonl"
    assert list(read_lines(path)) == []
    append_lines(path, [{"text": "é\u2028\udc80"}], sync=True)
    with path.open("ab") as f:
        f.write(b'[1]\n{"text": "cut')
    append_lines(path, [{"n": 1}, {"n": 2}])
    assert list(read_lines(path)) == [{"text": "é\u2028\udc80"}, {"n": 1}, {"n": 2}]


def test_what_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="make room or permission there, and run it again"):
        append_lines(tmp_path / "file" / "lines.jsonl", [{"n": 1}], then="and run it again")
