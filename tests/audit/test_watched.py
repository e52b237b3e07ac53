"""Level watched: what each way of reaching the network leaves in the ledger."""

import subprocess
import sys
import textwrap

from settle.audit.ledger import read_sessions
from settle.base.events import UndeclaredConnection
from settle.base.words.sentences import undeclared_text
from tests.audit.conftest import Watched

ADDRESS = "203.0.113.7"  # of the block for documentation: nobody answers there


def test_nothing_left(can_watch, home):
    watched = Watched("""
        listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
        for _ in range(3):
            socket.create_connection(listening.getsockname()).close()
    """)
    assert watched.level == "watched" and not watched.told
    assert [(c.address, c.scope) for c in watched.ledger.connections] == [("127.0.0.1", "loopback")]
    assert watched.ledger.sentence.startswith("Nothing left this machine; watched, 1 process")


def test_an_undeclared_connection_is_told_at_once(can_watch, home):
    watched = Watched(f"""
        connecting = socket.socket(); connecting.setblocking(False); connecting.connect_ex(("{ADDRESS}", 4711))
    """)
    assert [(line["address"], line["port"]) for line in watched.told] == [(ADDRESS, 4711)]
    assert watched.ledger.sentence.startswith(f"Undeclared connections: {ADDRESS}:4711 by python")


def test_a_declared_one_is_not(can_watch, home):
    code = f"""
        connecting = socket.socket(); connecting.setblocking(False); connecting.connect_ex(("{ADDRESS}", 4711))
    """
    watched = Watched(code, [ADDRESS])
    assert not watched.told and watched.ledger.sentence.startswith(f"Only declared connections: {ADDRESS}:4711")


def test_a_command_reports_it_as_an_event(can_watch, home):
    """What connects, and what listens where others can connect, unless it said that it would."""
    code = f"""
        import socket, sys, time
        from settle.audit import session
        from settle.audit.reach import Reach
        from settle.base.event_log import Events
        class Command:
            is_watched = True
            part_name = staticmethod(lambda: "try")
            def reaches(self): return [Reach("{ADDRESS}", "a test")]
            def door(self): return "0.0.0.0", 0
        session.from_command_line(False)
        events = Events(listeners=[lambda e: print(e.kind, e.call, e.address, e.port)])
        with session.ledger_of(Command(), events, False):
            sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(2)] + [socket.socket() for _ in range(2)]
            sockets[0].connect(("{ADDRESS}", 4711))
            sockets[1].connect(("203.0.113.8", 4711))
            sockets[2].bind(("0.0.0.0", 0)); sockets[2].listen()
            time.sleep(0.3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("undeclared connect 203.0.113.8 4711\n", "")
    found = read_sessions((home / "ledgers").glob("*.jsonl"))
    assert [c.declared for c in found.beyond] == [True, False]
    assert len(found.listens) == 1 and "it listened on 0.0.0.0:" in found.sentence


def test_what_listens_undeclared_is_told(can_watch, home):
    watched = Watched("""
        listening = socket.socket(); listening.bind(("0.0.0.0", 0)); listening.listen()
    """)
    assert [line["kind"] for line in watched.told] == ["listen"]
    assert undeclared_text(UndeclaredConnection(pid=1, call="listen", address="0.0.0.0", port=80)) == (
        "undeclared: process 1 listens on 0.0.0.0 port 80, where others can connect"
    )
