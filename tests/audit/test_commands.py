"""Every command at its defaults: nothing goes beyond this machine but what it declares. And so in each other test."""

import json
import os
import subprocess
import sys

import pytest

from settle.base.registry import part_names

pytestmark = pytest.mark.exhaustive  # a minute; tests/conftest.py reads the ledgers of what other tests run


@pytest.fixture(scope="module")
def commands(can_watch, tmp_path_factory):
    pytest.importorskip("llama_cpp_py_sync")
    environment = os.environ | {"SETTLE_HOME": str(tmp_path_factory.mktemp("home"))}
    run = [sys.executable, "-m", "tests.audit.every_command"]
    done = subprocess.run(run, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["level"] == "watched"
    return found["commands"]


@pytest.mark.parametrize("name", part_names("commands"))
def test_a_command_at_its_defaults(commands, name):
    """Its work was done, too. An index gets an embedder by pip where there is none, and says so before."""
    found = commands[name]
    assert found["code"] in (0, 3), found["end"]
    assert not found["undeclared"] and not found["listens"], found
    assert name == "index" or not found["beyond"], found
