"""Code under a ledger: in a process of its own, since a filter cannot be taken off."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from settle.audit.ledger import read_sessions

START = """
import json, os, socket, subprocess, sys, threading, time
from settle.audit import session
from settle.audit.reach import Reach
session.from_command_line({offline})
told = []
with session.ledger("try", [Reach(host, "a test") for host in {reaches!r}], {offline}) as ledger:
    ledger.on_undeclared = told.append
{code}
    time.sleep(0.1)  # what is told comes from another thread
print(json.dumps([str(ledger.path), ledger.level, told]))
"""


class Watched:
    """What the ledger of a piece of code says. told: the lines of undeclared connections, at once."""

    def __init__(self, code, reaches=(), offline=False):
        text = START.format(code=textwrap.indent(textwrap.dedent(code), "    "), reaches=list(reaches), offline=offline)
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        self.out = done.stdout.splitlines()[:-1]
        self.path, self.level, self.told = json.loads(done.stdout.splitlines()[-1])
        self.ledger = read_sessions([Path(self.path)], is_running=True)

    @property
    def beyond(self):
        return {(c.address, c.port) for c in self.ledger.beyond}


@pytest.fixture(scope="session")
def can_prove(tmp_path_factory):
    """Skips where no network namespace can be made."""
    done = subprocess.run(["unshare", "-rn", "true"], capture_output=True)
    if done.returncode:
        pytest.skip("no network namespace can be made here")


@pytest.fixture(scope="session")
def can_watch(tmp_path_factory):
    """Skips where this system has no notifications."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        if (found := Watched("").ledger).level == "observed":
            pytest.skip(f"observed only: {found.why}")
