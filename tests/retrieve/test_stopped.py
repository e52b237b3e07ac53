"""A small part of what bench/reindex.py does to an index: killed at random moments, and a disk that is full."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("how", [["kill", "--moments", "2"], ["full", "--limits", "3"]], ids=["killed", "full"])
def test_an_index_that_is_stopped_is_never_wrong_and_ends_as_a_fresh_one(how):
    command = [sys.executable, str(ROOT / "bench" / "reindex.py"), *how, "--stores", "lancedb", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["failures"] == [] and all(good == cases > 0 for _, good, cases in told["rows"])
