"""A small part of what bench/reindex.py does to an index: killed at random moments."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
def test_an_index_that_is_killed_is_never_wrong_and_ends_as_a_fresh_one():
    command = [sys.executable, str(ROOT / "bench" / "reindex.py"), "kill", "--moments", "1", "--stores", "lancedb"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"rows": [["lancedb", 1, 1]], "failures": []}
