"""Fourteen ways out, at level watched (each recorded, with process and address) and proved (none of them works)."""

import platform
import select
import shutil
import socket
import textwrap

import pytest

from tests.audit.attacks import ATTACKS, Targets, is_recorded
from tests.audit.conftest import Watched

NEEDS = {"curl": shutil.which("curl"), "static binary": platform.machine() == "x86_64"}
NAMES = [name for name in ATTACKS if NEEDS.get(name, True)]
NOWHERE, HERE = Targets(), Targets("127.0.0.1", "127.0.0.1", "::1")


def run_all(targets, offline, tmp_path_factory):
    """Every attack in one process, each in a function of its own."""
    for module in ("aiohttp", "uvloop", "httpx", "jsonschema_rs"):
        pytest.importorskip(module)
    lines = []
    for number, name in enumerate(NAMES):
        lines += [f"def attack{number}():", textwrap.indent(targets.code(name), "    "), f"attack{number}()"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SETTLE_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
        return Watched("\n".join(lines), offline=offline)


@pytest.fixture(scope="module")
def watched(can_watch, tmp_path_factory):
    return run_all(NOWHERE, False, tmp_path_factory)


@pytest.fixture(scope="module")
def proved(can_watch, can_prove, tmp_path_factory):
    """With the attacks that got through to this machine's own loopback, which is outside of the empty network."""
    listening = []
    for name in NAMES:
        address, port = HERE.reached(name)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening.append(socket.socket(family, socket.SOCK_DGRAM if name == "UDP" else socket.SOCK_STREAM))
        listening[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening[-1].bind((address, port))
        except OSError as e:
            pytest.skip(f"nothing can listen on {address} port {port}: {e}")
        if name != "UDP":
            listening[-1].listen()
    made = run_all(HERE, True, tmp_path_factory)
    made.came_through = [name for name, s in zip(NAMES, listening, strict=True) if select.select([s], [], [], 0)[0]]
    for one in listening:
        one.close()
    return made


@pytest.mark.parametrize("name", NAMES)
def test_watched_records_each(watched, name):
    assert watched.level == "watched" and is_recorded(name, watched.ledger, NOWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_proved_lets_none_through_and_records_the_attempt(proved, name):
    assert proved.level == "proved" and is_recorded(name, proved.ledger, HERE)
    assert name not in proved.came_through
