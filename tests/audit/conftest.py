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
from settle.audit import watcher
watcher.ASKS = {asks}
session.from_command_line({offline})
told = []
with session.ledger("try", [Reach(host, "a test") for host in {reaches!r}], {offline}) as ledger:
    ledger.on_undeclared = told.append
{code}
    time.sleep(0.1)  # what is told comes from another thread
print(json.dumps([str(ledger.path), ledger.level, told]))
"""


# A network of its own whose loopback has the addresses for documentation, too: packets to them stay in it.
NOWHERE = ["unshare", "-rn", "sh", "-c", """
ip link set lo up && ip addr add 203.0.113.1/24 dev lo && ip addr add 2001:db8::1/64 dev lo nodad && exec "$@"
""", "sh"]  # fmt: skip


class Watched:
    """What the ledger of a piece of code says. told: the lines of undeclared connections, at once. under: the command
    that runs it. asks: only ancestors may look into a process, as on Ubuntu."""

    def __init__(self, code, reaches=(), offline=False, under=(), asks=False, **options):
        inner = textwrap.indent(textwrap.dedent(code), "    ")
        text = START.format(code=inner, reaches=list(reaches), offline=offline, asks=asks)
        command = [*under, sys.executable, "-c", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)
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
def nowhere(can_prove):
    """The command that runs another one in a network without a way out."""
    done = subprocess.run([*NOWHERE, "true"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no network can be set up here: {done.stderr}")
    return NOWHERE


@pytest.fixture(scope="session")
def can_watch(tmp_path_factory):
    """Skips where this system has no notifications."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        if (found := Watched("").ledger).level == "observed":
            pytest.skip(f"observed only: {found.why}")
