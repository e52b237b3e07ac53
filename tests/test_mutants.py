"""The short form of bench/mutants.py: what tests caught when it was recorded, they still catch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forks")
def test_faults_that_were_caught_are_caught_again() -> None:
    command = [sys.executable, str(ROOT / "bench" / "mutants.py"), "--again", "--most", "4"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("caught by") == 4, done.stderr[-2000:]


def test_a_fault_is_put_where_it_says() -> None:
    """Each differs from the source in its own place alone, and leaves every line where it was."""
    sys.path.insert(0, str(ROOT / "bench"))
    try:
        from mutation.faults import faults_of
    finally:
        sys.path.remove(str(ROOT / "bench"))
    path = "settle/evaluate/tasks/f1.py"
    source = (ROOT / path).read_bytes()
    faults = faults_of(ROOT, path)
    assert len({fault.key for fault in faults}) == len(faults) > 3
    for fault in faults:
        broken = fault.put_into(source)
        assert broken != source and broken.count(b"\n") == source.count(b"\n")
        assert source[fault.start : fault.end].decode() == fault.old
        assert fault.statement.encode() in source.splitlines()[fault.line - 1]
