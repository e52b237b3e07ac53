"""A small part of the kill matrix; bench/kill.py runs all of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    "of",
    [
        pytest.param(["--only", "0", "1"], id="train"),
        pytest.param(["--tune", "--only", "1"], id="tune", marks=pytest.mark.exhaustive),
    ],
)  # random moments, file events of a save; of signals test_loop and tests/commands/test_resume.py prove as much
def test_a_run_that_is_killed_ends_byte_for_byte_as_one_that_was_not(of: list[str]) -> None:
    command = [sys.executable, str(ROOT / "bench" / "kill.py"), *of, "--reduced", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["failures"] == [] and all(good == cases > 0 for _, good, cases, _ in told["rows"])
