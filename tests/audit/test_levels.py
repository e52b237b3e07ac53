"""What is said where less can be seen, and what happens when the watching process is lost."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from settle.audit import session, system_calls
from settle.audit.ledger import overview_of_ledgers, read_ledger, read_sessions
from settle.base.run import Run
from tests.audit.conftest import Watched

CONNECT = 'socket.socket(type=socket.SOCK_DGRAM).connect(("203.0.113.7", 4711))\n'
DENY = """
import ctypes, errno, os, struct, sys
from settle.audit import system_calls as calls
libc = ctypes.CDLL(None, use_errno=True)
def deny(*numbers):
    program = calls._Program()
    program.load(0)
    for number in numbers:
        program.jump(calls._EQUAL, number, yes="no")
    program.answer(calls._ALLOW)
    program.label("no")
    program.answer(calls._ERRNO | errno.EPERM)
    code = program.assemble()
    buffer = ctypes.create_string_buffer(code, len(code))
    assert not libc.prctl(calls.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    pointer = struct.pack("HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    assert not libc.syscall(*calls._longs(calls.native_abi().seccomp, 1, 0), pointer)
"""
UNSHARE = {"x86_64": 272, "aarch64": 97}


def under(deny, *argv):
    """A settle on whose system calls are forbidden, as in a container."""
    code = f"{DENY}\ndeny({deny})\nsys.argv = {['settle', *argv]!r}\nfrom settle.cli import main\nsys.exit(main())"
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)


def test_without_notifications_it_is_observed_by_name(can_watch, home):
    assert under("calls.native_abi().seccomp", "connect", "nothing").returncode == 2
    found = read_sessions((home / "ledgers").glob("*.jsonl"))
    assert found.level == "observed" and "no notifications" in found.why
    assert "Nothing left" not in found.sentence and "observed only" in found.sentence


@pytest.mark.parametrize("forbidden", ["unshare", "seccomp"])
def test_offline_that_cannot_be_proved_is_refused(can_watch, home, forbidden):
    number = "calls.native_abi().seccomp" if forbidden == "seccomp" else str(UNSHARE[os.uname().machine])
    done = under(number, "runs", "--offline")
    assert done.returncode == 2 and done.stdout == ""
    assert "--offline cannot be proved here" in done.stderr and "leave --offline out" in done.stderr


def test_what_people_left_among_the_ledgers_is_no_ledger(home):
    begun = '{"kind": "opened", "version": 2, "pid": 7, "level": "watched"}\n{"kind": "closed"}\n'
    (home / "ledgers").mkdir(parents=True, exist_ok=True)
    for name in ("2026-01-02T03-04-05-train-7-abcd", "odd", "2026-01-02", "copy of 2026-01-02T03-04-05-train-7-abcd"):
        (home / f"ledgers/{name}.jsonl").write_text(begun)
    overview = overview_of_ledgers()
    assert [*overview.ledgers] == ["2026-01-02T03-04-05-train-7-abcd"]
    assert overview.sentence.startswith("Nothing left this machine in 1 command since 2 Jan")


def test_other_systems_are_observed_by_name(home, monkeypatch):
    monkeypatch.setattr(system_calls.sys, "platform", "darwin")
    monkeypatch.setattr(session, "_is_command_line", True)
    with session.ledger("serve") as opened:
        assert opened.level == "observed" and "darwin" in opened.why
    with pytest.raises(Exception, match="--offline cannot be proved here"), session.ledger("serve", offline=True):
        pass


def test_a_library_leaves_the_process_that_uses_it_as_it_was(home):
    status = Path("/proc/self/status")
    before = status.read_text() if status.exists() else ""
    run = Run.create("train", "notes")
    with session.ledger("train") as opened:
        opened.put_into(run.path)
    after = status.read_text() if status.exists() else ""
    assert [line for line in before.splitlines() if "Seccomp" in line] == [
        line for line in after.splitlines() if "Seccomp" in line
    ]
    found = read_ledger(run.path)
    assert found.level == "observed" and "library" in found.why and not found.gaps
    assert found.sentence.startswith("Python opened no connection beyond this machine; observed only")


def test_observed_reports_pythons_own(home):
    told = []
    with session.ledger("try") as opened:
        opened.on_undeclared = told.append
        with socket.socket(type=socket.SOCK_DGRAM) as one:
            one.connect(("203.0.113.7", 4711))
    found = read_sessions([opened.path])
    assert [(c.address, c.port) for c in found.undeclared] == [("203.0.113.7", 4711)]
    assert [line["address"] for line in told] == ["203.0.113.7"]


def test_threads_that_ran_before_are_not_watched(can_watch, home):
    code = """
        import threading, time
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        from settle.audit import session
        session.from_command_line(False)
        with session.ledger("try") as opened:
            print(opened.level, opened.why)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout == "observed threads of this process were running before\n", done.stderr


KILL = """
import signal
def readers():
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
            line = open(f"/proc/{pid}/cmdline").read()
        except OSError:
            continue
        if "watcher_child" in line:
            found.append((int(stat[1]), int(pid)))
    keepers = [pid for parent, pid in found if parent == os.getpid()]
    return keepers, [pid for parent, pid in found if parent in keepers]
"""


def test_a_killed_reader_is_replaced_and_the_gap_is_said(can_watch, home):
    watched = Watched(f"""{KILL}
for _ in range(2):
    while not readers()[1]:
        time.sleep(0.05)
    os.kill(readers()[1][0], signal.SIGKILL)
    time.sleep(0.5)
    {CONNECT}""")
    assert watched.beyond == {("203.0.113.7", 4711)}
    assert watched.ledger.gaps == ["the watching process was killed"] * 2
    assert "incomplete: the watching process was killed" in watched.ledger.sentence


def test_without_any_watcher_nothing_can_connect(can_watch, home):
    """The kernel refuses the calls: what is not watched does not leave, and nothing waits for ever."""
    watched = Watched(f"""{KILL}
while not readers()[1]:
    time.sleep(0.05)
keepers, others = readers()
for pid in keepers + others:
    os.kill(pid, signal.SIGKILL)
time.sleep(0.3)
try:
    {CONNECT}
except OSError as e:
    print(e.errno)
""")
    assert watched.out == ["38"]  # ENOSYS
    found = read_sessions([Path(watched.path)])
    assert "a session was cut off before its end" in found.sentence and "Nothing left" not in found.sentence


def test_every_session_of_a_run_is_in_its_folder(can_watch, home):
    """A run that was killed and resumed has two; the level is that of the least complete."""
    run = Run.create("train", "notes")
    for _ in range(2):
        Watched(f"from pathlib import Path; ledger.put_into(Path({str(run.path)!r}))")
    until = time.monotonic() + 30
    while not all('"closed"' in path.read_text() for path in (run.path / "audit").iterdir()):
        assert time.monotonic() < until, "the watcher, which ends after what it watches, closes the ledger"
        time.sleep(0.02)
    with session.ledger("train") as opened:
        opened.put_into(run.path)
    found = read_ledger(run.path)
    assert len(list((run.path / "audit").iterdir())) == 3 and found.level == "observed" and not found.gaps


def test_a_full_disk_is_said(can_watch, home, tmp_path):
    """A limit on the size of files stands for it; the work goes on."""
    watched = Watched("""
import resource
signal = __import__("signal"); signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
size = os.fstat(ledger._fd).st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
ledger.write({"kind": "name", "host": "x"})
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
ledger.write({"kind": "name", "host": "y"})
""")
    assert any("found no room" in gap for gap in watched.ledger.gaps)


def test_where_only_ancestors_may_read_memory_the_run_does(can_watch, home):
    """As on Ubuntu: a child of the run, and a child of that one."""
    code = """
        import subprocess, sys
        from settle.audit import session, watcher
        watcher.ASKS = True
        session.from_command_line(False)
        with session.ledger("try") as opened:
            inner = "import socket; socket.socket(type=socket.SOCK_DGRAM).connect(('203.0.113.7', {}))"
            subprocess.run([sys.executable, "-S", "-c", inner.format(4711)])
            outer = "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', sys.argv[1]])"
            subprocess.run([sys.executable, "-S", "-c", outer, inner.format(4712)])
            print(opened.level, opened.path)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    level, path = done.stdout.split()
    assert level == "watched" and not done.stderr
    assert {(c.address, c.port) for c in read_sessions([Path(path)], True).beyond} == {
        ("203.0.113.7", 4711),
        ("203.0.113.7", 4712),
    }


def test_a_server_without_a_network_answers_this_machine_alone(can_watch, can_prove, home):
    """Its port was opened before; a socket from then leads nowhere else."""
    code = """
        import socket
        from settle.audit import session
        from settle.audit.door import listen, open_door
        session.from_command_line(True)
        print(open_door("127.0.0.1", 0))
        with session.ledger("serve", (), True) as opened:
            listening = listen("127.0.0.1", 0)
            print(opened.path, flush=True)
            listening.accept()[0].sendall(b"here")
            listening.shutdown(socket.SHUT_RDWR)
            for address in (("203.0.113.7", 4711), ("0.0.0.0", 0)):
                print(listening.connect_ex(address))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as process:
        host, _, port = process.stdout.readline().strip().partition(":")
        process.stdout.readline()
        with socket.create_connection((host, int(port)), 20) as client:
            assert client.recv(4) == b"here"
        assert process.stdout.read().split()[0] == "101"  # ENETUNREACH


def test_offline_serves_no_other_machine(can_watch, can_prove, home):
    done = subprocess.run(
        [sys.executable, "-m", "settle", "serve", "--offline", "--host", "0.0.0.0"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "programs of this machine only" in done.stderr


def test_what_only_unix_has_is_no_need(home):
    """Windows has no fcntl."""
    code = "import sys; sys.modules['fcntl'] = None; import settle.audit.session; print('loaded')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "loaded\n", done.stderr


def test_many_ledgers_of_a_library_leave_one_hook_and_no_descriptor(home):
    for _ in range(5):
        with session.ledger("train"):
            pass
    assert session._hook() is session._hook()
    # of this test's home alone: threads of other tests open and close their own
    assert not [file.path for file in psutil.Process().open_files() if file.path.startswith(str(home))]
